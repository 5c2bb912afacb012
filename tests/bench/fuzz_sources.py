"""Mutated records through every source format: nothing but a verdict may come out, and every verdict must hold.

    nice -n 19 drift bench fuzz --records 10000000 [--seed 1] [--formats hubble zeek-conn ...]

Starts from the shipped example records, those of other formats among them (`mutations`). Messages are decoded in
batches of some hundred: each is rows, dead letters or no flow, and rows are within the bounds of schemas/flow.py. What
becomes of a message must be the same in other company: a stretch of every batch is decoded again, backwards, and of
some batches each message alone. Prints counts per format; the first violation ends the run, with all it takes to
repeat it.
"""

import argparse
import json
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.source_catalogue import message_of
from schemas.flow import MAX_MEASURE, MAX_NAME_BYTES
from streams.result import WHOLE_MESSAGE
from streams.sources.format import MAX_PAIR, Decoded, SourceFormat
from streams.sources.registry import FORMATS, source_format
from streams.sources.times import MAX_TIME_MS
from tests.bench.mutations import messages, wrapped

EXAMPLES = Path(__file__).parents[2] / "schemas/examples/sources"
_BATCH = 400
_STRETCH = 40
"""Messages of each batch that are decoded again, in other company."""
_ALONE_EVERY = 250
"""Of so many batches one is decoded again message by message."""
_REPORT_EVERY = 1_000_000
_BOUNDS = {"time_ms": (0, MAX_TIME_MS), "calls": (1, 1 << 32), "side": (0, 1), "pair": (-1, MAX_PAIR)}
_PLAIN = frozenset({("sampling", 1), ("continued", 0)})


class Violation(AssertionError):
    """A verdict that does not hold."""


class _Targets(dict[str | None, int]):
    def __missing__(self, tenant: str | None) -> int:
        return 0


def seeds(name: str) -> list[bytes]:
    """Return the example records of a format, and those of the others: what stands in a wrong topic.

    Args:
        name: a format's; one of two encodings behind it takes that one's records alone.
    """
    stem, _, encoding = name.partition(" ")
    mine: list[bytes] = []
    others: list[bytes] = []
    for path in sorted(EXAMPLES.glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            value = message_of(json.loads(text))
            (mine if path.stem == stem and encoding in ("", _encoding_of(value)) else others).append(value)
    flow = b'{"time_ms":1,"src":"a","dst":"b"}'
    mine = mine or [flow] * 10
    return [*mine * max(1, 6 * len(others) // len(mine)), *others, flow]


def _encoding_of(value: bytes) -> str:
    return "json" if value.lstrip()[:1] in (b"{", b"[") else "proto"


def check(decoded: Decoded, values: Sequence[bytes]) -> Counter[str]:
    """Check that a verdict holds; return how many records became what.

    Raises:
        Violation: a value is out of its bounds, a message has no verdict, or coordinates are out of order.
    """
    counts = Counter(skipped=decoded.skipped.total(), dead=len(decoded.rejected))
    judged = {bad.message for bad in decoded.rejected}
    for bad in decoded.rejected:
        _hold(0 <= bad.message < len(values) and 0 <= bad.index <= WHOLE_MESSAGE, "a dead letter's coordinate")
        _hold(len(bad.detail) <= 500 and "\n" not in bad.detail, "a dead letter's detail")
    last = -1
    for run in decoded.runs:
        size = len(run.message)
        counts["flows"] += size
        judged.update(run.message.tolist())
        _hold(size > 0 and size == len(run.index), "an empty run")
        position = (run.message << 20) | run.index
        _hold(int(position[0]) > last and bool((np.diff(position) > 0).all()), "coordinates in order")
        last = int(position[-1])
        _check_columns(run.columns, size)
        grouping = run.group("t", _Targets())
        _hold(len(grouping.edge) == size and int(grouping.edge.max()) < len(grouping.edges), "edges")
        for _, src, dst, port, protocol in grouping.edges:
            for name in (src, dst):
                _hold(isinstance(name, str) and 0 < len(name.encode()) <= 4 * MAX_NAME_BYTES, f"name {name!r}")
                _hold(len(name) <= MAX_NAME_BYTES, f"name {name!r}")
            _hold(-1 <= port <= 65_535 and -1 <= protocol <= 255, f"port {port}, protocol {protocol}")
        _hold(all(host and len(host) <= MAX_NAME_BYTES for host in run.hosts(range(size))), "hosts")
        run.payload(size - 1)
    silent = len(values) - len(judged)
    _hold(decoded.skipped.total() >= silent, f"{silent} messages without rows or dead letters, {decoded.skipped}")
    for signal in decoded.signals:
        _hold(0 <= signal.message < len(values) and signal.count >= -1, "a signal")
    return counts


def _check_columns(columns: dict[str, Any], size: int) -> None:
    for name, column in columns.items():
        low, high = _BOUNDS.get(name, (-1, MAX_MEASURE))
        _hold(column.dtype == np.int64 and len(column) == size, f"column {name}")
        _hold(low <= int(column.min()) and int(column.max()) <= high, f"{name} in bounds")


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise Violation(what)


def as_seen(decoded: Decoded) -> list[Any]:
    """Return a verdict in a form that does not depend on how messages were cut into chunks."""
    seen: list[Any] = [(bad.message, bad.index, "dead", bad.reason) for bad in decoded.rejected]
    for run in decoded.runs:
        grouping = run.group("t", _Targets())
        names = list(run.columns)
        rows = zip(*(run.columns[name].tolist() for name in names), strict=True)
        where = zip(run.message.tolist(), run.index.tolist(), grouping.edge.tolist(), rows, strict=True)
        for message, index, edge, values in where:
            plain = [(n, v) for n, v in zip(names, values, strict=True) if v != -1 and (n, v) not in _PLAIN]
            seen.append((message, index, grouping.edges[edge], tuple(sorted(plain))))
    seen.extend((s.message, s.index, "signal", (s.kind, s.host, s.count, s.time_ms)) for s in decoded.signals)
    return sorted(seen, key=lambda entry: (entry[:2], repr(entry[2:])))


def _check_company(reading: SourceFormat, values: Sequence[bytes], together: list[Any], start: int) -> None:
    """Decode a stretch of a batch again, backwards."""
    stretch = values[start : start + _STRETCH][::-1]
    again = as_seen(reading.decode(stretch))
    last = start + len(stretch) - 1
    turned = [(last - entry[0], *entry[1:]) for entry in again]
    _compare(values, [entry for entry in together if start <= entry[0] <= last], turned)


def _check_alone(reading: SourceFormat, values: Sequence[bytes], decoded: Decoded) -> None:
    alone: list[Any] = []
    skipped: Counter[str] = Counter()
    for number, value in enumerate(values):
        single = reading.decode([value])
        skipped.update(single.skipped)
        alone.extend((number, *entry[1:]) for entry in as_seen(single))
    _compare(values, as_seen(decoded), alone)
    _hold(+skipped == +decoded.skipped, f"no flows: {skipped} alone, {decoded.skipped} together")


def _compare(values: Sequence[bytes], together: list[Any], apart: list[Any]) -> None:
    one, other = ({repr(entry): entry for entry in entries} for entries in (together, apart))
    for text in sorted(one.keys() ^ other.keys())[:1]:
        message = (one.get(text) or other[text])[0]
        found = [[entry for entry in entries if entry[0] == message] for entries in (together, apart)]
        raise Violation(f"{values[message]!r} became {found[0]}, and in other company {found[1]}")
    _hold(len(together) == len(apart), "as many records in other company")


def fuzz(name: str, records: int, seed: int, alone_every: int = _ALONE_EVERY) -> Counter[str]:
    """Decode mutated messages of one format; return counts.

    Raises:
        Violation: a verdict does not hold; the message says with which seed.
    """
    warnings.simplefilter("error")  # numpy warns of what a decoder must foresee
    rng = random.Random(seed)
    spelling = name.partition(" ")[0]
    reading = source_format(spelling)
    source = messages(f"{seed}:{name}", seeds(name))
    counts: Counter[str] = Counter()
    batches = 0
    while counts["messages"] < records:
        values = [next(source) for _ in range(min(_BATCH, records - counts["messages"]))]
        if batches % 4 and name != "auto":  # a run ends where JSON and text meet: mostly long runs, and some short ones
            values.sort(key=_is_json)
        if batches % 5 == 1:  # many wrapped records in a row are decoded in another way than a few
            values = list(map(wrapped, values))
        try:
            if name == "auto":  # it keeps to what it took
                reading = source_format(spelling)
            decoded = reading.decode(values)
            counts += check(decoded, values)
            if name != "auto":
                _check_company(reading, values, as_seen(decoded), rng.randrange(len(values)))
                if batches % alone_every == 0:
                    _check_alone(reading, values, decoded)
        except Exception as error:
            culprit = next((value for value in values if _fails(name, value)), None)
            raise Violation(
                f"{name}, seed {seed}, batch {batches}: {type(error).__name__}: {error}; {culprit!r}"
            ) from error
        batches += 1
        counts["messages"] += len(values)
        if counts["messages"] % _REPORT_EVERY < _BATCH and counts["messages"] < records:
            print(f"{name}: {counts['messages']:,} messages", file=sys.stderr, flush=True)
    return counts


def _is_json(value: bytes) -> bool:
    return value[:1] in (b"{", b"[")


def _fails(name: str, value: bytes) -> bool:
    try:
        check(source_format(name.partition(" ")[0]).decode([value]), [value])
    except Exception:
        return True
    return False


_ENCODINGS = {"otlp-traces": ("otlp-traces json", "otlp-traces proto")}
FUZZED = tuple(
    spelled
    for name in FORMATS
    if name not in ("canonical-json", "canonical-arrow")  # `canonical` is both
    for spelled in _ENCODINGS.get(name, (name,))
)
"""Every format; one of two encodings once by each."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the command line and fuzz; prints counts per format. Ends the process at a violation, and says which."""
    parser = argparse.ArgumentParser(prog="drift bench fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=100_000, help="mutated messages of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--formats", nargs="+", choices=FUZZED, default=list(FUZZED))
    parsed = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    for name in parsed.formats:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        try:
            counts = fuzz(name, parsed.records, parsed.seed)
        except Violation as violation:
            sys.exit(f"violation: {violation}")
        result[name] = dict(counts)
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        print(
            f"{name:18} {counts['messages']:>10,} messages  {counts['flows']:>10,} flows  "
            f"{counts['skipped']:>9,} no flow  {counts['dead']:>10,} dead  {took_s:>7.1f} s ({cpu_s:.1f} s of CPU)",
            flush=True,
        )
    return result


if __name__ == "__main__":
    main()
