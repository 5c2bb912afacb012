"""A real ClickHouse (chdb, in a process of its own) behind HTTP on loopback, with faults that can be switched.

``python -m tests.faults.clickhouse_front --path DIR --port P --control-port Q`` serves until SIGTERM. Port P speaks
ClickHouse's HTTP interface (tests/faults/clickhouse_http.py); port Q takes orders and tells what was hit: it stays open
while P is closed.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from aiohttp import web
from pydantic import SecretStr

from deploy.brokers.process import ServerProcess, free_port
from schemas.settings import ClickHouseSettings
from tests.faults.clickhouse_http import PASSWORD, USER, Engine, authentication_error, read_call, write_answer

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
MAX_BODY_BYTES = 1 << 30
_CONTROL_TIMEOUT_S = 120.0


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
        requests, inserts: that came, whatever became of them.
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
        """Switch to a mode; it is in force when this returns, and replaces the one before.

        Args:
            for_s: heal by itself after so many seconds. count: heal by itself after so many requests were hit.
            delay_s: of ``slow``.
        """
        self._ask("fault", {"mode": Fault(mode), "for_s": for_s, "count": count, "delay_s": delay_s})

    def heal(self) -> None:
        """Back to normal; requests that hang are cut."""
        self.set_fault(Fault.NORMAL)

    def stats(self) -> FrontStats:
        """Return what was seen so far."""
        said = self._ask("stats", None)
        said["errors"] = {int(code): count for code, count in said["errors"].items()}
        return FrontStats(**said)

    def _ask(self, what: str, order: Mapping[str, Any] | None) -> dict[str, Any]:
        data = None if order is None else json.dumps(order).encode()
        url = f"http://{HOST}:{self.control_port}/{what}"
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=_CONTROL_TIMEOUT_S) as answer:
            said: dict[str, Any] = json.load(answer)
            return said


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
        super().__init__(control_port or free_port(HOST))
        self.path = path.absolute()
        self.port = port or free_port(HOST)
        command = [sys.executable, "-m", "tests.faults.clickhouse_front", "--path", str(self.path)]
        command += ["--port", str(self.port), "--control-port", str(self.control_port)]
        self.process = ServerProcess(
            "clickhouse-front",
            command,
            (directory or self.path.with_name(f"{self.path.name}-front")).absolute(),
            environment={**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT)},
        )

    @property
    def address(self) -> str:
        """Return ``host:port`` of the HTTP interface."""
        return f"{HOST}:{self.port}"

    @property
    def dsn(self) -> str:
        """Return ``http://user:password@host:port``; append ``/database`` as you like."""
        return f"http://{USER}:{PASSWORD}@{self.address}"

    def settings(self, database: str = "drift") -> ClickHouseSettings:
        """Return what a worker, the API or a checker takes as ``Settings.clickhouse``."""
        return ClickHouseSettings(dsn=SecretStr(self.dsn), database=database)

    @property
    def pid(self) -> int | None:
        """Return the process's id while it runs."""
        return self.process.pid

    def start(self, deadline_s: float = 300.0) -> "ClickHouseFront":
        """Start the process and wait until it answers.

        Raises:
            ConfigurationError: it did not come up; the text has the end of its log.
        """
        self.process.start()
        self.process.wait_until(self._answers, deadline_s)
        return self

    def _answers(self) -> bool:
        try:
            self.stats()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it in order."""
        self.process.stop()

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self.process.kill()

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): its ports take connections, nobody answers."""
        self.process.pause()

    def resume(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self.process.resume()

    def __enter__(self) -> "ClickHouseFront":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


# -- inside the front's process ----------------------------------------------------------------------------------------


class Server:
    """Both listeners, and the fault in force. Lives in one event loop; the engine works in threads."""

    def __init__(self, engine: Engine, port: int, control_port: int) -> None:
        self._engine = engine
        self._port = port
        self._control_port = control_port
        self._mode = Fault.NORMAL
        self._delay_s = 0.0
        self._left: int | None = None
        self._healing: asyncio.TimerHandle | None = None
        self._healed = asyncio.Event()
        self._switching = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts: Counter[str] = Counter()
        self._hit: Counter[str] = Counter()
        self._errors: Counter[int] = Counter()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop``."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=1.0)
        orders = web.Application()
        orders.router.add_post("/fault", self._take_order)
        orders.router.add_get("/stats", self._tell)
        control = web.AppRunner(orders, access_log=None)
        await self._runner.setup()
        await control.setup()
        try:
            await self._listen()
            await web.TCPSite(control, HOST, self._control_port).start()
            await stop.wait()
        finally:
            self._healed.set()
            await control.cleanup()
            await self._runner.cleanup()

    async def _listen(self) -> None:
        assert self._runner is not None
        self._site = web.TCPSite(self._runner, HOST, self._port, reuse_address=True)
        await self._site.start()

    async def _go_away(self) -> None:
        assert self._runner is not None
        if self._site is not None:
            site, self._site = self._site, None
            await site.stop()
        server = self._runner.server
        for connection in list(server.connections if server is not None else ()):
            if connection.transport is not None:
                self._hit[Fault.REFUSED] += 1
                connection.transport.abort()

    async def _take_order(self, request: web.Request) -> web.Response:
        order = await request.json()
        await self._switch(Fault(order["mode"]), order.get("for_s"), order.get("count"), order.get("delay_s", 0.0))
        return web.json_response({})

    async def _switch(
        self, mode: Fault, for_s: float | None = None, count: int | None = None, delay_s: float = 0.0
    ) -> None:
        async with self._switching:
            if self._healing is not None:
                self._healing.cancel()
                self._healing = None
            self._healed.set()
            self._healed = asyncio.Event()
            self._mode, self._left, self._delay_s = mode, count, delay_s
            if mode is Fault.REFUSED:
                await self._go_away()
            elif self._site is None:
                await self._listen()
            if for_s is not None:
                loop = asyncio.get_running_loop()
                self._healing = loop.call_later(for_s, self._heal)

    def _heal(self) -> None:
        healing = asyncio.get_running_loop().create_task(self._switch(Fault.NORMAL))
        self._tasks.add(healing)
        healing.add_done_callback(self._tasks.discard)

    async def _tell(self, _: web.Request) -> web.Response:
        counts = {"requests": self._counts["requests"], "inserts": self._counts["inserts"]}
        async with self._switching:  # a switch under way ends first: a mode that is told is in force
            mode = self._mode
        return web.json_response({**counts, "hit": self._hit, "errors": self._errors, "mode": mode})

    def _take_fault(self, is_insert: bool) -> Fault:
        """Return the fault that hits this request, and count it."""
        mode = self._mode
        if mode in (Fault.NORMAL, Fault.REFUSED) or (mode is Fault.CLOSE_AFTER_STORE and not is_insert):
            return Fault.NORMAL
        self._hit[mode] += 1
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self._mode = Fault.NORMAL  # those that hang already go on hanging until somebody heals
        return mode

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self._counts["requests"] += 1
        if request.path == "/ping":
            call = None
        else:
            call = await read_call(request)
            self._counts["inserts"] += call.is_insert
        fault = self._take_fault(call is not None and call.is_insert)
        healed = self._healed
        if fault is Fault.UNAVAILABLE:
            return web.Response(status=503, text="Service Unavailable\n")
        if fault is Fault.HANG:
            await healed.wait()
            return _cut(request)
        if fault is Fault.SLOW:
            await asyncio.sleep(self._delay_s)
        if call is None:
            return web.Response(text="Ok.\n")
        refused = authentication_error(request)
        answer = refused if refused is not None else await asyncio.to_thread(self._engine.execute, call)
        if answer.error_code is not None:
            self._errors[answer.error_code] += 1
        if fault is Fault.CLOSE_AFTER_STORE:
            return _cut(request)
        return await write_answer(request, call, answer, self._engine.timezone)


def _cut(request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # goes nowhere


async def _serve(path: Path, port: int, control_port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine = Engine(path)
    try:
        await Server(engine, port, control_port).run(stop)
    finally:
        engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="the engine's data")
    parser.add_argument("--port", type=int, required=True, help="of ClickHouse's HTTP interface")
    parser.add_argument("--control-port", type=int, required=True, help="of the orders")
    given = parser.parse_args()
    asyncio.run(_serve(given.path, given.port, given.control_port))
