"""What came of a schedule, against two judges: the recorded `tenant-log` replayed through a fresh state machine, and
plain counting of what producers pushed, which shares no code with the pipeline.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import take
from schemas.errors import DriftError, LossDetected
from schemas.graph import chunk_window, decode_chunk, encode_chunk
from schemas.ids import end_position, position_of
from schemas.ocsf import encode_event
from schemas.tenant_log import decode_record, unpack_column
from streams.sinks.rows import drift_rows, graph_rows
from tests.simulation import process as shell
from tests.simulation.broker import Log
from tests.simulation.scenario import DEAD, PARTITIONS, PROMPT, SOURCES, WINDOW_MS, Row
from tests.simulation.simulator import Era, Simulator

_EVENT_ID = "ce_id"
_COUNTED = ("flows", "calls", "late_flows", "late_calls", "other_side_flows")
Edge = tuple[str, str, str, str]
"""Lane, tenant, caller, callee."""


@dataclass(slots=True)
class Verdict:
    """Counts of what is wrong; ``raw_duplicates`` alone may be above zero, and only where there was a cause.

    Attributes:
        lost, duplicated: rows, events and windows that are missing, or that count twice by identity.
        unexpected: what no judge knows. wrong_totals: edges and windows whose numbers differ, and the balance of rows.
        missed_gaps: records that are really gone and nobody said so. false_gaps: loss said where there is none.
        stuck: what was not processed in the end.
        open_windows: most windows open at once in a partition. notes: what exactly is wrong.
    """

    seed: int
    variant: str
    effects: int
    lost: int = 0
    duplicated: int = 0
    raw_duplicates: int = 0
    unexplained: int = 0
    unexpected: int = 0
    wrong_totals: int = 0
    missed_gaps: int = 0
    false_gaps: int = 0
    stuck: int = 0
    open_windows: int = 0
    tenants: int = 0
    lanes: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Say whether nothing is wrong."""
        return not (
            self.lost
            or self.duplicated
            or self.unexplained
            or self.unexpected
            or self.wrong_totals
            or self.missed_gaps
            or self.false_gaps
            or self.stuck
        )

    def __str__(self) -> str:
        return (
            f"seed {self.seed} ({self.variant}): lost {self.lost}, duplicated {self.duplicated}, raw duplicates "
            f"{self.raw_duplicates} ({self.unexplained} unexplained), unexpected {self.unexpected}, wrong totals "
            f"{self.wrong_totals}, missed gaps {self.missed_gaps}, false gaps {self.false_gaps}, stuck {self.stuck}; "
            f"{self.effects} effects"
        )


class _Reference(NamedTuple):
    """What the pure core makes of the recorded logs."""

    events: dict[str, bytes]
    order: dict[str, list[str]]
    windows: dict[tuple[Any, ...], bytes]
    dead: set[tuple[int, int]]
    counts: Counter[str]


def judge(sim: Simulator) -> Verdict:
    """Judge a schedule that has run."""
    verdict = Verdict(sim.scenario.seed, sim.variant.name, sim.effects)
    reference = replay(sim, verdict)
    if reference is None:
        return verdict
    _check_positions(sim, verdict)
    _check_events(sim, reference, verdict)
    topic_windows = _check_windows(sim, reference, verdict)
    _check_clickhouse(sim, topic_windows, verdict)
    _check_input(sim, reference, topic_windows, verdict)
    _check_gaps(sim, verdict)
    verdict.unexplained = verdict.raw_duplicates if not sim.raw_causes else 0
    return verdict


# -- the replay --------------------------------------------------------------------------------------------------------


def replay(sim: Simulator, verdict: Verdict) -> _Reference | None:
    """Return what the pure core makes of the recorded logs, ``None`` if it cannot read them; see `lineage`."""
    output = Output()
    for partition in range(PARTITIONS):
        machine, done = _begun(sim, partition, output, verdict)
        for number, era in enumerate(sim.eras):
            if number:
                output.extend(machine.begin_incarnation())
            last = era.applied.get(partition, -1) if number < len(sim.eras) - 1 else 1 << 60
            for record in era.logs[shell.LOG, partition].records[done:]:
                if record.offset > last or record.value is None:
                    break
                try:
                    output.extend(machine.apply(record.offset, decode_record(record.value)))
                except DriftError as error:
                    verdict.false_gaps += isinstance(error, LossDetected)
                    verdict.stuck += 1
                    verdict.notes.append(f"tenant-log[{partition}] at offset {record.offset}: {error}")
                    return None
                verdict.open_windows = max(
                    verdict.open_windows, *(len(lane.windows) for lane in machine.lanes.values()), 0
                )
        for source in range(SOURCES):
            end = sim.eras[-1].logs[shell.FLOWS, source].end
            reached = machine.applied.get((sim.source(len(sim.eras) - 1), source))
            if end and reached != end_position(end - 1):
                verdict.stuck += 1
                verdict.notes.append(f"tenant-log[{partition}]: flows[{source}] ends at {end}, reached {reached}")
        owned = sim.machines().get(partition)
        is_comparable = not done and owned is not None and owned.offset == machine.offset
        if is_comparable and _state(owned) != _state(machine):
            verdict.wrong_totals += 1
            verdict.notes.append(f"tenant-log[{partition}]: its owner's state is not the replay's")
        if any(lane.windows for lane in machine.lanes.values()):
            verdict.stuck += 1
            verdict.notes.append(f"tenant-log[{partition}]: windows are still open at the end")
    events = {event.event_id: encode_event(event) for event in output.events}
    if len(events) != len(output.events):
        verdict.duplicated += len(output.events) - len(events)
        verdict.notes.append("the replay itself gives an event id twice")
    order: dict[str, list[str]] = defaultdict(list)
    for event in output.events:
        order[event.finding_id].append(event.event_id)
    windows: dict[tuple[Any, ...], bytes] = {}
    for window in output.windows:
        _, chunks = sim.cut.get(id(window), (None, None))
        for chunk in chunks or chunk_window(window):
            windows[_identity(chunk)] = encode_chunk(chunk)
    dead = {(letter.partition, letter.position) for letter in output.dead}
    return _Reference(events, order, windows, dead, output.counts)


def _state(machine: Machine | None) -> dict[str, bytes | None]:
    return {} if machine is None else dict(take(machine, everything=True))


def _begun(sim: Simulator, partition: int, output: Output, verdict: Verdict) -> tuple[Machine, int]:
    """Return the machine to replay a partition of the log with, and how many records it has applied: see `lineage`."""
    if sim.is_replayed_in_full:
        return Machine(), 0
    kept = sim.machines().get(partition)  # stays as it is: its offset says whether the partition is stuck
    end = sim.broker.logs[shell.LOG, partition].end
    usable = [one for one in sim.lineages.get(partition, ()) if one.machine is not kept or one.length == end]
    furthest = max(usable, key=lambda one: one.length, default=None)
    if furthest is None or not furthest.length:
        return Machine(), 0
    for part in furthest.outputs:
        output.extend(part)
    verdict.open_windows = max(verdict.open_windows, furthest.open_windows)
    return furthest.machine, furthest.length


def _identity(chunk: Any) -> tuple[Any, ...]:
    return (chunk.tenant, chunk.lane, chunk.generation, chunk.start_ms, chunk.shard)


# -- against the replay ------------------------------------------------------------------------------------------------


def _logs(sim: Simulator, topic: str) -> list[Log]:
    return [log for era in sim.eras for (name, _), log in sorted(era.logs.items()) if name == topic]


def _check_positions(sim: Simulator, verdict: Verdict) -> None:
    found = sim.machines()
    for partition in range(PARTITIONS):
        end = sim.broker.logs[shell.LOG, partition].end
        machine = found.get(partition)
        if machine is None or machine.offset != end - 1:
            verdict.stuck += 1
            at = "nobody" if machine is None else f"at offset {machine.offset}"
            verdict.notes.append(f"tenant-log[{partition}] ends at {end}, its owner is {at}")
    verdict.notes += [f"{what}: {error}" for what, error in sim.stops if verdict.stuck][:3]


def _check_events(sim: Simulator, reference: _Reference, verdict: Verdict) -> None:
    found: dict[str, bytes] = {}
    for log in _logs(sim, shell.EVENTS):
        for record in log.records:
            event_id = next(value.decode() for name, value in record.headers if name == _EVENT_ID)
            assert record.value is not None
            if event_id not in found:
                found[event_id] = record.value
            else:
                verdict.raw_duplicates += 1
                if found[event_id] != record.value:
                    verdict.duplicated += 1
                    verdict.notes.append(f"event {event_id} says two things")
    _compare("event", found, reference.events, verdict)
    place = {event_id: number for number, event_id in enumerate(found)}
    for finding, ids in reference.order.items():
        places = [place[event_id] for event_id in ids if event_id in place]
        if places != sorted(places):
            verdict.wrong_totals += 1
            verdict.notes.append(f"events of finding {finding} are out of order")


def _compare(what: str, found: Mapping[Any, bytes], expected: Mapping[Any, bytes], verdict: Verdict) -> None:
    """Count what is missing, different and too much."""
    for key, value in expected.items():
        if key not in found:
            verdict.lost += 1
            verdict.notes.append(f"{what} {key} is lost")
        elif found[key] != value:
            verdict.wrong_totals += 1
            verdict.notes.append(f"{what} {key} differs from the replay")
    unknown = found.keys() - expected.keys()
    verdict.unexpected += len(unknown)
    verdict.notes += [f"{what} {key} is unexpected" for key in sorted(unknown)]


def _check_windows(sim: Simulator, reference: _Reference, verdict: Verdict) -> dict[tuple[Any, ...], bytes]:
    found: dict[tuple[Any, ...], bytes] = {}
    decoded: dict[bytes, tuple[Any, ...]] = {}
    for log in _logs(sim, shell.WINDOWS):
        for record in log.records:
            value = record.value
            assert value is not None
            key = decoded.get(value)
            if key is None:
                key = decoded[value] = _identity(decode_chunk(value))
                if key in found:
                    verdict.duplicated += 1
                    verdict.notes.append(f"window {key} says two things")
            else:
                verdict.raw_duplicates += 1
            found[key] = value
    _compare("window", found, reference.windows, verdict)
    return found


def _check_clickhouse(sim: Simulator, windows: dict[tuple[Any, ...], bytes], verdict: Verdict) -> None:
    """Compare what stands in ClickHouse, repeats collapsed, with what stands on the topics."""
    events = {record.value for log in _logs(sim, shell.EVENTS) for record in log.records if record.value is not None}
    expected: set[Any] = {*events, *windows.values()}
    stored: set[Any] = {value for values in sim.store.inserted.values() for value in _hashable(values)}
    if sim.scenario.real_rows:  # each event as often as it stands on the topic, with where it stands
        placed = [(record.value, record.offset) for log in _logs(sim, shell.EVENTS) for record in log.records]
        rows = [drift_rows(value).at("", offset) for value, offset in placed if value is not None]
        rows += map(graph_rows, windows.values())
        expected = {value for part in rows for value in _hashable(part.batch.to_pylist())}
    verdict.lost += len(expected - stored)
    verdict.unexpected += len(stored - expected)
    if expected != stored:
        verdict.notes.append(f"ClickHouse lacks {len(expected - stored)} rows and has {len(stored - expected)} others")


def _hashable(values: list[Any]) -> list[Any]:
    return [value if isinstance(value, bytes) else repr(value) for value in values]


# -- against what was pushed -------------------------------------------------------------------------------------------


def _check_input(
    sim: Simulator, reference: _Reference, windows: dict[tuple[Any, ...], bytes], verdict: Verdict
) -> None:
    rows, dead, maybe_dead = _input(sim, verdict)
    found_dead = _dead_letters(sim, verdict)
    verdict.lost += len(dead - found_dead)
    verdict.unexpected += len(found_dead - dead - maybe_dead)
    if dead - found_dead or found_dead - dead - maybe_dead:
        verdict.notes.append(f"dead letters: lost {dead - found_dead}, others {found_dead - dead - maybe_dead}")
    counts = reference.counts
    folded = counts["on_time"] + counts["late"] + counts["skewed"]
    if folded != len(rows):
        verdict.wrong_totals += 1
        verdict.notes.append(f"{len(rows)} rows came in; on time, late and skewed are {dict(counts)}")
    got, incomplete = _totals(windows)
    whole = {("a", "ext:q"), ("ext:unknown", "q")}  # halves that a fault kept apart: together they are all there
    for edge in [edge for edge in got if edge[2:] in whole]:
        merged = got.setdefault((edge[0], edge[1], "a", "q"), defaultdict(Counter))
        for index, sums in got.pop(edge).items():
            merged[index] += sums
    of_edge: dict[Edge, list[Row]] = defaultdict(list)
    for row in rows:
        of_edge[row.lane, row.tenant, row.src, row.dst].append(row)
    verdict.tenants = len({edge[1] for edge in of_edge})
    verdict.lanes = len({edge[0] for edge in of_edge})
    is_plain = not (sim.scenario.pauses or sim.truncated or len(sim.eras) > 1)
    for edge in of_edge.keys() | got.keys():
        _check_edge(edge, of_edge.get(edge, []), got.get(edge, {}), incomplete if is_plain else None, verdict)


def _check_edge(
    edge: Edge,
    rows: list[Row],
    got: dict[int, Counter[str]],
    incomplete: set[tuple[str, str, int]] | None,
    verdict: Verdict,
) -> None:
    total: Counter[str] = sum(got.values(), Counter())
    flows = total["flows"] + total["late_flows"] + total["other_side_flows"]
    verdict.lost += max(0, len(rows) - flows)
    verdict.duplicated += max(0, flows - len(rows))
    clients = [row for row in rows if not row.is_server]
    paired = len(clients) < len(rows)  # one side is chosen a window: which, follows from the rows that are on time
    is_wrong = flows != len(rows)
    if not paired or (incomplete is not None and not total["late_flows"]):
        calls = sum(row.calls for row in clients)
        is_wrong |= total["calls"] + total["late_calls"] != calls
    if incomplete is not None and not is_wrong:
        windows = {row.window for row in rows if row.fate == PROMPT}
        for window in windows:
            if (edge[0], edge[1], window) in incomplete:
                continue
            mine = [row for row in rows if row.window == window and row.fate == PROMPT]
            wanted = sum(row.calls for row in mine if not row.is_server)
            there = got.get(window, Counter())
            servers = sum(row.is_server for row in mine)
            if there["calls"] & wanted != wanted or there["other_side_flows"] != servers:
                is_wrong = True
                verdict.notes.append(f"{edge} window {window}: rows that came in time are not in it: {dict(there)}")
    if is_wrong:
        verdict.wrong_totals += 1
        verdict.notes.append(f"{edge}: {len(rows)} rows came in, found {dict(total)}")


def _totals(
    windows: dict[tuple[Any, ...], bytes],
) -> tuple[dict[Edge, dict[int, Counter[str]]], set[tuple[str, str, int]]]:
    """Return the sums of each edge and window on `graph-windows`, and which windows are marked incomplete."""
    found: dict[Edge, dict[int, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    incomplete: set[tuple[str, str, int]] = set()
    for value in windows.values():
        chunk = decode_chunk(value)
        index = chunk.start_ms // WINDOW_MS
        if chunk.incomplete:
            incomplete.add((chunk.lane, chunk.tenant, index))
        if chunk.is_marker:
            continue
        columns = {name: unpack_column(chunk.columns[name], chunk.count).tolist() for name in _COUNTED}
        for number, (src, dst) in enumerate(zip(chunk.src, chunk.dst, strict=True)):
            sums = found[chunk.lane, chunk.tenant, src, dst][index]
            for name, column in columns.items():
                sums[name] += column[number]
    return found, incomplete


def _input(sim: Simulator, verdict: Verdict) -> tuple[list[Row], set[str], set[str]]:
    """Return the rows that must be counted, the keys of dead letters there must be, and of those there may be."""
    rows: list[Row] = []
    dead: set[str] = set()
    maybe_dead: set[str] = set()
    in_log: list[set[tuple[int, int]]] | None = None
    gone = 0
    for number, partition, offset, message in sim.pushed:
        is_last = number == len(sim.eras) - 1
        deleted = next((one for one in sim.truncated if one.holds(partition, offset)), None)
        is_certain = is_last and deleted is None
        # Only the first lane's topic has dead letters, and losses.
        keys = {f"{shell.FLOWS}:{partition}:{offset}:{0xFFFFF if index < 0 else index}" for index in message.dead}
        if is_certain:
            dead |= keys
            rows += [row for row in message.rows if row.fate != DEAD]
            continue
        maybe_dead |= keys
        if in_log is None:
            in_log = [_positions_in(sim.eras[n], is_last=n == len(sim.eras) - 1) for n in range(len(sim.eras))]
        there = [
            row for index, row in enumerate(message.rows) if (partition, position_of(offset, index)) in in_log[number]
        ]
        gone += len(message.rows) - len(there) if deleted is not None and deleted.was_known and is_last else 0
        rows += [row for row in there if row.fate != DEAD]
    if gone and not _loss_marks(sim):
        verdict.missed_gaps += gone
        verdict.notes.append(f"{gone} rows were deleted unread and nobody said so")
    return rows, dead, maybe_dead


def _positions_in(era: Era, *, is_last: bool) -> set[tuple[int, int]]:
    """Return (source partition, position) of all rows in the part of the log that was applied."""
    found: set[tuple[int, int]] = set()
    for partition in range(PARTITIONS):
        last = 1 << 60 if is_last else era.applied.get(partition, -1)
        for stored in era.logs[shell.LOG, partition].records:
            if stored.offset > last or stored.value is None:
                break
            record = decode_record(stored.value)
            if record.rows is not None:
                positions = unpack_column(record.rows.columns["position"], record.rows.count)
                found.update((record.progress[0].partition, position) for position in positions.tolist())
    return found


def _loss_marks(sim: Simulator) -> int:
    """Count the loss marks on the log."""
    return sum(
        decode_record(record.value).loss
        for log in _logs(sim, shell.LOG)
        for record in log.records
        if record.value is not None
    )


def _dead_letters(sim: Simulator, verdict: Verdict) -> set[str]:
    found: set[str] = set()
    for log in _logs(sim, shell.DEAD_LETTERS):
        for record in log.records:
            assert record.key is not None
            key = record.key.decode()
            verdict.raw_duplicates += key in found
            found.add(key)
    return found


def _check_gaps(sim: Simulator, verdict: Verdict) -> None:
    for what, error in sim.stops:
        if not isinstance(error, LossDetected):
            verdict.unexpected += 1
            verdict.notes.append(f"{what}: {type(error).__name__}: {error}")
        elif not sim.truncated or what == "crashes":
            verdict.false_gaps += 1
            verdict.notes.append(f"{what}: {error}")
