"""The independent check for tens of millions of flows: raw messages in blocks, decoded once, judged in slices.

The SQL is check.sql's. Three things differ. Messages are decoded block by block into a MergeTree table. Edges are
summed and compared by ranges of windows. And where the watermark stood when a record of the log was folded, and what
clock it was folded by, is given (``Cover``) rather than recomputed: in a live lane idle and silent sources move it.
"""

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import pyarrow as pa
from clickhouse_connect.driver import Client

from schemas.ids import partition_of
from tests.independent.check import _EDGE, _KEYS, _NEWEST, _NEWS, Difference, Report, Rules

ROWS_PER_SLICE = 3_000_000
MAX_DIFFERENCES = 200
_END_MS = 4_102_444_800_000  # 2100
_QUANTILES = ("p50_us", "p95_us", "p99_us")
_EMPTY = {
    "raw": "partition UInt32, offset UInt64, value String, batch UInt64, clock_ms Int64",
    "given": "partition UInt32, offset UInt64, `index` UInt64, reason String",
    "facts": "is_raw Bool, what LowCardinality(String), subject String, name String, value String",
    "covers": "target UInt32, partition UInt32, after Int64, upto Int64, floor Int64, clock_ms Int64",
}
# Not covered by the log, of a window that was still open at the end, or more than a day ahead of the log's clock: kept
# apart, counted, and in no total.
_TIMED = """
SELECT * EXCEPT (reason, skewed, time_ms, batch, is_array, size),
    clock > 0 AND at > clock + {skew_ms:Int64} OR was_skewed AS skewed, if(clock > 0 AND skewed, clock, at) AS time_ms,
    intDiv(time_ms, {window_ms:Int64}) AS own, own < floor AS late,
    greatest(own, floor) * {window_ms:Int64} AS window_ms,
    multiIf(position > upto, 'uncovered', clock > 0 AND at > clock + 86400000, 'future',
        window_ms >= transform(target, [$targets], [$closed], 0) * {window_ms:Int64}, 'open', '') AS fate
FROM (SELECT j.*, j.time_ms AS at, j.skewed AS was_skewed, ifNull(c.floor, 0) AS floor, ifNull(c.clock_ms, 0) AS clock,
        ifNull(c.upto, -1) AS upto
    FROM (SELECT *, toInt64(bitShiftLeft(offset, 20) + record) AS position,
            transform(tenant, [$tenants], [$tenant_targets], toUInt32(0)) AS target FROM $s.$judged) AS j
    ASOF LEFT JOIN $s.covers AS c ON j.target = c.target AND j.partition = c.partition AND j.position > c.after)
"""


class Cover(NamedTuple):
    """What one record of the log newly covers, as its partition ``target`` applied it.

    ``after``, ``upto``: positions of the source partition. ``floor``: the first window that was open then (index).
    ``clock_ms``: what records ahead of it were folded by; 0: their own time or the message's, see ``ScaledCheck.add``.
    """

    target: int
    partition: int
    after: int
    upto: int
    floor: int
    clock_ms: int


class ScaledReport(NamedTuple):
    """``report``: as of `check`. ``lost``, ``unexpected``, ``wrong``: rows that differ, by table.

    ``uncovered``: records that no record of the log covers. ``open``: records of windows that had not closed.
    """

    report: Report
    lost: Mapping[str, int]
    unexpected: Mapping[str, int]
    wrong: Mapping[str, int]
    uncovered: int
    open: int


class ScaledCheck:
    """One lane and one source topic. Feed it with `add` from up to ``feeders`` threads, then `compare`.

    Args:
        client: makes and drops databases named ``independent_...``; shared by threads.
        expected: database that holds what should be stored, in the product's tables.
        rules: with ``skew_ms`` of the lane. targets: partitions of `tenant-log`.
    """

    def __init__(self, client: Client, expected: str, rules: Rules, targets: int, feeders: int = 2) -> None:
        self._client = client
        self._rules = rules
        self._targets = targets
        self._main = "independent_scaled"
        self._words = {"db": expected, "edge": _EDGE, "news": _NEWS, "s": self._main}
        self._words["newest"] = Template(_NEWEST).substitute(self._words)
        text = Path(__file__).with_name("check.sql").read_text(encoding="utf-8")
        blocks = re.split(r"^-- (\w+: \w+)\n", text, flags=re.M)
        self._queries = dict(zip(blocks[1::2], blocks[2::2], strict=True))
        self._idle = [f"{self._main}_{number}" for number in range(feeders)]
        self._databases = [self._main, *self._idle]
        self._lock = threading.Lock()
        for feeder in self._databases:
            self._ask(f"DROP DATABASE IF EXISTS {feeder}")
            self._ask(f"CREATE DATABASE {feeder}")
        for feeder in self._idle:
            self._ask(f"CREATE TABLE {feeder}.raw ({_EMPTY['raw']}) ENGINE = Memory")
            for name in ("records", "judged"):
                view = Template(self._queries[f"table: {name}"]).safe_substitute(s=feeder)
                self._ask(f"CREATE VIEW {feeder}.{name}_of_block AS {view.replace('.records', '.records_of_block')}")
            self._ask(f"CREATE TABLE {feeder}.judged ENGINE = Memory EMPTY AS SELECT * FROM {feeder}.judged_of_block")
            dead = Template(self._queries["table: dead"]).safe_substitute(s=feeder)
            self._ask(f"CREATE VIEW {feeder}.dead_of_block AS {dead}")
        first = self._idle[0]
        engine = "MergeTree ORDER BY (tenant, src, dst)"
        self._ask(f"CREATE TABLE $s.judged ENGINE = {engine} EMPTY AS SELECT * FROM {first}.judged")
        self._ask(f"CREATE TABLE $s.dead ENGINE = Memory EMPTY AS SELECT * FROM {first}.dead_of_block")
        for name in ("given", "facts", "covers"):
            self._ask(f"CREATE TABLE $s.{name} ({_EMPTY[name]}) ENGINE = Memory")

    # -- talking to the engine -----------------------------------------------------------------------------------------

    def _filled(self, sql: str, **words: str) -> str:
        """Fill in names and, for views cannot have them, the rules as literals."""
        text = Template(sql).safe_substitute(self._words | words)
        rules = self._rules._asdict()

        def literal(match: re.Match[str]) -> str:
            value = rules[match.group(1)]
            return "'" + value.replace("'", "\\'") + "'" if isinstance(value, str) else f"to{match.group(2)}({value})"

        return re.sub(r"\{(\w+):(\w+)\}", literal, text).replace("$$", "$")

    def _ask(self, sql: str, **words: str) -> list[Any]:
        settings = {
            "join_use_nulls": 1,
            "max_bytes_before_external_group_by": 3 << 30,
            "max_bytes_before_external_sort": 3 << 30,
        }
        text = self._filled(sql, **words)
        if text.startswith("SELECT"):
            return list(self._client.query(text, settings=settings).result_rows)
        self._client.command(text, settings=settings)
        return []

    # -- feeding -------------------------------------------------------------------------------------------------------

    def add(self, messages: Sequence[tuple[int, int, bytes, int]]) -> None:
        """Decode a block of whole messages: (source partition, offset, bytes, LogAppendTime in ms or 0). Blocking."""
        with self._lock:
            feeder = self._idle.pop()
        try:
            table = pa.table(
                {
                    "partition": pa.array([message[0] for message in messages], pa.uint32()),
                    "offset": pa.array([message[1] for message in messages], pa.uint64()),
                    "value": pa.array([message[2] for message in messages], pa.binary()),
                    "batch": pa.array([0] * len(messages), pa.uint64()),
                    "clock_ms": pa.array([message[3] for message in messages], pa.int64()),
                }
            )
            self._client.insert_arrow("raw", table, database=feeder)
            self._ask(f"INSERT INTO {feeder}.judged SELECT * FROM {feeder}.judged_of_block")
            self._ask(f"INSERT INTO $s.judged SELECT * FROM {feeder}.judged WHERE reason = ''")
            self._ask(f"INSERT INTO $s.dead SELECT * FROM {feeder}.dead_of_block")
            self._ask(f"TRUNCATE TABLE {feeder}.raw")
            self._ask(f"TRUNCATE TABLE {feeder}.judged")
        finally:
            with self._lock:
                self._idle.append(feeder)

    # -- comparing -----------------------------------------------------------------------------------------------------

    def compare(
        self,
        covers: Iterable[Cover],
        closed: Mapping[int, int],
        dead: Iterable[tuple[int, int, int, str]],
        committed: Mapping[int, int],
        tenants: Sequence[str] | None = None,
    ) -> ScaledReport:
        """Compare with the expected tables, and drop the scratch databases.

        Args:
            covers: of all partitions of the log. closed: by target, the first window (index) that was open at the end.
            dead: (source partition, offset, index, reason) of the dead letters that there are.
            committed: offset up to which each source partition had to be taken in.
            tenants: whose windows and findings to compare; ``None``: everybody's. Totals are always compared.
        """
        try:
            self._load("covers", covers)
            self._load("given", dead)
            self._place(closed)
            slices = self._slices()
            self._sum(slices, tenants)
            self._ask(f"CREATE VIEW $s.seen AS {self._queries['table: seen']}")
            for name in ("windows", "first_of_edge", "first_of_pair", "first_of_service", "findings", "input"):
                self._ask(f"CREATE TABLE $s.{name} ENGINE = Memory AS {self._queries[f'table: {name}']}")
            self._suspect(slices, tenants)
            return self._report(committed, tenants)
        finally:
            for database in self._databases:
                self._ask(f"DROP DATABASE {database}")

    def _load(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        if data := [list(row) for row in rows]:
            self._client.insert(table, data, database=self._main)

    def _place(self, closed: Mapping[int, int]) -> None:
        """Give every record its window, or its fate."""
        names = [row[0] for row in self._ask("SELECT DISTINCT tenant FROM $s.judged")]
        quoted = ["'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'" for name in names] or ["''"]
        targets = [f"toUInt32({partition_of(name, self._targets)})" for name in names] or ["toUInt32(0)"]
        words = {
            "tenants": ", ".join(quoted),
            "tenant_targets": ", ".join(targets),
            "targets": ", ".join(f"toUInt32({target})" for target in range(self._targets)),
            "closed": ", ".join(f"toInt64({closed.get(target, 0)})" for target in range(self._targets)),
            "judged": "judged",
        }
        timed = Template(_TIMED).safe_substitute(words)
        self._ask(f"CREATE TABLE $s.fated ENGINE = MergeTree ORDER BY (window_ms, $edge) AS {timed}")
        self._ask("INSERT INTO $s.dead SELECT partition, offset, record, 'future' FROM $s.fated WHERE fate = 'future'")
        self._show("1")

    def _show(self, condition: str) -> None:
        """Let `timed` and `placed` be those records alone."""
        timed = f"SELECT * EXCEPT fate FROM $s.fated WHERE fate = '' AND {condition}"
        self._ask(f"CREATE OR REPLACE VIEW $s.timed AS {timed}")
        self._ask(f"CREATE OR REPLACE VIEW $s.placed AS {self._queries['table: placed']}")

    def _slices(self) -> list[tuple[int, int]]:
        """Return ranges of ``window_ms``, half-open, that cut the records into parts of a few million."""
        rows = self._ask("SELECT window_ms, count() FROM $s.timed GROUP BY window_ms ORDER BY window_ms")
        bounds, held = [0], 0
        for window_ms, count in rows:
            if held and held + count > ROWS_PER_SLICE:
                bounds.append(window_ms)
                held = 0
            held += count
        bounds.append(_END_MS)
        return list(pairwise(bounds))

    def _of(self, tenants: Sequence[str] | None) -> str:
        if tenants is None:
            return "1"
        names = ", ".join("'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'" for name in tenants)
        return f"tenant IN ({names})"

    def _sum(self, slices: Sequence[tuple[int, int]], tenants: Sequence[str] | None) -> None:
        edges = self._queries["table: edges"]
        self._ask(f"CREATE TABLE $s.edges ENGINE = MergeTree ORDER BY (window_ms, $edge) EMPTY AS {edges}")
        for low, high in slices:
            self._show(f"window_ms >= {low} AND window_ms < {high} AND {self._of(tenants)}")
            self._ask(f"INSERT INTO $s.edges {edges}")
        self._show("1")

    def _columns(self, table: str) -> list[str]:
        key = _KEYS[table].split(", ")
        sql = f"SELECT name FROM system.columns WHERE database = '$s' AND table = '{table}'"
        return [name for (name,) in self._ask(sql) if name not in key and not name.startswith("_")]

    def _suspect(self, slices: Sequence[tuple[int, int]], tenants: Sequence[str] | None) -> None:
        """Find the edges that differ without a fact for each of their values."""
        key = _KEYS["edges"]
        plain = [name for name in self._columns("edges") if name not in _QUANTILES]
        digest = ", ".join(f"ifNull(toInt64({name}), -1)" for name in plain)
        quantiles = ", ".join(f"toInt64(ifNull({name}, -1)) AS {name}" for name in _QUANTILES)
        far = " OR ".join(
            f"abs(max({name}) - min({name})) > 1 + {{quantile_error:Float64}} * sumIf({name}, is_raw)"
            for name in _QUANTILES
        )
        self._ask("CREATE TABLE $s.suspects (of_raw UInt8, of_stored UInt8, key String) ENGINE = Memory")
        for low, high in slices:
            # Of what is stored by its own column, which is part of its key.
            first, last = (f"fromUnixTimestamp64Milli(toInt64({bound}), 'UTC')" for bound in (low, high))
            within = f"window_start >= {first} AND window_start < {last}"
            sides = " UNION ALL ".join(
                f"SELECT {key}, {is_raw} AS is_raw, cityHash64({digest}) AS hash, {quantiles} FROM ({source}) "
                f"WHERE {condition} AND {self._of(tenants)}"
                for is_raw, source, condition in (
                    (1, "SELECT * FROM $s.edges", f"window_ms >= {low} AND window_ms < {high}"),
                    (0, self._queries["stored: edges"], within),
                )
            )
            self._ask(
                f"INSERT INTO $s.suspects SELECT max(is_raw), max(NOT is_raw), toString(tuple({key})) FROM ({sides}) "
                f"GROUP BY {key} HAVING count() != 2 OR uniqExact(hash) != 1 OR {far}"
            )

    def _report(self, committed: Mapping[int, int], tenants: Sequence[str] | None) -> ScaledReport:
        for what, key in _KEYS.items():
            pairs = ", ".join(f"('{name}', ifNull(toString({name}), 'unknown'))" for name in self._columns(what))
            where = f"WHERE {self._of(tenants)}" if what in ("edges", "windows", "findings") else "WHERE 1"
            if what == "edges":
                where += f" AND toString(tuple({key})) IN (SELECT key FROM $s.suspects LIMIT {MAX_DIFFERENCES})"
            for is_raw, source in ((1, f"SELECT * FROM $s.{what}"), (0, self._queries[f"stored: {what}"])):
                fact = f"SELECT {is_raw}, '{what}', toString(tuple({key})), fact.1, fact.2 FROM ({source})"
                self._ask(f"INSERT INTO $s.facts {fact} ARRAY JOIN [{pairs}] AS fact {where}")
        differences: list[Difference] = [tuple(row) for row in self._ask(self._queries["query: differences"])]
        by_kind: dict[str, dict[str, set[str]]] = {"lost": {}, "unexpected": {}, "wrong": {}}
        for what, subject, name, expected, _ in differences:
            kind = "wrong" if name != "row" else "unexpected" if expected is None else "lost"
            by_kind[kind].setdefault(what, set()).add(subject)
        counts = {kind: {what: len(found) for what, found in of.items()} for kind, of in by_kind.items()}
        suspects = "SELECT countIf(of_raw AND NOT of_stored), countIf(of_stored AND NOT of_raw), "
        edges = self._ask(suspects + "countIf(of_raw AND of_stored) FROM $s.suspects")[0]
        for kind, count in zip(("lost", "unexpected", "wrong"), edges, strict=True):
            counts[kind]["edges"] = int(count)
        compared = dict(self._ask("SELECT what, count() FROM $s.facts WHERE is_raw GROUP BY what"))
        compared["edges"] = self._ask("SELECT count() FROM $s.edges")[0][0] * len(self._columns("edges"))
        fates = {"on_time": 0, "late": 0, "skewed": 0} | dict(self._ask(self._queries["query: fates"]))
        partitions = ", ".join(f"toUInt32({partition})" for partition in committed) or "toUInt32(0)"
        ends = ", ".join(f"toUInt64({offset})" for offset in committed.values()) or "toUInt64(0)"
        due = f"offset < transform(partition, [{partitions}], [{ends}], toUInt64(0))"
        apart = dict(self._ask(f"SELECT fate, count() FROM $s.fated WHERE {due} OR fate = 'open' GROUP BY fate"))
        report = Report(differences[:MAX_DIFFERENCES], True, fates | {"input": sum(fates.values())}, compared)
        return ScaledReport(
            report,
            counts["lost"],
            counts["unexpected"],
            counts["wrong"],
            int(apart.get("uncovered", 0)),
            int(apart.get("open", 0)),
        )
