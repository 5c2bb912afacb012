"""The load of the fault tests: a process that writes flows and knows exactly what was acknowledged.

    python -m tests.faults.load --bootstrap HOST:PORT --topic flows --ledger FILE --seed N ...

Commands come as lines of JSON on stdin: ``{"do": "behind", "partition": 3, "delay_s": 20, "seconds": 40}``,
``{"do": "flood", "tenant": 2, "flows_per_s": 30000, "seconds": 10}``, ``{"do": "rate", "flows_per_s": 5000}``,
``{"do": "stop"}``. What was acknowledged so far goes to stdout once a second, the ledger to its file at the end.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer

from tests.faults.population import Edge, ProbeTenant, make_edges, make_probes

TICK_S = 0.25
PROBE_EVERY_S = 0.5
MALFORMED_EVERY_S = 2.0
PENDING_MESSAGES = 200
CLOCKS_MS = (0, 0, 0, 40, -60, 700, -2_500, 3_000, -9_000, 15_000)
"""What the clocks of reporting hosts are off by: as usual, so that rows are late, and beyond the lane's skew."""
_FOREVER_MS = 900_000  # of brokers that are away: a batch that gave up could be in the log or not
_BROKEN = b'{"tenant":"tenant-00","src":"a","dst":"b","time_ms":"soon"}'


class Ledger(msgspec.Struct):
    """What the brokers acknowledged.

    Attributes:
        edges: as (tenant, src, dst, port). flows: acknowledged flows of each.
        dead: (partition, offset, index) of each malformed record, -1 for a whole message.
        unknown: messages whose fate is not known; 0 unless the producer gave up.
        first_ms, last_ms: event times sent.
    """

    edges: list[tuple[str, str, str, int]]
    flows: list[int]
    dead: list[tuple[int, int, int]]
    messages: int
    unknown: int
    first_ms: int
    last_ms: int
    late_hosts: int = sum(offset < 0 for offset in CLOCKS_MS)


@dataclass
class _Message:
    """A message of one source partition. ``edges``: indexes into the ledger. ``dead``: index of its broken record."""

    partition: int
    value: bytes
    edges: Any
    dead: int | None = None


@dataclass
class _Flood:
    tenant: int
    flows_per_s: float
    until_s: float


@dataclass
class _Behind:
    delay_s: float
    until_s: float
    held: deque[tuple[float, _Message]] = field(default_factory=deque)


class Load:
    """Makes messages by the clock and sends them; one event loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._rng = random.Random(options.seed)
        self._numbers = np.random.default_rng(options.seed)
        self._partitions: int = options.partitions
        self._rate: float = options.rate
        self._topic: str = options.topic
        self._ledger_path: Path = options.ledger
        self._edges: list[Edge] = make_edges(options.seed, options.edges, options.tenants)
        self._regular = len(self._edges)
        self._probes: list[ProbeTenant] = make_probes(options.seed, options.log_partitions)
        self._probed = -2  # all services of the probe tenants are known before their first new edge
        for probe in self._probes:
            self._edges += probe.usual + probe.unusual
        self._indexes = {edge: index for index, edge in enumerate(self._edges)}
        self._prefixes = [edge.prefix for edge in self._edges]
        self._tenants = sorted({edge.tenant for edge in self._edges[: self._regular]})
        # Every edge comes round, most flows are of few edges.
        self._round = self._numbers.permutation(self._regular)
        self._next = 0
        self._popular = self._numbers.permutation(self._regular)
        self._flows = np.zeros(len(self._edges), dtype=np.int64)
        self._dead: list[tuple[int, int, int]] = []
        self._messages = self._unknown = 0
        self._first_ms, self._last_ms = 1 << 62, 0
        self._floods: list[_Flood] = []
        self._behind: dict[int, _Behind] = {}
        self._pending: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._producer = AIOKafkaProducer(
            bootstrap_servers=options.bootstrap,
            acks="all",
            enable_idempotence=True,
            compression_type="snappy",
            max_batch_size=512 * 1024,
            max_request_size=2 * 1024 * 1024,
            request_timeout_ms=_FOREVER_MS,
        )

    # -- making --------------------------------------------------------------------------------------------------------

    def _lines(self, edges: Any) -> bytes:
        """Return a message of flows as one host reports them."""
        host = self._rng.randrange(len(CLOCKS_MS))
        now_ms = int(time.time() * 1000) + CLOCKS_MS[host]
        self._first_ms, self._last_ms = min(self._first_ms, now_ms), max(self._last_ms, now_ms)
        some = self._rng.randrange(1 << 16)
        prefixes, end = self._prefixes, f',"host":"node-{host}"}}'
        return "\n".join(
            f'{prefixes[edge]}{now_ms},"bytes_out":{(some + edge * 7919) % 10_007},'
            f'"latency_us":{200 + (some + n * 31) % 3_001},"errors":{(some + n) % 97 == 0:d}{end}'
            for n, edge in enumerate(edges.tolist())
        ).encode()

    def _choose(self, count: int) -> Any:
        """Return edges of ``count`` flows: half in turn, half by popularity."""
        in_turn = self._round[np.arange(self._next, self._next + count // 2) % self._regular]
        self._next = (self._next + count // 2) % self._regular
        popular = (self._regular ** self._numbers.random(count - count // 2)).astype(np.int64) - 1
        return np.concatenate([in_turn, self._popular[np.clip(popular, 0, self._regular - 1)]])

    def _regular_messages(self, seconds: float, now_s: float) -> list[_Message]:
        chosen = [self._choose(int(self._rate * seconds))]
        for flood in self._floods:
            mine = [n for n, e in enumerate(self._edges[: self._regular]) if e.tenant == self._tenants[flood.tenant]]
            chosen.append(self._numbers.choice(mine, int(flood.flows_per_s * seconds)))
        self._floods = [flood for flood in self._floods if flood.until_s > now_s]
        edges = self._numbers.permutation(np.concatenate(chosen))
        parts = np.array_split(edges, self._partitions)
        return [_Message(p, self._lines(part), part) for p, part in enumerate(parts) if len(part)]

    def _probe_messages(self) -> list[_Message]:
        """Return a message for each probe tenant: a flow of an edge never seen, and some that keep services known."""
        found = []
        for probe in self._probes:
            fresh = probe.unusual[self._probed] if 0 <= self._probed < len(probe.unusual) else None
            usual = probe.usual[self._probed % 2 :: 2]
            edges = np.array([self._indexes[edge] for edge in ([fresh] if fresh else []) + usual])
            partition = (probe.partition + self._probed) % self._partitions
            now_ms = int(time.time() * 1000)
            value = "\n".join(f'{self._prefixes[edge]}{now_ms},"host":"probe-{partition}"}}' for edge in edges)
            found.append(_Message(partition, value.encode(), edges))
        self._probed += 1
        return found

    def _malformed(self) -> _Message:
        partition = self._rng.randrange(self._partitions)
        if self._rng.random() < 0.3:
            return _Message(partition, b" ", np.array([], dtype=np.int64), dead=-1)
        edges = self._choose(20)
        lines = self._lines(edges).split(b"\n")
        at = self._rng.randrange(len(lines) + 1)
        return _Message(partition, b"\n".join([*lines[:at], _BROKEN, *lines[at:]]), edges, dead=at)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def _send(self, message: _Message) -> None:
        """Send and enter what the brokers acknowledged."""
        try:
            sent = await (await self._producer.send(self._topic, message.value, partition=message.partition))
        except Exception as error:
            self._unknown += 1
            print(f"load: fate of a message not known: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return
        np.add.at(self._flows, message.edges, 1)
        self._messages += 1
        if message.dead is not None:
            self._dead.append((message.partition, sent.offset, message.dead))

    async def _submit(self, messages: list[_Message], now_s: float) -> None:
        for message in messages:
            behind = self._behind.get(message.partition)
            if behind is not None:
                behind.held.append((now_s + behind.delay_s, message))
                continue
            while len(self._pending) >= PENDING_MESSAGES:
                await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._send(message))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

    async def _release(self, now_s: float, *, all_of_it: bool = False) -> None:
        for partition, behind in list(self._behind.items()):
            is_over = all_of_it or now_s >= behind.until_s
            due = []
            while behind.held and (is_over or behind.held[0][0] <= now_s):
                due.append(behind.held.popleft()[1])
            held = self._behind.pop(partition)
            await self._submit(due, now_s)
            if not is_over:
                self._behind[partition] = held

    def take(self, command: dict[str, Any]) -> None:
        """Obey a command."""
        now_s = time.monotonic()
        if command["do"] == "stop":
            self._stopping.set()
        elif command["do"] == "rate":
            self._rate = command["flows_per_s"]
        elif command["do"] == "flood":
            self._floods.append(_Flood(command["tenant"], command["flows_per_s"], now_s + command["seconds"]))
        elif command["do"] == "behind":
            self._behind[command["partition"]] = _Behind(command["delay_s"], now_s + command["seconds"])

    async def run(self) -> None:
        """Send until told to stop; write the ledger."""
        await self._producer.start()
        reader = asyncio.create_task(self._read_commands())
        last_s = said_s = probed_s = broken_s = time.monotonic()
        while not self._stopping.is_set():
            now_s = time.monotonic()
            await self._release(now_s)
            await self._submit(self._regular_messages(min(now_s - last_s, 2 * TICK_S), now_s), now_s)
            last_s = now_s
            if now_s - probed_s >= PROBE_EVERY_S:
                probed_s = now_s
                await self._submit(self._probe_messages(), now_s)
            if now_s - broken_s >= MALFORMED_EVERY_S:
                broken_s = now_s
                await self._submit([self._malformed()], now_s)
            if now_s - said_s >= 1.0:
                said_s = now_s
                self._say()
            await asyncio.sleep(max(0.01, TICK_S - (time.monotonic() - now_s)))
        await self._release(time.monotonic(), all_of_it=True)
        while self._pending:
            await asyncio.wait(self._pending)
        await self._producer.stop()
        reader.cancel()
        self._write()
        self._say()

    def _say(self) -> None:
        print(json.dumps({"flows": int(self._flows.sum()), "pending": len(self._pending)}), flush=True)

    def _write(self) -> None:
        ledger = Ledger(
            [(edge.tenant, edge.src, edge.dst, edge.port) for edge in self._edges],
            self._flows.tolist(),
            sorted(self._dead),
            self._messages,
            self._unknown,
            self._first_ms,
            self._last_ms,
        )
        fresh = self._ledger_path.with_suffix(".tmp")
        fresh.write_bytes(msgspec.json.encode(ledger))
        fresh.replace(self._ledger_path)

    async def _read_commands(self) -> None:
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := await lines.readline():
            self.take(json.loads(line))
        self._stopping.set()  # whoever started us has gone


def read_ledger(path: Path) -> Ledger:
    """Read what a generator left."""
    return msgspec.json.decode(path.read_bytes(), type=Ledger)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=20_000, help="flows a second")
    parser.add_argument("--edges", type=int, default=50_000)
    parser.add_argument("--tenants", type=int, default=40)
    parser.add_argument("--partitions", type=int, default=12, help="of the source topic")
    parser.add_argument("--log-partitions", type=int, default=12, help="of tenant-log: a probe tenant for each")
    return parser.parse_args()


async def _main() -> None:
    await Load(_arguments()).run()


if __name__ == "__main__":
    asyncio.run(_main())
