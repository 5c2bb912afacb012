"""A worker's HTTP endpoint: /metrics, /livez and /readyz. Does I/O: a thread that listens and reads the worker's state.

It answers from a thread of its own, so that an event loop that hangs can be told from one that is busy.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from schemas.errors import ConfigurationError

LIVE_S = 60.0
"""An event loop that has not turned for so long hangs; the longest piece of honest work takes a few seconds."""


class State(StrEnum):
    """What a worker is doing, as /readyz says it."""

    STARTING = "starting"
    REBALANCING = "rebalancing"
    RECOVERING = "recovering"
    CATCHING_UP = "catching-up"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


READY_STATES = frozenset({State.READY, State.CATCHING_UP})
"""A worker that catches up does all it can: a deployment need not wait for it."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """A state and what it is about, a sentence each."""

    state: State
    reasons: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Say whether the worker owns what it was given and works on it."""
        return self.state in READY_STATES


class HealthServer:
    """Serves until closed.

    Args:
        readiness: asked at every request. beat_s: when the event loop turned last, by the monotonic clock.

    Raises:
        ConfigurationError: the address cannot be used.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        readiness: Callable[[], Readiness],
        beat_s: Callable[[], float],
    ) -> None:
        class Handler(_Handler):
            ask = _Questions(registry, readiness, beat_s)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        try:
            self._server = Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigurationError(
                f"{host}:{port} cannot be used ({reason}): choose another worker.metrics_port or worker.metrics_host"
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


@dataclass(frozen=True, slots=True)
class _Questions:
    registry: CollectorRegistry
    readiness: Callable[[], Readiness]
    beat_s: Callable[[], float]


class _Handler(BaseHTTPRequestHandler):
    ask: _Questions
    server_version = "secureguard-drift"
    sys_version = ""
    timeout = 10

    def do_GET(self) -> None:
        """Answer one of three paths."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, content_type, encode(self.ask.registry))
        elif path == "/livez":
            silent_s = time.monotonic() - self.ask.beat_s()
            if silent_s > LIVE_S:
                self._problem("Not alive", "hanging", (f"the event loop has not turned for {silent_s:.0f} s",))
            else:
                self._json(200, {"state": "alive"})
        elif path == "/readyz":
            found = self.ask.readiness()
            if found.is_ready:
                self._json(200, {"state": found.state, "reasons": found.reasons})
            else:
                self._problem("Not ready", found.state, found.reasons)
        else:
            self._problem("Not found", "", ("there are /metrics, /livez and /readyz",), status=404)

    def _problem(self, title: str, state: str, reasons: tuple[str, ...], status: int = 503) -> None:
        body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
        if reasons:
            body["detail"] = "; ".join(reasons)
        if state:
            body |= {"state": state, "reasons": reasons}
        self._json(status, body, "application/problem+json")

    def _json(self, status: int, body: dict[str, Any], content_type: str = "application/json") -> None:
        self._answer(status, content_type, json.dumps(body).encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing: a probe every few seconds is no news."""
