"""The law of the guard: any cuts, interleavings, repeats and restarts withhold and tell the same."""

from dataclasses import dataclass

import hypothesis.strategies as st
import msgspec
import numpy as np
from hypothesis import given, settings

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import restore, take
from schemas.drift import TELEMETRY_KINDS, DriftKind
from schemas.flow import Flow
from schemas.ids import end_position, position_of
from schemas.tenant_log import (
    ACTIVE,
    LaneConfig,
    LogRecord,
    PackedColumn,
    Progress,
    SourceLoss,
    pack_column,
)
from tests.builders import SOURCE, end_of, make_flow, make_lane, rows_of
from tests.property.test_law import settled, window_values

PARTITIONS = 2
WINDOW_MS = 10_000
LATENESS_MS = 5_000
WINDOWS = 40
HOSTS = [f"node-{number}" for number in range(6)]


@dataclass(frozen=True)
class Item:
    """A message: a flow with its sampling factor, or a report of loss."""

    time_ms: int
    flow: Flow | None
    sampling: int = 1
    host: str = ""
    tenant: str = ""
    count: int = 0


def make_input(seed: int) -> list[list[Item]]:
    """Two tenants' flows of hosts that fall silent, are resampled, lose records; edges of one host each."""
    rng = np.random.default_rng(seed)
    silences = {
        (tenant, host): (int(rng.integers(10, WINDOWS)), int(rng.integers(1, 14)))
        for tenant in ("acme", "globex")
        for host in HOSTS
        if rng.random() < 0.3
    }
    resampled_at = int(rng.integers(10, 2 * WINDOWS))
    partitions: list[list[Item]] = [[] for _ in range(PARTITIONS)]

    def put(item: Item) -> None:
        partitions[int(rng.integers(PARTITIONS))].append(item)

    for window in range(WINDOWS):
        for tenant in ("acme", "globex"):
            for host in HOSTS:
                start, length = silences.get((tenant, host), (WINDOWS, 0))
                if start <= window < start + length:
                    continue
                factor = 20 if window >= resampled_at and tenant == "acme" else 1
                for _ in range(int(rng.integers(10, 13))):
                    at = window * WINDOW_MS + int(rng.integers(WINDOW_MS))
                    named = host if host != HOSTS[0] else None
                    flow = make_flow(at, src=f"shop/on-{host}", dst="shop/db", tenant=tenant, host=named)
                    put(Item(at, flow, factor))
        for _ in range(int(rng.integers(0, 2)) if rng.random() < 0.1 else 0):
            at = window * WINDOW_MS + int(rng.integers(WINDOW_MS))
            tenant = ("acme", "globex", "")[int(rng.integers(3))]
            host = HOSTS[int(rng.integers(len(HOSTS)))]
            put(Item(at, None, host=host, tenant=tenant, count=int(rng.integers(-1, 9))))
    for items in partitions:
        items.sort(key=lambda item: item.time_ms + int(rng.integers(LATENESS_MS)))
    return partitions


def record_of_items(lane: LaneConfig, partition: int, start: int, items: list[Item]) -> LogRecord:
    """One record of consecutive messages."""
    flows = [(start + at, item) for at, item in enumerate(items) if item.flow is not None]
    losses = tuple(
        SourceLoss(position_of(start + at, 0), item.tenant, "lost", item.host, item.count, item.time_ms)
        for at, item in enumerate(items)
        if item.flow is None
    )
    rows = None
    if flows:
        rows = rows_of([i.flow for _, i in flows if i.flow is not None], [position_of(at, 0) for at, _ in flows])
        factors: PackedColumn = pack_column(np.array([item.sampling for _, item in flows], dtype=np.int64))
        rows = msgspec.structs.replace(rows, columns={**rows.columns, "sampling": factors})
    clocks = (("any", max(item.time_ms for _, item in flows)),) if flows else ()
    progress = Progress(
        SOURCE, partition, end_position(start - 1), end_position(start + len(items) - 1), clocks, ACTIVE
    )
    return LogRecord("test", 1 << 42, (progress,), lane, rows, logic=3, losses=losses)


def straight(lane: LaneConfig, sources: list[list[Item]], size: int = 150) -> tuple[Machine, Output]:
    log = []
    for start in range(0, max(map(len, sources)), size):
        for partition, items in enumerate(sources):
            if items[start : start + size]:
                log.append(record_of_items(lane, partition, start, items[start : start + size]))
    log += [end_of(lane, partition, len(items)) for partition, items in enumerate(sources)]
    machine, output = Machine(), Output()
    for offset, record in enumerate(log):
        output.extend(machine.apply(offset, record))
    return machine, output


def guard_of(machine: Machine) -> object:
    """What is known of the sources, by name of the tenant: numbers depend on who came first."""
    lane = machine.lanes["test"]
    return {lane.registry.tenants[n]: msgspec.to_builtins(state) for n, state in lane.guard.tenants.items()}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_any_cuts_repeats_and_restarts_tell_and_withhold_the_same(seed: int, data: st.DataObject) -> None:
    lane = make_lane(PARTITIONS, lateness_ms=LATENESS_MS, window_ms=WINDOW_MS)
    sources = make_input(seed)
    expected_machine, expected = straight(lane, sources)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    machine, output = Machine(), Output()
    done, offset = [0] * PARTITIONS, 0
    log: list[LogRecord] = []

    def append(record: LogRecord) -> None:
        nonlocal offset
        log.append(record)
        output.extend(machine.apply(offset, record))
        offset += 1

    while any(done[p] < len(items) for p, items in enumerate(sources)):
        # The partition that is furthest behind goes on: what is late is another matter (docs/guarantee.md).
        behind = [(items[done[p]].time_ms, p) for p, items in enumerate(sources) if done[p] < len(items)]
        partition = min(behind)[1]
        start = done[partition]
        if rng.random() < 0.2:
            start = int(rng.integers(0, start + 1))  # a new owner starts at the committed offset
        upto = max(done[partition], start) + int(rng.integers(1, 400))
        append(record_of_items(lane, partition, start, sources[partition][start:upto]))
        done[partition] = min(len(sources[partition]), upto)
        if rng.random() < 0.2:
            append(log[int(rng.integers(len(log)))])
        if rng.random() < 0.1:
            machine = restore({name: chunk for name, chunk in take(machine, everything=True) if chunk is not None})
    for partition, items in enumerate(sources):
        append(end_of(lane, partition, len(items)))
    assert [window_values(w) for w in output.windows] == [window_values(w) for w in expected.windows]
    assert settled(output.events) == settled(expected.events)
    assert guard_of(machine) == guard_of(expected_machine)
    assert not machine.lanes["test"].guard.open


def test_the_input_of_the_law_shows_what_it_is_about() -> None:
    kinds: set[DriftKind] = set()
    losing = withheld = 0
    for seed in range(8):
        _, output = straight(make_lane(PARTITIONS, lateness_ms=LATENESS_MS, window_ms=WINDOW_MS), make_input(seed))
        kinds |= {event.kind for event in output.events}
        losing += sum(window.incomplete == ("losing",) for window in output.windows)
        withheld += output.counts["withheld"]
    assert kinds >= TELEMETRY_KINDS - {DriftKind.DELIVERY_LAG}
    assert losing > 10 and withheld > 10


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_tenants_do_not_see_each_other_s_sources(seed: int) -> None:
    """What is told of a tenant is the same whether another is there or not."""
    lane = make_lane(1, lateness_ms=LATENESS_MS, window_ms=WINDOW_MS)
    both = [
        sorted((i for items in make_input(seed) for i in items if i.tenant != "" or i.flow), key=lambda i: i.time_ms)
    ]
    alone = [[i for i in both[0] if (i.flow.tenant if i.flow is not None else i.tenant) == "acme"]]
    _, together = straight(lane, both)
    _, apart = straight(lane, alone)
    mine = [event for event in together.events if event.tenant == "acme"]
    assert settled(mine) == settled(apart.events)
