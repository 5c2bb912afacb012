"""A whole fault run: start, faults under load, heal, drain, judge. Returns everything a report needs."""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError
from clickhouse_connect.driver.exceptions import ClickHouseError

from deploy.brokers.kafka import KafkaBroker
from schemas.settings import ClickHouseSettings
from streams.clickhouse import connect
from streams.sinks.faults import describe
from tests.faults.choreography import WELL_DEADLINE_S, Choreography, Disks, Injected
from tests.faults.clickhouse_front import ClickHouseFront
from tests.faults.cluster import HEAP_MB, Cluster, ForeignBroker, Size, running_cluster
from tests.faults.disks import NoSmallDisk, SmallDisk
from tests.faults.load import Ledger, read_ledger
from tests.faults.observer import PROMPT_S
from tests.faults.plan import Plan
from tests.faults.processes import STOP_S
from tests.faults.verdict import Verdict, judge

FIRST_EDGES_S = 600.0
"""Tenants learn for two windows before anything fires."""
DRAIN_S = 900.0
LEFT_TO_STORE = 200
"""Messages the sinks may be behind when workers are told to stop: idle findings go on being closed for minutes."""
_STORED = "SELECT sum(flows + other_side_flows + late_flows) FROM {db}.edges_1m FINAL"
_BY_EDGE = (
    "SELECT tenant, src, dst, port, sum(flows + other_side_flows + late_flows) FROM {db}.edges_1m FINAL "
    "GROUP BY tenant, src, dst, port"
)


@dataclass
class Outcome:
    """What a run gave.

    Attributes:
        seconds: of load. wrong_edges: of the generator's edges, those whose total in ClickHouse differs from what the
            brokers acknowledged, and edges it never made. flows, stored: totals of both.
        ended: workers that ended by themselves. silence_s: the longest time between new edges of a partition.
    """

    size: Size
    injected: list[Injected]
    problems: list[str]
    verdict: Verdict | None = None
    seconds: float = 0.0
    flows: int = 0
    stored: int = 0
    unknown: int = 0
    wrong_edges: int = 0
    drained_s: float | None = None
    silence_s: float = 0.0
    ended: list[str] = field(default_factory=list)
    memory_max: dict[str, int] = field(default_factory=dict)
    lag_max: dict[str, int] = field(default_factory=dict)
    detection_s: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clickhouse_hits: dict[str, int] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Say whether all is exact, and all was survived."""
        return (
            self.verdict is not None
            and self.verdict.is_clean
            and not self.problems
            and not self.wrong_edges
            and self.flows == self.stored
        )


def mount_disks(stack: ExitStack, folder: Path, sizes: dict[str, int], notes: list[str]) -> Disks:
    """Mount the small disks that are asked for (bytes by role), and say which cannot be had."""
    disks = Disks()
    for role, size_bytes in sizes.items():
        place = folder / "kafka" / "data" if role == "broker" else folder / role
        place.mkdir(parents=True, exist_ok=True)
        try:
            disk = stack.enter_context(SmallDisk(place, size_bytes))
        except NoSmallDisk as reason:
            notes.append(f"no full disk of {role}: {reason}")
        else:
            setattr(disks, role, disk)
    return disks


async def run(
    folder: Path,
    cache: Path,
    size: Size,
    seconds: float,
    make: Callable[[Disks], Plan],
    disk_bytes: dict[str, int],
    say: Callable[[str], None],
    bootstrap: str | None = None,
    prompt_s: float | None = PROMPT_S,
    well_within_s: float = WELL_DEADLINE_S,
) -> Outcome:
    """Run for ``seconds`` of load at least; see the module.

    Args:
        cache: of Apache Kafka's class path. make: the plan, given the disks that can be had.
        disk_bytes: sizes of small disks by role. bootstrap: a broker of others instead of one of our own.
        prompt_s, well_within_s: see `Choreography`.
    """
    outcome = Outcome(size, [], [])
    with ExitStack() as stack:
        disks = mount_disks(stack, folder, disk_bytes, outcome.notes)
        plan = make(disks)
        temporary = {"TMPDIR": str(disks.temporary.path)} if disks.temporary is not None else {}
        front = ClickHouseFront(folder / "clickhouse" / "data", directory=folder / "front")
        own = KafkaBroker(folder / "kafka", cache=cache, heap_mb=HEAP_MB)
        broker = own if bootstrap is None else ForeignBroker(bootstrap)
        async with running_cluster(folder, size, front, broker, temporary) as cluster:
            choreography = Choreography(cluster, plan, disks, size.seed, say, prompt_s, well_within_s)
            outcome.injected, outcome.problems = choreography.injected, choreography.problems
            everyone = set(cluster.observer.seen)
            took = await cluster.until(
                lambda: cluster.observer.reported_since(cluster.began_s) >= everyone,
                "all tenants learnt",
                FIRST_EDGES_S,
            )
            say(f"all partitions report new edges {took:.1f} s after the start")
            await choreography.run(seconds - took)
            await asyncio.to_thread(choreography.heal)
            await _drain(cluster, outcome, say)
            say("judging")
            outcome.verdict = await judge(cluster.settings, work=folder / "judge")
            outcome.clickhouse_hits = dict((await asyncio.to_thread(front.stats)).hit)
    return outcome


async def _drain(cluster: Cluster, outcome: Outcome, say: Callable[[str], None]) -> None:
    """End the load, wait until all of it is stored, stop the workers, and compare with what was acknowledged."""
    observer = cluster.observer
    cluster.load.tell(do="stop")
    await cluster.until(cluster.load.ledger.is_file, "the load has ended", STOP_S)
    outcome.seconds = round(time.time() - cluster.began_s, 1)
    ledger = read_ledger(cluster.load.ledger)
    outcome.flows, outcome.unknown = sum(ledger.flows), ledger.unknown
    say(f"load ended after {outcome.seconds} s and {outcome.flows} flows; draining")
    settings = cluster.settings.clickhouse
    said: dict[str, None] = {}

    async def is_drained() -> bool:
        try:
            lag = await observer.measure_lag()
        except (KafkaError, TimeoutError, OSError):
            return False  # asked again
        topics = cluster.settings.topics
        behind = lag[topics.name("drift_events")] + lag[topics.name("graph_windows")]
        if lag[cluster.settings.flows[0].topic] or behind > LEFT_TO_STORE:
            return False
        try:
            outcome.stored = (await asyncio.to_thread(_query, settings, _STORED))[0][0]
        except ClickHouseError as error:
            said[describe(error)] = None
            return False
        return outcome.stored >= outcome.flows

    try:
        outcome.drained_s = round(await cluster.until(is_drained, "all is stored", DRAIN_S), 1)
    except AssertionError as error:
        outcome.problems.append(
            f"{error}: {outcome.stored} of {outcome.flows} flows, lag {await observer.measure_lag()}"
        )
    outcome.problems += [f"ClickHouse, asked for totals: {text}" for text in said]
    say(f"drained after {outcome.drained_s} s: {outcome.stored} of {outcome.flows} flows stored; stopping workers")
    codes = await asyncio.gather(*(worker.stop(STOP_S) for worker in cluster.workers))
    outcome.problems += [f"{w.name} ended with {c}" for w, c in zip(cluster.workers, codes, strict=True) if c]
    outcome.ended = cluster.supervisor.ended
    outcome.problems += outcome.ended
    if cluster.supervisor.without_kafka:
        outcome.notes.append(f"{cluster.supervisor.without_kafka} starts of workers found no broker, and said so")
    stored = await asyncio.to_thread(_query, settings, _BY_EDGE)
    outcome.wrong_edges = wrong_edges(ledger, stored)
    outcome.memory_max, outcome.lag_max = dict(observer.memory_max), dict(observer.lag_max)
    outcome.silence_s = max(seen.longest_silence_s for seen in observer.seen.values())
    outcome.detection_s = sorted(delay for seen in observer.seen.values() for delay in seen.delay_s)


def wrong_edges(ledger: Ledger, stored: list[Any]) -> int:
    """Return how many edges have another total than the brokers acknowledged."""
    expected = {edge: flows for edge, flows in zip(map(tuple, ledger.edges), ledger.flows, strict=True) if flows}
    found = {tuple(row[:4]): row[4] for row in stored}
    return sum(expected.get(edge) != found.get(edge) for edge in expected.keys() | found.keys())


def _query(settings: ClickHouseSettings, sql: str) -> list[Any]:
    client = connect(settings)
    try:
        return list(client.query(sql.replace("{db}", settings.database)).result_rows)
    finally:
        client.close()
