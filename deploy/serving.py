"""Serving and stopping: the API in a thread of this process, and the end of a worker within its grace.

Embedded, the API must share the ClickHouse engine with the worker.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
import time

import click
import uvicorn

from api.app import create_app
from api.security.access import Access
from deploy.http_server import server_config
from schemas.errors import ConfigurationError
from schemas.live_events import EventFeed
from schemas.settings import Settings
from streams.app import Worker
from streams.health import HealthServer

_DEADLINE_S = 60.0
EXIT_UNFINISHED = 75
"""Exit code (EX_TEMPFAIL) where the grace was over first: nothing is lost, the next owner repeats."""


class Grace:
    """Ends the process when its time to stop is over, also while the event loop waits for a thread."""

    def __init__(self, grace_ms: int) -> None:
        self._grace_ms = grace_ms
        self._timer: threading.Timer | None = None
        self._ends_s: float | None = None
        self._ending = threading.Lock()

    def begin(self) -> None:
        """Start the time; again is harmless."""
        if self._timer is None:
            self._ends_s = time.monotonic() + self._grace_ms / 1000
            self._timer = threading.Timer(self._grace_ms / 1000, self.end)
            self._timer.daemon = True
            self._timer.start()

    @property
    def is_over(self) -> bool:
        """Say whether the time has passed, whether or not the timer has found out yet."""
        return self._ends_s is not None and time.monotonic() >= self._ends_s

    def end(self) -> None:
        """End the process and say why; once, whoever comes first: the timer or a stop that has found its time over."""
        self._ending.acquire()  # never let go: who comes second waits for the end
        end_now(
            EXIT_UNFINISHED,
            f"not finished within {self._grace_ms / 1000:g} s (worker.grace_ms); nothing is lost, "
            "the next owner repeats what was under way",
        )


def end_now(code: int, reason: str) -> None:
    """End the process without waiting for any thread; says why in one line."""
    os.write(2, f"drift: {reason}\n".encode())
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)


def serve_health(running: Worker) -> HealthServer | None:
    """Open the worker's HTTP endpoint, if the settings give it a port.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    options = running.settings.worker
    if options.metrics_port is None:
        return None
    registry, standing = running.metrics.registry, running.standing
    server = HealthServer(
        options.metrics_host, options.metrics_port, registry, standing.readiness, lambda: running.beat_s
    )
    host = f"[{options.metrics_host}]" if ":" in options.metrics_host else options.metrics_host
    click.echo(f"drift worker: http://{host}:{server.port} has /metrics, /livez and /readyz", err=True)
    return server


def stop_once(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Ask for an orderly stop; the next signal ends the process at once, whatever the stop waits for."""
    stop.set()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)  # Python's KeyboardInterrupt would wait for threads, maybe for ever


def listen(host: str, port: int) -> socket.socket:
    """Bind the API's socket.

    Raises:
        ConfigurationError: the port is taken or may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((host, port))
        server.listen(128)
    except OSError as error:
        server.close()
        raise ConfigurationError(
            f"port {port} on {host} cannot be used ({error.strerror}): choose another with --api-port or api.port"
        ) from error
    return server


class ApiThread:
    """The API on an own thread and event loop.

    Args:
        access: decides who gets in. feed: reads `drift-events` for live clients.
    """

    def __init__(
        self, settings: Settings, access: Access, listener: socket.socket, feed: EventFeed | None = None
    ) -> None:
        self.port = int(listener.getsockname()[1])
        self._listener = listener
        self._server = uvicorn.Server(server_config(create_app(settings, access, feed=feed), settings.api, "warning"))
        self._thread = threading.Thread(target=self._serve, name="api", daemon=True)

    def _serve(self) -> None:
        self._server.run(sockets=[self._listener])

    def start(self) -> None:
        """Start serving; return once requests are answered.

        Raises:
            ConfigurationError: it did not come up.
        """
        self._thread.start()
        deadline = time.monotonic() + _DEADLINE_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ConfigurationError("the API did not start; run with --log-level INFO to see why")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop serving and wait for the thread."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
