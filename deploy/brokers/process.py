"""A server process of ours on loopback: started, watched, paused and ended by its own pid.

A server must not outlive its users, not even when they are killed. So every user holds a shared lock on a file, and a
tiny guard process waits for the exclusive lock: the kernel grants it when the last user has let go or has died.
"""

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from schemas.errors import ConfigurationError

POLL_S = 0.05
_LOWEST_PORT = 10_000
_IANA_DYNAMIC_PORTS = 49_152  # RFC 6335, 6
_given: set[int] = set()
"""Ports that this process was told of: a server takes seconds to listen on its own, and asks for several."""
_GUARD = """
import fcntl, os, signal, sys
users, pid = sys.argv[1], int(sys.argv[2])
with open(users, "rb") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    for path in sys.argv[3:]:
        if os.path.exists(path):
            os.unlink(path)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody uses now, each time another one.

    It lies below the ports that the kernel lends to outgoing connections: a server that is down for a moment finds its
    port free when it comes back, whatever connections the machine made meanwhile.
    """
    candidates = range(_LOWEST_PORT, _lowest_port_of_connections())
    for port in random.SystemRandom().sample(candidates, min(len(candidates), 200)):
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            _given.add(port)
            return port
    while True:  # a kernel that lends nearly every port
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


def _lowest_port_of_connections() -> int:
    """Return the first port the kernel may give to a connection that names none (ip(7), ip_local_port_range)."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return _IANA_DYNAMIC_PORTS  # no Linux


def require_free_port(host: str, port: int, setting: str) -> None:
    """Refuse a port that is in use.

    Raises:
        ConfigurationError: somebody listens there, or the address is not this machine's; names ``setting``.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigurationError(
                f"cannot listen on {host}:{port} ({reason}): stop what runs there or choose another port with {setting}"
            ) from error


def accepts_connections(host: str, port: int) -> bool:
    """Say whether somebody accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def last_lines(log: Path, count: int = 3) -> str:
    """Return the end of a log on one line, for error texts."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return " | ".join([line.strip()[:400] for line in text.splitlines() if line.strip()][-count:])


def hold(users: Path) -> IO[bytes]:
    """Count this process among the users of a server until the returned file is closed."""
    file = users.open("ab")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


class ServerProcess:
    """One child process with its log, and the guard that ends it when its users are gone.

    This object is a user: keep it for as long as the server is needed.

    Args:
        name: for error texts.
        command: program and arguments.
        directory: where ``<name>.log`` and the users' lock file go; made if missing.
        environment: the whole environment of the process.
        forget: files the guard removes before it ends the server (what announces it to others).
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        forget: Sequence[Path] = (),
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = directory / f"{name}.log"
        self.users = directory / f"{name}.users"
        self._environment = dict(environment) if environment is not None else dict(os.environ)
        self._forget = list(forget)
        self._child: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._held: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Return the pid while the process runs."""
        return self._child.pid if self.is_running() and self._child else None

    def is_running(self) -> bool:
        """Say whether the process was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start the process; does not wait until it serves.

        Raises:
            ConfigurationError: the program cannot be executed here.
        """
        if self.is_running():
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._held = hold(self.users)
        try:
            with self.log.open("ab") as log:
                self._child = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.log.parent,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C is for us: we end the server in order
                )
        except OSError as error:
            self._release()
            raise ConfigurationError(f"{self.name} cannot be started: {error.strerror or error}") from error
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, str(self.users), str(self._child.pid), *map(str, self._forget)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_until(self, ready: Callable[[], bool], deadline_s: float) -> None:
        """Poll ``ready`` until it holds.

        Raises:
            ConfigurationError: the process ended or was not ready in time; the text has the end of its log.
        """
        end = time.monotonic() + deadline_s
        while True:
            if not self.is_running():
                self.kill()
                raise ConfigurationError(f"{self.name} ended while it started: {last_lines(self.log)}")
            if ready():
                return
            if time.monotonic() > end:
                self.kill()
                raise ConfigurationError(f"{self.name} was not ready after {deadline_s:g} s: {last_lines(self.log)}")
            time.sleep(POLL_S)

    def stop(self, deadline_s: float = 20) -> None:
        """End it in order (SIGTERM), by force after the deadline. Nothing happens if it does not run."""
        if self._child is not None and self.is_running():
            self.resume()
            self._child.terminate()
            try:
                self._child.wait(deadline_s)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would."""
        if self._child is not None:
            self._child.kill()  # does nothing once the process has been waited for
            self._child.wait()
        if self._guard is not None:  # before the pid can be somebody else's
            self._guard.kill()
            self._guard.wait()
            self._guard = None
        self._release()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing answers."""
        if self._child is not None and self.is_running():
            self._child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on."""
        if self._child is not None and self.is_running():
            self._child.send_signal(signal.SIGCONT)

    def leave(self) -> None:
        """Stop using it without ending it: the guard does that when the last user has left."""
        self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
