"""Decides at the end of a run, from the outside, whether anything was lost, doubled, invented or miscounted.

Two judges. The replay: `tenant-log`, partition by partition from its start, through a fresh state machine; what it says
must stand on `drift-events`, `graph-windows`, `flows-dead-letter` and in ClickHouse. The independent check
(tests/independent): totals, windows and findings recomputed by SQL from the raw messages of the source topics.
"""

import asyncio
import multiprocessing
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clickhouse_connect
import numpy as np
from aiokafka import TopicPartition
from clickhouse_connect.driver import Client

from schemas.clickhouse_dsn import connect_arguments, database_of, is_embedded
from schemas.dead_letter import DeadLetter, Reason
from schemas.detection import DetectionConfig
from schemas.ids import split_position
from schemas.settings import ClickHouseSettings, FlowTopic, LaneSettings, Settings
from schemas.tables import DRIFT_EVENTS, EDGES_1M, WINDOWS, TableDeclaration
from streams.dead_letters import decode_dead_letter
from streams.kafka_clients import make_admin, make_consumer
from streams.migrate import migrate
from streams.topics import partition_counts
from tests.faults.clickhouse_front import ClickHouseFront
from tests.faults.verdict_replay import Ends, Replayed, Tally, judge_chain, read_partition, replay_partition
from tests.independent.at_scale import Cover, ScaledCheck
from tests.independent.check import Rules

PROCESSES = 2
BLOCK_BYTES = 24 << 20
EXPECTED = "expected"
KEPT_DAYS = 3_650
WINDOWS_LOOKED_INTO = 20
QUERY_S = 3_600
_COUNTED = ("lost", "duplicated_by_id", "raw_duplicates", "unexpected", "wrong_totals", "missed_gaps", "false_gaps")
_OF_GRAPH = {Reason.STATE_MACHINE, Reason.FUTURE}


@dataclass(frozen=True)
class Verdict:
    """What was found. Everything but ``raw_duplicates`` must be 0.

    Attributes:
        lost: expected and nowhere: events (by id) on the topic or in ClickHouse, chunks and rows of windows, dead
            letters, input records that are in no total.
        duplicated_by_id: an id that stands for two contents (event, chunk, dead letter), or twice in ClickHouse.
        raw_duplicates: identical repeats on the topics, as zombies leave them. Allowed, counted.
        unexpected: events, chunks, rows or dead letters that the input does not account for.
        wrong_totals: rows (edge and window, window, finding, edge over all windows) with a number that differs.
        missed_gaps: ranges of source offsets that hold messages, are in no record of a `tenant-log` partition, and that
            no loss mark tells of.
        false_gaps: places where the chain breaks though no message is missing, and windows marked ``loss`` or
            ``incarnation`` without a mark in the log.
        counts: what was looked at: flows, on_time, late, skewed, dead, events, windows, chunks, edge_rows, log_records,
            tail_records (of `tenant-log` that no worker had to apply), incomplete windows by reason.
        by_place: the same counts as above, one by one: place to name to number.
        details: the first differences, in words. notes: how things were compared, what was sampled.
        seconds: how long each phase took.
    """

    lost: int = 0
    duplicated_by_id: int = 0
    raw_duplicates: int = 0
    unexpected: int = 0
    wrong_totals: int = 0
    missed_gaps: int = 0
    false_gaps: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    by_place: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    details: Sequence[str] = ()
    notes: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Say whether nothing was lost, doubled by id, unexpected or wrong."""
        return not any(getattr(self, name) for name in _COUNTED if name != "raw_duplicates")

    @property
    def line(self) -> str:
        """Return the counts as one line."""
        return ", ".join(f"{getattr(self, name)} {name.replace('_', ' ')}" for name in _COUNTED)


@dataclass
class _Run:
    """A run that is judged: where its topics end, what its group had committed, and what was found."""

    settings: Settings
    partitions: int
    ends: dict[TopicPartition, int]
    committed: dict[TopicPartition, int]
    tally: Tally = field(default_factory=Tally)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def ends_of(self, partition: int) -> Ends:
        """Return where the replay of one partition stops."""
        roles = ("tenant_log", "drift_events", "graph_windows")
        log, events, windows = (TopicPartition(self.settings.topics.name(role), partition) for role in roles)
        return Ends(
            log=self.ends[log],
            committed=self.committed[log],
            events=self.ends[events],
            windows=self.ends[windows],
            events_stored=self.committed[events],
            windows_stored=self.committed[windows],
        )

    def of(self, topic: str, values: Mapping[TopicPartition, int]) -> dict[int, int]:
        """Return a topic's values by partition."""
        return {tp.partition: value for tp, value in values.items() if tp.topic == topic}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Note how long a phase took."""
        began = time.monotonic()
        yield
        self.seconds[phase] = round(time.monotonic() - began, 2)

    def verdict(self) -> Verdict:
        """Add everything up."""
        by_place: dict[str, dict[str, int]] = defaultdict(dict)
        for (place, name), count in sorted(self.tally.counts.items()):
            by_place[place][name] = count
        sums = {name: sum(found.get(name, 0) for found in by_place.values()) for name in _COUNTED}
        return Verdict(
            **sums,
            counts=dict(sorted(self.counts.items())),
            by_place=dict(by_place),
            details=tuple(self.tally.details),
            notes=tuple(self.notes),
            seconds=dict(self.seconds),
        )


async def judge(settings: Settings, *, work: Path, sample_tenants: Sequence[str] | None = None) -> Verdict:
    """Judge what stands on the topics and in ClickHouse after a run. No worker may run, and nobody may produce.

    Every record that workers had committed (their group's offset on `tenant-log`) must have come out; what lies behind
    may have. ClickHouse must hold what the sinks had committed. The source topics, `tenant-log` and the results must
    still hold everything from their start: no retention may have struck.

    Args:
        settings: of the workers; ``clickhouse`` is where their sinks wrote (a front, or a chdb folder that no other
            process has open).
        work: folder for scratch data, on a disk with room for a third of the raw input; removed what was made there.
        sample_tenants: compare windows and findings by SQL for these tenants alone; ``None``: for all. Totals per edge,
            dead letters and the conservation of input are always compared for all.
    """
    settings = Settings(**{name: getattr(settings, name) for name in Settings.model_fields})  # one that can be pickled
    run = await _look(settings)
    folder = work.absolute() / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    scratch = ClickHouseFront(folder / "clickhouse", directory=folder / "log")
    try:
        await asyncio.to_thread(scratch.start)
        place = scratch.settings(EXPECTED)
        client = await asyncio.to_thread(_open, place)
        await asyncio.to_thread(migrate, client, EXPECTED, KEPT_DAYS)
        with run.timed("replay"):
            replayed = await _replay(run, place)
        with run.timed("dead letters"):
            letters = await _dead_letters(run)
            _judge_refused(run, replayed, letters)
        with run.timed("clickhouse"):
            await asyncio.to_thread(_judge_clickhouse, run, replayed, client)
        with run.timed("independent check"):
            await _judge_independently(run, replayed, letters, client, sample_tenants)
        client.close()
    finally:
        await asyncio.to_thread(scratch.stop)
        shutil.rmtree(folder, ignore_errors=True)
    return run.verdict()


def _open(settings: ClickHouseSettings) -> Client:
    """Open a client that waits for long queries, as the product's do not."""
    patience = {} if is_embedded(settings) else {"send_receive_timeout": QUERY_S}
    client: Client = clickhouse_connect.get_client(**(connect_arguments(settings) | patience))
    return client


async def _look(settings: Settings) -> _Run:
    names = [settings.topics.name(role) for role in ("tenant_log", "drift_events", "graph_windows", "dead_letter")]
    names += [flow.topic for flow in settings.flows]
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        counts = await partition_counts(admin, names)
    finally:
        await admin.close()
    found = [TopicPartition(name, number) for name in names for number in range(counts[name])]
    consumer = make_consumer(settings.kafka, group_id=settings.worker.group)
    await consumer.start()
    try:
        ends = await consumer.end_offsets(found)
        committed = {tp: await consumer.committed(tp) or 0 for tp in found}
    finally:
        await consumer.stop()
    return _Run(settings, counts[names[0]], ends, committed)


async def _replay(run: _Run, scratch: ClickHouseSettings) -> list[Replayed]:
    """Replay all partitions, a few at a time, the longest first."""
    loop = asyncio.get_running_loop()
    order = sorted(range(run.partitions), key=lambda partition: -run.ends_of(partition).log)
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [
            loop.run_in_executor(pool, replay_partition, run.settings, partition, run.ends_of(partition), scratch)
            for partition in order
        ]
        replayed = list(await asyncio.gather(*tasks))
    for part in replayed:
        run.tally.merge(part.tally)
        run.counts.update(part.counts)
    return sorted(replayed, key=lambda part: part.partition)


# -- dead letters ------------------------------------------------------------------------------------------------------

Letters = dict[tuple[str, int, int, int], DeadLetter]


async def _dead_letters(run: _Run) -> Letters:
    """Return the dead letters by coordinate; a repetition must be the same."""
    topic, place = run.settings.topics.name("dead_letter"), "flows-dead-letter"
    letters: Letters = {}
    for partition, end in run.of(topic, run.ends).items():
        async for offset, value, record in read_partition(run.settings, topic, partition, end):
            try:
                letter = decode_dead_letter(value, record.headers)
            except Exception as error:  # whatever it is, it is no dead letter
                run.tally.add(place, "unexpected", f"[{partition}] offset {offset} cannot be read: {error}")
                continue
            key = (letter.topic, letter.partition, letter.offset, letter.index)
            before = letters.setdefault(key, letter)
            if before is letter:
                continue
            if before == letter:
                run.tally.add(place, "raw_duplicates")
            else:
                run.tally.add(place, "duplicated_by_id", f"two contents of {letter.key}")
    run.counts["dead_letters"] = len(letters)
    return letters


def _judge_refused(run: _Run, replayed: Sequence[Replayed], letters: Letters) -> None:
    """Rows that the state machine refused must be dead letters, and no others may say so; nothing is unstorable."""
    refused = set()
    for part in replayed:
        for source, partition, position, _ in part.dead:
            refused.add((source.partition("#")[0], partition, *split_position(position)))
    for key in refused - letters.keys():
        run.tally.add("flows-dead-letter", "lost", f"row {key} was refused by the state machine")
    for key, letter in letters.items():
        if letter.reason in (Reason.UNSTORABLE, Reason.CORRUPT_BATCH):
            run.tally.add("flows-dead-letter", "unexpected", f"{letter.key}: {letter.reason}: {letter.detail}")
        elif letter.reason is Reason.STATE_MACHINE and key not in refused:
            run.tally.add("flows-dead-letter", "unexpected", f"{letter.key}: the replay folds this row")


# -- ClickHouse --------------------------------------------------------------------------------------------------------

_WINDOW = "tenant, lane, generation, toUnixTimestamp64Milli(window_start)"


_PLACE = {"incarnation", "position"}
"""Where a message stands on its topic: the replay of the log cannot say that. tests/simulation compares it."""


def _hash(table: TableDeclaration) -> str:
    return f"cityHash64(toString(tuple({', '.join(name for name in table.sent_columns if name not in _PLACE)})))"


def _judge_clickhouse(run: _Run, replayed: Sequence[Replayed], expected: Client) -> None:
    """Compare the tables with what the replay says; windows and events that may be missing are left out."""
    stored = _open(run.settings.clickhouse)
    sides = ((expected, EXPECTED), (stored, database_of(run.settings.clickhouse)))
    windows: set[Any] = set().union(*(part.pending_windows | part.tail_windows for part in replayed))
    events: set[Any] = set().union(*(part.pending_events | part.tail_events for part in replayed))
    run.counts["windows_not_compared_in_clickhouse"] = len(windows)
    run.counts["events_not_compared_in_clickhouse"] = len(events)
    try:
        sql = f"SELECT event_id, {_hash(DRIFT_EVENTS)} FROM {{db}}.drift_events FINAL"
        _compare_rows(run, "clickhouse drift_events", _both(sides, sql, 1), events)
        sql = f"SELECT {_WINDOW}, {_hash(WINDOWS)} FROM {{db}}.windows FINAL"
        _compare_rows(run, "clickhouse windows", _both(sides, sql, 4), windows)
        sql = f"SELECT {_WINDOW}, count(), sum({_hash(EDGES_1M)}) FROM {{db}}.edges_1m FINAL GROUP BY ALL"
        left, right = _both(sides, sql, 4)
        differing = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
        differing = [key for key in differing if key not in windows]
        for key in differing[:WINDOWS_LOOKED_INTO]:
            where = "tenant = {t:String} AND lane = {l:String} AND generation = {g:UInt64}"
            where += " AND toUnixTimestamp64Milli(window_start) = {w:Int64}"
            sql = f"SELECT src, dst, port, protocol, {_hash(EDGES_1M)} FROM {{db}}.edges_1m FINAL WHERE {where}"
            _compare_rows(
                run, "clickhouse edges_1m", _both(sides, sql, 4, dict(zip("tlgw", key, strict=True))), set(), key
            )
        for key in differing[WINDOWS_LOOKED_INTO:]:  # by rows would take long, and there is enough to see
            expected_rows, stored_rows = (side.get(key, (0,))[0] for side in (left, right))
            run.tally.add("clickhouse edges_1m", "lost", count=max(0, expected_rows - stored_rows))
            run.tally.add("clickhouse edges_1m", "unexpected", count=max(0, stored_rows - expected_rows))
            run.tally.add("clickhouse edges_1m", "wrong_totals", count=int(expected_rows == stored_rows))
    finally:
        stored.close()


def _both(
    sides: Sequence[tuple[Client, str]], sql: str, key_columns: int, parameters: dict[str, Any] | None = None
) -> list[dict[Any, tuple[Any, ...]]]:
    """Run a query on both sides; rows by their first columns."""
    found = []
    for client, database in sides:
        rows = client.query(sql.replace("{db}", database), parameters=parameters).result_rows
        found.append(
            {row[0] if key_columns == 1 else tuple(row[:key_columns]): tuple(row[key_columns:]) for row in rows}
        )
    return found


def _compare_rows(
    run: _Run, place: str, sides: Sequence[dict[Any, tuple[Any, ...]]], left_out: set[Any], within: Any = ""
) -> None:
    expected, stored = sides
    for key, value in expected.items():
        if key not in stored:
            run.tally.add(place, "lost", f"{within} {key}", count=int(key not in left_out))
        elif stored[key] != value:
            run.tally.add(place, "wrong_totals", f"{within} {key} has another content than the log says")
    for key in stored.keys() - expected.keys() - left_out:
        run.tally.add(place, "unexpected", f"{within} {key}")


# -- the independent check ---------------------------------------------------------------------------------------------


async def _judge_independently(
    run: _Run, replayed: Sequence[Replayed], letters: Letters, client: Client, tenants: Sequence[str] | None
) -> None:
    """Recompute from the raw messages: one lane after the other, each with its one source topic."""
    lanes = {lane.name: lane for lane in run.settings.lanes}
    topics = Counter(flow.lane for flow in run.settings.flows)
    for flow in run.settings.flows:
        if topics[flow.lane] > 1 or flow.tenant_from.partition(":")[0] not in ("field", "fixed"):
            run.notes.append(f"{flow.topic}: not checked by SQL (several topics in its lane, or another tenant rule)")
            continue
        await _check_topic(run, replayed, letters, client, tenants, flow, lanes[flow.lane])


def _rules_of(flow: FlowTopic, lane: LaneSettings) -> Rules:
    kind, _, name = flow.tenant_from.partition(":")
    return Rules(
        lane=lane.name,
        window_ms=lane.window_ms,
        lateness_ms=lane.lateness_ms,
        learning_windows=int(lane.detection.get("learning_windows", DetectionConfig().learning_windows)),
        skew_ms=lane.skew_ms,
        tenant=name if kind == "fixed" else "",
        tenants="" if flow.tenants == ("*",) else ",".join(flow.tenants),
    )


async def _check_topic(
    run: _Run,
    replayed: Sequence[Replayed],
    letters: Letters,
    client: Client,
    tenants: Sequence[str] | None,
    flow: FlowTopic,
    lane: LaneSettings,
) -> None:
    check = await asyncio.to_thread(ScaledCheck, client, EXPECTED, _rules_of(flow, lane), run.partitions, PROCESSES)
    offsets: dict[int, list[int]] = {number: [] for number in run.of(flow.topic, run.ends)}
    with run.timed("raw messages"):
        tasks: set[asyncio.Task[None]] = set()
        async for block in _blocks(run, flow.topic):
            for partition, offset, *_ in block:
                offsets[partition].append(offset)
            if len(tasks) >= PROCESSES:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            tasks.add(asyncio.create_task(asyncio.to_thread(check.add, block)))
        await asyncio.gather(*tasks)
    committed = run.of(flow.topic, run.committed)
    present = {number: np.array(sorted(found), dtype=np.int64) for number, found in offsets.items()}
    run.counts["messages"] += sum(map(len, offsets.values()))
    covers: list[Cover] = []
    for part in replayed:
        sources = {interval[0] for interval in part.intervals if interval[0].partition("#")[0] == flow.topic}
        for source in sources or {flow.topic}:
            judge_chain(run.tally, part, source, present, committed, flow.start == "earliest")
        covers += [Cover(part.partition, *interval[1:]) for interval in part.intervals if interval[0] in sources]
    closed = {part.partition: part.closed.get(lane.name, 0) for part in replayed}
    dead = [
        (p, o, i, x.reason.value)
        for (t, p, o, i), x in letters.items()
        if t == flow.topic and x.reason not in (Reason.STATE_MACHINE, Reason.UNSTORABLE, Reason.CORRUPT_BATCH)
    ]
    with run.timed("sums and comparison"):
        found = await asyncio.to_thread(check.compare, covers, closed, dead, committed, tenants)
    place = f"sql {lane.name}"
    run.tally.add(place, "lost", f"{found.uncovered} records are in no record of tenant-log", found.uncovered)
    for name, counts in (("lost", found.lost), ("unexpected", found.unexpected), ("wrong_totals", found.wrong)):
        for what, count in counts.items():
            run.tally.add(f"{place} {what}", name, count=count)
    run.tally.details += [f"{place}: {difference}"[:600] for difference in found.report.differences[:60]]
    for name, count in found.report.counts.items():
        run.counts[f"sql_{name}"] += count
    run.counts["flows"] += found.report.counts["input"] - found.report.counts.get("dead", 0)
    run.counts["sql_open"] += found.open
    for what, count in found.report.compared.items():
        run.counts[f"sql_values_{what}"] += count
    for fate in ("on_time", "late", "skewed"):
        said = run.counts[fate]
        if len(run.settings.flows) == 1 and not found.open and said != found.report.counts[fate]:
            what = f"{fate}: the replay says {said}, SQL {found.report.counts[fate]}"
            run.tally.add(place, "wrong_totals", what)
    run.notes.append(
        f"{flow.topic}: windows and findings of {'all' if tenants is None else len(tenants)} tenants, totals per edge, "
        "dead letters and fates of all were recomputed by SQL from the raw messages; which window a record met as the "
        "first open one is taken from the replay"
    )


async def _blocks(run: _Run, topic: str) -> AsyncIterator[list[tuple[int, int, bytes, int]]]:
    """Yield the messages of a topic in blocks: (partition, offset, bytes, LogAppendTime in ms or 0)."""
    ends = {TopicPartition(topic, number): end for number, end in run.of(topic, run.ends).items()}
    consumer = make_consumer(run.settings.kafka, max_partition_fetch_bytes=4 << 20)
    await consumer.start()
    try:
        consumer.assign(list(ends))
        await consumer.seek_to_beginning(*ends)
        left = {tp for tp, end in ends.items() if await consumer.position(tp) < end}
        block: list[tuple[int, int, bytes, int]] = []
        size = 0
        while left:
            for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                for record in records:
                    if record.offset < ends[tp]:
                        append_ms = record.timestamp if record.timestamp_type == 1 else 0
                        block.append((tp.partition, record.offset, record.value or b"", append_ms))
                        size += len(record.value or b"")
                if await consumer.position(tp) >= ends[tp]:
                    left.discard(tp)
                if size >= BLOCK_BYTES:
                    yield block
                    block, size = [], 0
        if block:
            yield block
    finally:
        await consumer.stop()
