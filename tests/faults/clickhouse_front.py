"""A real ClickHouse (chdb, in a process of its own) behind an HTTP server on loopback, with faults that can be switched.

``python -m tests.faults.clickhouse_front --path DIR --port P --control-port Q`` serves until SIGTERM. Port P speaks
ClickHouse's HTTP interface; port Q takes orders and tells what was hit: it stays open while P is closed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from schemas.settings import ClickHouseSettings

USER, PASSWORD = "drift", "drift"


class Fault(StrEnum):
    """What the front does to requests.

    A full disk is no mode: put ``path`` on a `tests.faults.disks.SmallDisk` and fill it; the engine itself answers 243.
    """

    NORMAL = "normal"
    REFUSED = "refused"  # the listener is closed and open connections are cut: ClickHouse is away
    UNAVAILABLE = "503"  # every request is answered 503, as a proxy before a dead server does
    HANG = "hang"  # requests are read and never answered; when healed their connections are closed
    CLOSE_AFTER_STORE = "close-after-store"  # an insert is executed, then the connection closes without an answer
    SLOW = "slow"  # every request waits ``delay_s`` first


@dataclass(frozen=True)
class FrontStats:
    """What the front has seen since it started.

    Attributes:
        requests, inserts: answered by the engine, faults included.
        hit: requests a fault really touched, by mode; for ``refused`` the connections that were cut (what the kernel
            refuses afterwards nobody can count here).
        errors: error answers of the engine by ClickHouse code.
        mode: the mode in force now.
    """

    requests: int
    inserts: int
    hit: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[int, int] = field(default_factory=dict)
    mode: str = Fault.NORMAL


class FrontClient:
    """Gives orders to a front from any process: all it takes is its control port. Calls take milliseconds."""

    def __init__(self, control_port: int) -> None:
        self.control_port = control_port

    def set_fault(
        self,
        mode: Fault | str,
        *,
        for_s: float | None = None,
        count: int | None = None,
        delay_s: float = 1.0,
    ) -> None:
        """Switch to a mode; it takes effect before this returns.

        Args:
            for_s: heal by itself after so many seconds. count: heal by itself after so many requests were hit.
            delay_s: of ``slow``.
        """
        raise NotImplementedError

    def heal(self) -> None:
        """Back to normal."""
        raise NotImplementedError

    def stats(self) -> FrontStats:
        """Return what was seen so far."""
        raise NotImplementedError


class ClickHouseFront(FrontClient):
    """A front that this process starts and ends. `kill` and `start` again is a crash and restart: same port, same data.

    Blocking (a start takes 1 to 3 s); in asyncio call it by ``asyncio.to_thread``. The process ends with this object's
    process, whatever happens. Also a context manager.

    Args:
        path: the engine's data; made if missing. directory: log and lock files, default beside ``path``.
        port, control_port: 0 takes a free one, kept for later starts.
        environment: added to the process's environment (``TMPDIR``, say).
    """

    def __init__(
        self,
        path: Path,
        *,
        directory: Path | None = None,
        port: int = 0,
        control_port: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        raise NotImplementedError

    @property
    def address(self) -> str:
        """Return ``host:port`` of the HTTP interface."""
        raise NotImplementedError

    @property
    def dsn(self) -> str:
        """Return ``http://user:password@host:port``; append ``/database`` as you like."""
        raise NotImplementedError

    def settings(self, database: str = "drift") -> ClickHouseSettings:
        """Return what a worker, the API or a checker takes as ``Settings.clickhouse``."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """Return the process's id while it runs."""
        raise NotImplementedError

    def start(self, deadline_s: float = 60.0) -> "ClickHouseFront":
        """Start the process and wait until it answers.

        Raises:
            ConfigurationError: it did not come up; the text has the end of its log.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """End it in order."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        raise NotImplementedError

    def pause(self) -> None:
        """Freeze the process (SIGSTOP)."""
        raise NotImplementedError

    def resume(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        raise NotImplementedError

    def __enter__(self) -> "ClickHouseFront":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
