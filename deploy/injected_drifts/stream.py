"""Runs traffic, with or without drifts, through the state machine as a stream worker would. Pure, seeded."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from deploy.injected_drifts.drifts import SIZES, Drift, Maker, Size
from deploy.injected_drifts.traffic import MINUTE_MS, TCP, Calls, Edges, Recording, Traffic
from models.graph.logic import LOGIC_VERSION
from models.graph.machine import Machine
from schemas.detection import DetectionConfig
from schemas.drift import DriftEvent
from schemas.flow import SIDE_CLIENT
from schemas.ids import NO_POSITION, end_position, position_of
from schemas.labelled import LabelledIncident
from schemas.tenant_log import ACTIVE, ENDED, EdgeIdentity, LaneConfig, LogRecord, Member, Progress, Rows, pack_rows

SOURCE = "injected"
FIRST_MINUTE = 28_000_000
"""Where streams begin, since the epoch; a Saturday in 2023, which nothing depends on."""
WARM_UP = 60
"""Minutes before the first drift, those in which nothing is judged among them."""
REST = (6, 10)
"""Minutes between two drifts, least and most: findings close after 5."""


@dataclass(slots=True)
class Run:
    """What a stream brought about.

    Attributes:
        windows_ms: starts of closed windows; learning_ms: of those that only taught.
    """

    incidents: list[LabelledIncident] = field(default_factory=list)
    events: list[DriftEvent] = field(default_factory=list)
    windows_ms: list[int] = field(default_factory=list)
    learning_ms: list[int] = field(default_factory=list)
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Which drifts come when, and how long the stream is (minutes)."""

    drifts: tuple[Drift, ...]
    minutes: int
    edges: Edges


def quiet(recording: Recording, minutes: int) -> Plan:
    """Return a stream of ``minutes`` after the warm-up in which nothing is injected."""
    return Plan((), WARM_UP + minutes, Edges.of(recording.edges))


def planned(recording: Recording, rounds: int, seed: int, sizes: Sequence[Size] = SIZES) -> Plan:
    """Return a stream in which each of ``sizes`` comes ``rounds`` times, in random order, one at a time.

    Raises:
        ConfigurationError: the system has too few services or busy edges.
    """
    edges = Edges.of(recording.edges)
    rng = np.random.default_rng([seed, 1])
    maker = Maker(recording, edges, rng)
    at, drifts = WARM_UP, []
    for _ in range(rounds):
        for number in rng.permutation(len(sizes)).tolist():
            size = sizes[number]
            drifts.append(size.make(maker, size, FIRST_MINUTE + at))
            at += size.lasts + 1 + int(rng.integers(REST[0], REST[1] + 1))
    return Plan(tuple(drifts), at, edges)


def run(recording: Recording, plan: Plan, seed: int, thresholds: Mapping[str, int | float] | None = None) -> Run:
    """Send a plan's stream through the state machine.

    Args:
        seed: of the traffic: the same traffic comes whatever is injected into it.
        thresholds: of detection, that differ from the usual ones.
    """
    result, machine = Run(), Machine()
    result.incidents = [incident_of(number, drift, plan.edges) for number, drift in enumerate(plan.drifts)]
    config = LaneConfig(
        "replay:injected",
        mode="replay",
        window_ms=MINUTE_MS,
        max_wait_ms=0,
        members=(Member(SOURCE, 1),),
        detection=msgspec.structs.replace(DetectionConfig(), **(thresholds or {})),
    )
    for offset, record in enumerate(_records(recording, plan, seed, config)):
        output = machine.apply(offset, record)
        result.calls += record.rows.count if record.rows is not None else 0
        result.events += output.events
        result.windows_ms += [window.start_ms for window in output.windows]
        result.learning_ms += [window.start_ms for window in output.windows if window.is_learning]
    return result


def incident_of(number: int, drift: Drift, edges: Edges) -> LabelledIncident:
    """Return a drift as what is known to have gone wrong; its kind names the size."""
    pairs = tuple(dict.fromkeys(edges.known[edge][:2] for edge in drift.edges))
    return LabelledIncident(
        f"{number}", drift.start_ms, drift.end_ms, edges=pairs, kind=kind_of(drift.kind, drift.size)
    )


def kind_of(kind: str, size: str) -> str:
    """Return how a kind of a size is called among incidents."""
    return f"{kind} {size}"


def _records(recording: Recording, plan: Plan, seed: int, config: LaneConfig) -> Iterator[LogRecord]:
    """Yield one record a minute, then the end of the input."""
    return log_records(_minutes(recording, plan, seed), plan.edges, config)


def _minutes(recording: Recording, plan: Plan, seed: int) -> Iterator[tuple[int, Calls]]:
    traffic, rng = Traffic(recording, np.random.default_rng([seed, 0])), np.random.default_rng([seed, 3])
    drifts = sorted(plan.drifts, key=lambda drift: drift.start_ms)
    for minute in range(FIRST_MINUTE, FIRST_MINUTE + plan.minutes):
        begin_ms = minute * MINUTE_MS
        calls = traffic.minute(minute)
        while drifts and drifts[0].end_ms <= begin_ms:
            drifts.pop(0)
        for drift in drifts:
            if drift.start_ms >= begin_ms + MINUTE_MS:
                break
            calls = drift.apply(calls, minute, rng)
        yield minute, calls


def log_records(minutes: Iterable[tuple[int, Calls]], edges: Edges, config: LaneConfig) -> Iterator[LogRecord]:
    """Yield a record for each minute (since the epoch, ascending) with its calls, then the end of the input."""
    after, last_ms = NO_POSITION, 0
    for number, (minute, calls) in enumerate(minutes):
        last_ms = (minute + 1) * MINUTE_MS
        clock = (("recorded", last_ms - 1),)
        progress = Progress(SOURCE, 0, after, end_position(number), clock, ACTIVE)
        after = progress.upto
        rows = _rows(calls, edges, number)
        yield LogRecord("injected", last_ms, (progress,), config, rows, logic=LOGIC_VERSION)
    yield LogRecord("injected", last_ms, (Progress(SOURCE, 0, after, after, (), ENDED),), config, logic=LOGIC_VERSION)


def _rows(calls: Calls, edges: Edges, number: int) -> Rows | None:
    count = len(calls)
    used, codes = np.unique(calls.edge, return_inverse=True)
    identities: list[EdgeIdentity] = [(SOURCE, *edges.known[edge], TCP) for edge in used.tolist()]
    columns = {
        "position": position_of(number, 0) + np.arange(count, dtype=np.int64),
        "time_ms": calls.time_ms,
        "edge": codes.astype(np.int64),
        "side": np.full(count, SIDE_CLIENT),
        "skewed": np.zeros(count, dtype=np.int64),
        "calls": np.ones(count, dtype=np.int64),
        "errors": calls.errors.astype(np.int64),
        "bytes_out": calls.bytes_out,
        "bytes_in": calls.bytes_in,
        "latency_us": calls.latency_us,
    }
    return pack_rows(identities, columns) if count else None
