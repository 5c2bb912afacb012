"""The independent check: what is stored, against totals, windows and new-edge findings recomputed from raw records.

check.sql shares no code with the pipeline: ClickHouse itself decodes, judges and counts canonical JSON, by the words of
the design and schemas/flow.py. Not recomputed: cardinality overflow, clock jumps of over 10 minutes, statistical kinds.
"""

import argparse
import gzip
import re
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import clickhouse_connect

Difference = tuple[str, str, str, str | None, str | None]
"""Table, row, value, expected, stored; ``None`` where one side lacks it (``row``: lacks the whole row)."""


class Rules(NamedTuple):
    """How lane and topic are declared.

    ``skew_ms``: a day where no record is folded at the clock (replays). ``tenant``: of all records; empty: each names
    its own. ``tenants``: allowed ones by comma; empty: all. ``quantile_error``: largest relative error of quantiles.
    """

    lane: str = "default"
    window_ms: int = 60_000
    lateness_ms: int = 30_000
    learning_windows: int = 10
    skew_ms: int = 86_400_000
    tenant: str = ""
    tenants: str = ""
    quantile_error: float = 0.125  # one bucket, eight an octave


class Report(NamedTuple):
    """``is_exact``: lateness could be decided, so windows and findings were compared and not the input alone.

    ``counts``: records by fate (on_time, late, skewed, dead), together ``input``. ``compared``: values by table.
    """

    differences: list[Difference]
    is_exact: bool
    counts: dict[str, int]
    compared: dict[str, int]


_EDGE = "tenant, src, dst, port, protocol"
_NEWS = "tenant, kind, src, dst, port, protocol"
_KEYS = {"edges": f"window_ms, {_EDGE}", "windows": "tenant, window_ms", "findings": _NEWS, "input": _EDGE}
_KEYS |= {"dead": "partition, offset, index"}
_NEWEST = """FINAL WHERE lane = {lane:String} AND (tenant, generation) IN
    (SELECT tenant, max(generation) FROM $db.windows WHERE lane = {lane:String} GROUP BY tenant)"""


def check(
    client: Any, database: str, raw: Iterable[Sequence[Any]], rules: Rules, dead: Iterable[Sequence[Any]] | None = None
) -> Report:
    """Recompute from ``raw`` what ``database`` must hold of the lane's newest generation, and name what differs.

    ``client`` may create and drop a scratch database. ``raw``: messages as (source partition, offset, bytes, batch:
    which record of the log it came in, counted over all partitions from 1, 0: not known; LogAppendTime or the clock it
    was folded by in ms, 0: none). ``dead``: (source partition, offset, index, reason) of all dead letters.
    """
    words = {"s": f"independent_{uuid.uuid4().hex[:12]}", "db": database, "edge": _EDGE, "news": _NEWS}
    words["newest"] = Template(_NEWEST).substitute(words)
    blocks = re.split(r"^-- (\w+: \w+)\n", Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"), flags=re.M)
    queries = dict(zip(blocks[1::2], blocks[2::2], strict=True))

    def ask(sql: str) -> list[Any]:
        text = Template(sql).substitute(words)
        return list(client.query(text, rules._asdict() if "{" in text else None, {"join_use_nulls": 1}).result_rows)

    def load(table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        ask(f"CREATE TABLE $s.{table} ({columns}) ENGINE = Memory")
        if data := list(rows):
            client.insert(table, data, database=words["s"])

    ask("CREATE DATABASE $s")
    try:
        load("raw", "partition UInt32, offset UInt64, value String, batch UInt64, clock_ms Int64", raw)
        load("given", "partition UInt32, offset UInt64, `index` UInt64, reason String", dead or ())
        load("facts", "is_raw Bool, what LowCardinality(String), subject String, name String, value String", ())
        for name, sql in queries.items():
            if name.startswith("table: "):
                ask(f"CREATE TABLE $s.{name[7:]} ENGINE = Memory AS {sql}")
        is_exact = bool(ask(queries["query: is_exact"])[0][0])
        for what, key in _KEYS.items():
            if dead is None if what == "dead" else not is_exact and what != "input":
                continue
            columns = ask(f"SELECT name FROM system.columns WHERE database = '$s' AND table = '{what}'")
            names = [name for (name,) in columns if name not in key.split(", ") and not name.startswith("_")]
            pairs = ", ".join(f"('{name}', ifNull(toString({name}), 'unknown'))" for name in names)
            for is_raw, source in ((True, f"SELECT * FROM $s.{what}"), (False, queries[f"stored: {what}"])):
                fact = f"SELECT {is_raw}, '{what}', toString(tuple({key})), fact.1, fact.2 FROM ({source})"
                ask(f"INSERT INTO $s.facts {fact} ARRAY JOIN [{pairs}] AS fact")
        compared = dict(ask("SELECT what, count() FROM $s.facts WHERE is_raw GROUP BY what"))
        counts = {"on_time": 0, "late": 0, "skewed": 0} | dict(ask(queries["query: fates"]))
        differences = [tuple(row) for row in ask(queries["query: differences"])]
    finally:
        ask("DROP DATABASE $s")
    return Report(differences, is_exact, counts | {"input": sum(counts.values())}, compared)


def messages_of(path: str) -> list[tuple[int, int, bytes, int, int]]:
    """Read canonical JSON lines, gzipped if the name says so, as messages of partition 0."""
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:  # noqa: PTH123
        return [(0, offset, line.rstrip(b"\n"), 0, 0) for offset, line in enumerate(file)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True, help="canonical JSON lines")
    parser.add_argument("--chdb", required=True, help="folder of the embedded ClickHouse, not open elsewhere")
    parser.add_argument("--database", default="drift")
    for option, default in Rules._field_defaults.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=type(default), default=default)
    given = vars(parser.parse_args())
    store = clickhouse_connect.get_client(interface="chdb", path=given.pop("chdb"))
    report = check(store, given.pop("database"), messages_of(given.pop("raw")), Rules(**given))
    print(*report.differences, report.counts, report.compared, f"exact: {report.is_exact}", sep="\n")
    sys.exit(1 if report.differences or not report.is_exact else 0)
