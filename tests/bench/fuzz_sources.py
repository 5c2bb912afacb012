"""Mutated records through every source format: nothing but a verdict may come out, and every verdict must hold.

    python -m tests.bench.fuzz_sources --records 10000000 --seed 1 [--formats hubble zeek-conn ...]

Starts from the shipped example records. Bytes are flipped, cut, doubled and spliced; JSON values and protobuf fields
are replaced by what breaks decoders; records are joined into arrays and lines, and wrapped as log shippers do. Prints
counts per format.
"""

import argparse
import copy
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.source_catalogue import message_of
from schemas.flow import MAX_MEASURE, MAX_NAME_BYTES
from streams.result import WHOLE_MESSAGE
from streams.sources.format import MAX_PAIR, Decoded, SourceFormat
from streams.sources.registry import FORMATS, source_format
from streams.sources.times import MAX_TIME_MS
from tests.bench.protobuf_mutations import mutate_protobuf

EXAMPLES = Path(__file__).parents[2] / "schemas/examples/sources"
_BATCH = 64
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 65_535, 65_536, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63) - 1),
    *(0.5, -0.0, 1e308, 1e-308, 1.5e18, 1_713_484_795.943239),
    *(
        "",
        "-",
        " ",
        "0",
        "-1",
        "1e9",
        "nan",
        "inf",
        "\x00",
        "\ud7ff",
        "ä" * 300,
        "x" * 5_000,
        "\u202e",
        "::ffff:1.2.3.4",
    ),
    *(
        "999.1.1.1",
        "fe80::1%eth0",
        "2024-02-30T00:00:00Z",
        "9999-12-31T23:59:59.999999999+14:00",
        "#fields",
        "ext:",
        "/",
    ),
    *([], {}, [[]], {"": {}}, ["a", 1, None], {"a": [1]}, [{"name": "x"}], {"flow": {}}, {"message": "x"}),
)
_BYTES = (
    *(bytes([byte]) for byte in b'\x00\n\t {}[]"\\,-'),
    *(b"", b"\xff\xff\xff\xff", b"\xef\xbb\xbf", b"\r\n"),
)


_BOUNDS = {"time_ms": (0, MAX_TIME_MS), "calls": (1, 1 << 32), "side": (0, 1), "pair": (-1, MAX_PAIR)}


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
    return [*(mine or [flow] * 10) * 20, *others, flow]


def _encoding_of(value: bytes) -> str:
    return "json" if value.lstrip()[:1] in (b"{", b"[") else "proto"


def _mutate_json(rng: random.Random, value: bytes) -> bytes:
    """Replace, remove or add some values of a record."""
    try:
        record = json.loads(value)
    except (ValueError, RecursionError):
        return value
    for _ in range(rng.randint(1, 3)):
        holders = list(_holders(record))
        if not holders:
            return json.dumps(_odd(rng)).encode()
        holder = rng.choice(holders)
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        action = rng.random()
        if action < 0.6:
            holder[key] = _odd(rng)
        elif action < 0.75:
            del holder[key]
        elif action < 0.9 and isinstance(holder, dict):
            holder[rng.choice(list(holder)) + rng.choice(("", "x", "\u00e9"))] = _odd(rng)
        elif isinstance(holder[key], int):
            holder[key] = str(holder[key])
    return json.dumps(record, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")


def _odd(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(_ODD))


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        if value:
            yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


def _mutate_bytes(rng: random.Random, value: bytes) -> bytes:
    data = bytearray(value)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        action = rng.randrange(5)
        if action == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif action == 1:
            data[at:at] = rng.choice(_BYTES)
        elif action == 2:
            del data[at : at + rng.randint(1, 40)]
        elif action == 3:
            data[at:at] = data[at : at + rng.randint(1, 60)]
        else:
            data[at:] = b""
    return bytes(data)


def mutations(rng: random.Random, pool: Sequence[bytes]) -> Iterator[bytes]:
    """Return mutated messages for ever."""
    while True:
        value = rng.choice(pool)
        action = rng.random()
        if action < 0.5:
            value = _mutate_json(rng, value) if _encoding_of(value) == "json" else mutate_protobuf(rng, value)
        elif action < 0.75:
            value = _mutate_bytes(rng, value)
        elif action < 0.8:
            other = rng.choice(pool)
            value = value[: rng.randrange(len(value) + 1)] + other[rng.randrange(len(other) + 1) :]
        shape = rng.random()
        if shape < 0.04:
            value = b"[" + b",".join([value, rng.choice(pool), _mutate_json(rng, rng.choice(pool))]) + b"]"
        elif shape < 0.08:
            value = b"\n".join([value, rng.choice(pool), b"", _mutate_bytes(rng, rng.choice(pool))])
        elif shape < 0.14:
            key = rng.choice(("message", "log"))
            value = json.dumps({key: value.decode(errors="replace"), "@timestamp": "x"}).encode()
        yield value


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
        counts["flows"] += len(run.message)
        judged.update(run.message.tolist())
        _hold(len(run.message) > 0 and len(run.message) == len(run.index), "an empty run")
        position = (run.message << 20) | run.index
        _hold(int(position[0]) > last and bool((np.diff(position) > 0).all()), "coordinates in order")
        last = int(position[-1])
        for name, column in run.columns.items():
            low, high = _BOUNDS.get(name, (-1, MAX_MEASURE))
            _hold(column.dtype == np.int64 and len(column) == len(run.message), f"column {name}")
            _hold(low <= int(column.min()) and int(column.max()) <= high, f"{name} in bounds")
        grouping = run.group("t", _Targets())
        _hold(len(grouping.edge) == len(run.message) and int(grouping.edge.max()) < len(grouping.edges), "edges")
        for _, src, dst, port, protocol in grouping.edges:
            for name in (src, dst):
                _hold(isinstance(name, str) and 0 < len(name.encode()) <= 4 * MAX_NAME_BYTES, f"name {name!r}")
                _hold(len(name) <= MAX_NAME_BYTES, f"name {name!r}")
            _hold(-1 <= port <= 65_535 and -1 <= protocol <= 255, f"port {port}, protocol {protocol}")
        rows = range(len(run.message))
        _hold(all(host and len(host) <= MAX_NAME_BYTES for host in run.hosts(rows)), "hosts")
        run.payload(len(run.message) - 1)
    silent = len(values) - len(judged)
    _hold(decoded.skipped.total() >= silent, f"{silent} messages without rows or dead letters, {decoded.skipped}")
    for signal in decoded.signals:
        _hold(0 <= signal.message < len(values) and signal.count >= -1, "a signal")
    return counts


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise Violation(what)


def as_seen(decoded: Decoded) -> list[Any]:
    """Return a verdict in a form that does not depend on how messages were cut into chunks."""
    seen: list[Any] = [(bad.message, bad.index, "dead", bad.reason) for bad in decoded.rejected]
    for run in decoded.runs:
        grouping = run.group("t", _Targets())
        for row in range(len(run.message)):
            values = {name: int(column[row]) for name, column in run.columns.items()}
            plain = {n: v for n, v in values.items() if v != -1 and (n, v) not in (("sampling", 1), ("continued", 0))}
            edge = grouping.edges[int(grouping.edge[row])]
            seen.append((int(run.message[row]), int(run.index[row]), edge, tuple(sorted(plain.items()))))
    return sorted(seen, key=lambda entry: entry[:2])


def _check_neighbours(reading: SourceFormat, values: Sequence[bytes], together: Decoded) -> None:
    alone: list[Any] = []
    for number, value in enumerate(values):
        alone.extend((number, *entry[1:]) for entry in as_seen(reading.decode([value])))
    if alone != as_seen(together):
        raise Violation("a message changed what became of its neighbours")


def fuzz(name: str, records: int, seed: int, neighbours_every: int = 20) -> Counter[str]:
    """Decode mutated messages of one format; return counts.

    Raises:
        Violation: a verdict does not hold; the message says with which seed.
    """
    rng = random.Random(f"{seed}:{name}")
    spelling = name.partition(" ")[0]
    reading = source_format(spelling)
    source = mutations(rng, seeds(name))
    counts: Counter[str] = Counter()
    batches = 0
    while counts["messages"] < records:
        values = [next(source) for _ in range(min(_BATCH, records - counts["messages"]))]
        try:
            if name == "auto":
                reading = source_format(spelling)
            decoded = reading.decode(values)
            counts += check(decoded, values)
            if batches % neighbours_every == 0 and name != "auto":
                _check_neighbours(reading, values, decoded)
        except Exception as error:
            culprit = next((value for value in values if _fails(name, value)), None)
            raise Violation(
                f"{name}, seed {seed}, batch {batches}: {type(error).__name__}: {error}; {culprit!r}"
            ) from error
        batches += 1
        counts["messages"] += len(values)
    return counts


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
    """Read the command line and fuzz; prints counts per format."""
    parser = argparse.ArgumentParser(prog="fuzz_sources", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=100_000, help="mutated messages in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--formats", nargs="+", choices=FUZZED, default=list(FUZZED))
    parsed = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    for name in parsed.formats:
        began_s = time.perf_counter()
        counts = fuzz(name, parsed.records // len(parsed.formats), parsed.seed)
        result[name] = dict(counts)
        took_s = time.perf_counter() - began_s
        print(
            f"{name:18} {counts['messages']:>10,} messages  {counts['flows']:>10,} flows  "
            f"{counts['skipped']:>9,} no flow  {counts['dead']:>10,} dead  {took_s:>7.1f} s",
            flush=True,
        )
    return result


if __name__ == "__main__":
    try:
        main()
    except Violation as violation:
        sys.exit(f"violation: {violation}")
