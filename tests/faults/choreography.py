"""Faults injected into a running cluster, one after the other and some beside, and how long each took to get over."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiokafka.errors import KafkaError

from deploy.brokers.kafka import KafkaBroker
from streams.clickhouse import connect
from tests.faults import plan as kinds
from tests.faults.clickhouse_front import Fault
from tests.faults.cluster import Cluster
from tests.faults.disks import SmallDisk
from tests.faults.observer import PROMPT_S
from tests.faults.plan import Plan
from tests.faults.processes import SESSION_MS, WorkerProcess

WELL_DEADLINE_S = 120.0
ASKED_S = 30.0
MERGES_END_S = 2.0
FROZEN_S = SESSION_MS / 1000 + 4
_CLICKHOUSE = {
    kinds.AWAY: Fault.REFUSED,
    kinds.UNAVAILABLE: Fault.UNAVAILABLE,
    kinds.HANG: Fault.HANG,
    kinds.CLOSE: Fault.CLOSE_AFTER_STORE,
}


@dataclass
class Injected:
    """A fault that was injected.

    Attributes:
        at_s: since the load began. victim: worker, or what it was about.
        reported_s: from the fault until every partition of the victim had reported an edge sent after it.
        well_s: until every partition of all reported one promptly; ``None``: not within the deadline.
        lasted_s: of a fault that goes on for a while.
    """

    kind: str
    at_s: float
    victim: str = ""
    reported_s: float | None = None
    well_s: float | None = None
    lasted_s: float | None = None
    note: str = ""


@dataclass
class Disks:
    """Small disks of this run, where they can be had."""

    clickhouse: SmallDisk | None = None
    temporary: SmallDisk | None = None
    broker: SmallDisk | None = None

    def missing(self) -> frozenset[str]:
        """Return the faults that cannot be had without them."""
        pairs = {
            kinds.CLICKHOUSE_DISK: self.clickhouse,
            kinds.TEMPORARY_DISK: self.temporary,
            kinds.BROKER_DISK: self.broker,
        }
        return frozenset(kind for kind, disk in pairs.items() if disk is None)


@dataclass
class Choreography:
    """Carries out a plan.

    Attributes:
        prompt_s: how soon each partition must report a new edge for all to be well; ``None``: whenever it does.
        well_within_s: how long it may take until all are well after a fault.
        injected: what was done, in order. problems: what should not have happened, in words.
    """

    cluster: Cluster
    plan: Plan
    disks: Disks
    seed: int
    say: Callable[[str], None]
    prompt_s: float | None = PROMPT_S
    well_within_s: float = WELL_DEADLINE_S
    injected: list[Injected] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"victims {self.seed}")

    async def run(self, seconds: float) -> None:
        """Inject until the plan is done and the time is up; kills go on until then."""
        began = time.monotonic()
        beside = asyncio.create_task(self._beside(began))
        self.cluster.tasks.append(beside)
        try:
            for kind in self.plan.in_turn:
                await self._one(kind)
            while time.monotonic() - began < seconds or not beside.done():
                await self._one(kinds.KILL)
        finally:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)

    # -- one at a time -------------------------------------------------------------------------------------------------

    async def _one(self, kind: str) -> None:
        doing = {
            kinds.KILL: self._kill,
            kinds.ZOMBIE: self._zombie,
            kinds.SCALE: self._scale,
            kinds.ROLL: self._roll,
            kinds.BROKER_STOP: self._broker_stop,
            kinds.BROKER_KILL: self._broker_kill,
            kinds.BROKER_DISK: self._broker_disk,
        }
        await doing[kind]()

    def _note(self, kind: str, victim: str = "") -> Injected:
        fault = Injected(kind, round(time.time() - self.cluster.began_s, 1), victim)
        self.injected.append(fault)
        return fault

    async def _until_well(self, fault: Injected, since_s: float, mine: set[int]) -> None:
        """Wait until all partitions report promptly again; times count from ``since_s`` (Unix)."""
        observer = self.cluster.observer
        everyone = set(observer.seen)
        end = since_s + self.well_within_s

        def look() -> bool:
            if fault.reported_s is None and observer.reported_since(since_s) >= mine:
                fault.reported_s = round(time.time() - since_s, 2)
            return observer.reported_since(since_s, self.prompt_s) >= everyone or time.time() > end

        await self.cluster.until(look, f"{fault.kind}: all is well again", 2 * self.well_within_s)
        if time.time() > end:
            silent = sorted(everyone - observer.reported_since(since_s, self.prompt_s))
            self.problems.append(
                f"{fault.kind} at {fault.at_s} s: partitions {silent} not well after {end - since_s} s"
            )
        else:
            fault.well_s = round(time.time() - since_s, 2)
        self.say(f"{fault.at_s:7.1f} s  {fault.kind} {fault.victim}: {fault.reported_s} s, well {fault.well_s} s")

    async def _owned(self, worker: WorkerProcess) -> set[int] | None:
        """Return the partitions of a worker; ``None`` if nobody can say."""
        try:
            async with asyncio.timeout(ASKED_S):
                return (await self.cluster.observer.owners()).get(worker.name, set())
        except (KafkaError, TimeoutError, OSError, ValueError):
            return None

    async def _mine(self, worker: WorkerProcess) -> set[int]:
        owned = await self._owned(worker)
        return set(self.cluster.observer.seen) if owned is None else owned  # nobody knows: all must report

    def _victim(self) -> WorkerProcess:
        return self._rng.choice([worker for worker in self.cluster.workers if worker.wanted])

    async def _kill(self) -> None:
        worker = self._victim()
        mine = await self._mine(worker)
        fault, since_s = self._note(kinds.KILL, worker.name), time.time()
        worker.kill()
        await self._until_well(fault, since_s, mine)

    async def _zombie(self) -> None:
        worker = self._victim()
        fault, since_s = self._note(kinds.ZOMBIE, worker.name), time.time()
        mine = await self._mine(worker)
        worker.freeze()
        try:
            await asyncio.sleep(FROZEN_S)
            await self._until_well(fault, since_s, mine)  # the others have taken over
        finally:
            worker.thaw()
        fault.lasted_s = round(time.time() - since_s, 1)
        await self._until_well(self._note("frozen worker goes on", worker.name), time.time(), set())

    async def _scale(self) -> None:
        worker = self.cluster.new_worker()
        fault, since_s = self._note(kinds.SCALE, worker.name), time.time()
        worker.start()
        await self.cluster.until(lambda: self._owned(worker), "the new worker has partitions", self.well_within_s)
        await self._until_well(fault, since_s, set())
        since_s = time.time()
        await self._stop(worker)
        self.cluster.workers.remove(worker)
        await self._until_well(self._note("added worker removed", worker.name), since_s, set())

    async def _roll(self) -> None:
        worker = self._victim()
        await worker.until_ready(self.well_within_s)
        fault, since_s = self._note(kinds.ROLL, worker.name), time.time()
        await self._stop(worker)
        worker.start()
        await self._until_well(fault, since_s, set())

    async def _stop(self, worker: WorkerProcess) -> None:
        began = time.monotonic()
        code = await worker.stop()
        if code != 0:
            self.problems.append(f"{worker.name} ended with {code} {time.monotonic() - began:.1f} s after SIGTERM")

    def _broker(self) -> KafkaBroker:
        assert isinstance(self.cluster.broker, KafkaBroker), "a broker of others is in the plan"
        return self.cluster.broker

    async def _broker_stop(self) -> None:
        fault, since_s = self._note(kinds.BROKER_STOP), time.time()
        await asyncio.to_thread(self._broker().stop)
        await self._broker_back(fault, since_s)

    async def _broker_kill(self) -> None:
        fault, since_s = self._note(kinds.BROKER_KILL), time.time()
        await asyncio.to_thread(self._broker().kill)
        await self._broker_back(fault, since_s)

    async def _broker_back(self, fault: Injected, since_s: float) -> None:
        await asyncio.to_thread(self._broker().start)
        fault.lasted_s = round(time.time() - since_s, 1)
        await self._until_well(fault, since_s, set(self.cluster.observer.seen))

    async def _broker_disk(self) -> None:
        disk, broker = self.disks.broker, self._broker()
        assert disk is not None
        fault, since_s = self._note(kinds.BROKER_DISK), time.time()
        disk.fill()
        try:
            # Kafka shuts itself down when its only log directory fails.
            await self.cluster.until(lambda: not broker.process.is_running(), "the broker gives up", 60)
        finally:
            disk.free()
        await asyncio.to_thread(broker.stop)
        await self._broker_back(fault, since_s)

    # -- beside --------------------------------------------------------------------------------------------------------

    async def _beside(self, began: float) -> None:
        for at, kind, seconds in self.plan.beside:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            self.say(f"{time.time() - self.cluster.began_s:7.1f} s  {kind} for {seconds:.0f} s")
            await self._go_on(kind, seconds)

    async def _go_on(self, kind: str, seconds: float) -> None:
        fault = self._note(kind)
        began = time.monotonic()
        load, front = self.cluster.load, self.cluster.front
        if kind in _CLICKHOUSE:
            before = await asyncio.to_thread(front.stats)
            await asyncio.to_thread(front.set_fault, _CLICKHOUSE[kind])
            try:
                await asyncio.sleep(seconds)
                if kind != kinds.AWAY:  # what the kernel refuses nobody counts
                    await self._until_hit(before, _CLICKHOUSE[kind])
            finally:
                await asyncio.shield(asyncio.to_thread(front.heal))
            fault.note = f"{_hits(before, await asyncio.to_thread(front.stats), _CLICKHOUSE[kind])} requests hit"
        elif kind == kinds.BEHIND:
            fault.victim = f"partition {self._rng.choice(sorted(self.cluster.observer.seen))}"
            partition = int(fault.victim.split()[-1])
            load.tell(do="behind", partition=partition, delay_s=seconds / 2, seconds=seconds)
            await asyncio.sleep(seconds)
        elif kind == kinds.FLOOD:
            tenant = self._rng.randrange(1, 10)
            fault.victim = f"tenant-{tenant:02d}"
            load.tell(do="flood", tenant=tenant, flows_per_s=30_000, seconds=seconds)
            await asyncio.sleep(seconds)
        else:
            disk = self.disks.clickhouse if kind == kinds.CLICKHOUSE_DISK else self.disks.temporary
            assert disk is not None
            is_clickhouse = kind == kinds.CLICKHOUSE_DISK
            try:
                if is_clickhouse:  # a merge cut short by a full disk left the engine with a part it could not read
                    await asyncio.to_thread(self._clickhouse, "SYSTEM STOP MERGES")
                    await asyncio.sleep(MERGES_END_S)
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    disk.fill()
                    await asyncio.sleep(1.0)
            finally:
                disk.free()
                if is_clickhouse:
                    await asyncio.shield(asyncio.to_thread(self._clickhouse, "SYSTEM START MERGES"))
        fault.lasted_s = round(time.monotonic() - began, 1)

    async def _until_hit(self, before: Any, fault: Fault) -> None:
        """Wait until a fault has met a request: while the sinks rest there may be none, and it were no fault."""
        front = self.cluster.front

        async def is_hit() -> bool:
            return _hits(before, await asyncio.to_thread(front.stats), fault) > 0

        await self.cluster.until(is_hit, f"{fault} meets a request", self.well_within_s)

    def _clickhouse(self, sql: str) -> None:
        client = connect(self.cluster.settings.clickhouse)
        try:
            client.command(sql)
        finally:
            client.close()

    def heal(self) -> None:
        """Undo what may still be broken."""
        self.cluster.front.heal()
        for disk in (self.disks.clickhouse, self.disks.temporary, self.disks.broker):
            if disk is not None:
                disk.free()
        for worker in self.cluster.workers:
            worker.thaw()


def _hits(before: Any, after: Any, fault: Fault) -> int:
    return int(after.hit.get(fault, 0) - before.hit.get(fault, 0))
