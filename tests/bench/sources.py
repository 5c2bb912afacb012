"""Flows per second that each source format decodes and normalises, beside `orjson.loads` of the same bytes.

    drift bench sources [--flows N] [--formats NAME ...] [--wrapped] [--json]
    python -m tests.bench.sources ...

Records are the shipped examples that hold flows, varied: addresses, ports, pods, byte counts and times change.
A flow counts once it is decoded, normalised and grouped into edges, in chunks of 4,000 messages, as ingest does.
A format's text is set beside orjson on the same columns as JSON, protobuf beside orjson on the same spans as JSON.
With ``--wrapped`` each record is text in a log shipper's; orjson then decodes the shipper's, and the record if it is
JSON. ``agent`` is what the whole ingest agent (tenant, clocks, records for 12 targets; no Kafka) costs, over what
decoding and normalising cost. Times are CPU time of this process, each the best of some, taken in turns, so that a busy
machine slows all alike. Python's garbage collector is held back, as the agent holds it back: with it, orjson's dicts
would cost up to three times as much, and ours little more.
"""

import argparse
import gc
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from streams.metrics import Metrics
from streams.sources import registry
from streams.sources.registry import source_format
from tests.bench import otlp_messages
from tests.bench.fuzz_sources import EXAMPLES
from tests.bench.ingest_step import chunks_of, ingest

CHUNK = 4_000
SEED = 3
_SERVICES = 300
_UNMEASURED = ("canonical", "canonical-json", "canonical-arrow", registry.AUTO)
_LAYOUTS = {
    "aws-vpc": ("aws-vpc", "aws-vpc v8"),
    "zeek-conn": ("zeek-conn", "zeek-conn text"),
    "otlp-traces": ("otlp-traces", "otlp-traces batch", "otlp-traces proto", "otlp-traces batch proto"),
}
FORMATS = (
    "canonical-json",
    *(layout for name in registry.FORMATS if name not in _UNMEASURED for layout in _LAYOUTS.get(name, (name,))),
)
"""Every producer's format, by each of its layouts."""
BATCH = 100
"""Spans in a message of a batch."""
_CLIENT_PORT = re.compile(rb"\b(?:43210|44916|43612|46378|36844|56984|43250|20641|41034|49761)\b")
_COUNTS = re.compile(rb"\b(?:1294|358|178|7626|10780|4249|5120|295|141|217)\b")
_FRACTION = re.compile(rb"(?<=\.)(?:656|399198|173232166|430166|305988)(?=[\dZ+\",])")
_TIME_MS = re.compile(rb"\b1727962687516\b")
_SPAN_ID = re.compile(rb'(?<=Id":")(?:[0-9a-f]{16}){1,2}(?=")')
_SECOND = re.compile(rb"\b1763849940(?=\d{9}\b)")
_ADDRESS = re.compile(rb"\b(?:10\.\d{1,3}|172\.31|192\.168)\.\d{1,3}\.\d{1,3}\b")
_ADDRESSES = 3_000
_SERVER = re.compile(rb"\b(cart|reviews|details)\b")


class _Targets(dict[str | None, int]):
    def __missing__(self, tenant: str | None) -> int:
        return 0


_SAME_LAYOUT: dict[str, Callable[[str], bool]] = {
    # one topic's records have one spelling: those among a format's examples that start or look like this
    "aws-vpc": lambda value: len(value.split()) == 14,
    "aws-vpc v8": lambda value: len(value.split()) == 40,
    "zeek-conn": lambda value: value.startswith('{"ts":1') and "id.orig_h" in value,
    "zeek-conn text": lambda value: value.count("\t") == 20,
}


def _is_bare(value: str) -> bool:
    return not value.startswith(('{"log"', '{"@timestamp"'))


def _examples(name: str) -> list[bytes]:
    if name == "canonical-json":
        text = {"time_ms": 1763849940000, "tenant": "acme", "src": "shop/frontend", "dst": "shop/cart", "port": 7070}
        more = {"protocol": "tcp", "bytes_out": 5120, "bytes_in": 10780, "latency_us": 5415, "errors": 0, "host": "n-7"}
        return [json.dumps({**text, **more}, separators=(",", ":")).encode()]
    stem = name.partition(" ")[0]
    lines = (EXAMPLES / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [
        case
        for case in map(json.loads, lines)
        if len(case["flows"]) == 1 and not case["rejected"] and case["format"] == stem and "value" in case
    ]
    fits = _SAME_LAYOUT.get(name, _is_bare)
    return [case["value"].encode() for case in cases if "\n" not in case["value"] and fits(case["value"])]


def records(name: str, count: int) -> list[bytes]:
    """Return messages that hold so many varied records of a format."""
    rng = random.Random(SEED)
    pool = _examples(name)
    made = []
    for number in range(count):
        value = pool[number % len(pool)]
        value = _CLIENT_PORT.sub(lambda _: b"%d" % rng.randrange(32_768, 60_999), value)
        value = _COUNTS.sub(lambda _: b"%d" % rng.randrange(40, 100_000), value)
        value = _FRACTION.sub(lambda m: b"%0*d" % (len(m[0]), rng.randrange(10 ** len(m[0]))), value)
        value = _TIME_MS.sub(lambda _: b"%d" % rng.randrange(1_727_962_600_000, 1_727_962_700_000), value)
        value = _ADDRESS.sub(lambda _: b"10.7.%d.%d" % divmod(rng.randrange(_ADDRESSES), 256), value)
        value = _SERVER.sub(rb"\1-%d" % rng.randrange(_SERVICES), value)
        value = _SPAN_ID.sub(lambda m: b"%0*x" % (len(m[0]), rng.getrandbits(4 * len(m[0]))), value)
        value = _SECOND.sub(b"%d" % rng.randrange(1_763_849_940, 1_763_850_000), value)
        made.append(value)
    if "batch" in name:
        made = otlp_messages.batched(made, BATCH)
    return list(map(otlp_messages.as_proto, made)) if "proto" in name else made


def as_json(name: str, values: Sequence[bytes]) -> list[bytes]:
    """Return messages as JSON: themselves, or a line of text as an object of its columns, or what protobuf says."""
    if values[0].startswith(b"{"):
        return list(values)
    if "proto" in name:
        return list(map(otlp_messages.as_json, values))
    separator = "\t" if name.startswith("zeek") else " "
    reading: Any = source_format(name.partition(" ")[0])
    made = []
    for value in values:
        cells = value.decode().split(separator)
        columns = reading._layout.fields(len(cells))
        known = {c: int(v) if v.isdigit() else v for c, v in zip(columns, cells, strict=False) if v != "-"}
        made.append(json.dumps(known, separators=(",", ":")).encode())
    return made


def _best_s(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the least CPU time of each piece of work; they take turns."""
    best = [float("inf")] * len(works)
    for _ in range(repeats):
        for number, work in enumerate(works):
            gc.collect()
            gc.disable()
            began = time.process_time()
            work()
            best[number] = min(best[number], time.process_time() - began)
            gc.enable()
    return best


def wrap(values: Sequence[bytes]) -> list[bytes]:
    """Return messages as a log shipper sends them."""
    envelope = {"@timestamp": "2024-04-19T00:00:01.000Z", "host": {"name": "worker-1"}}
    return [json.dumps({**envelope, "message": value.decode()}).encode() for value in values]


def measure(name: str, count: int, repeats: int = 5, *, is_wrapped: bool = False) -> dict[str, float]:
    """Measure one format; returns flows/s of it and of orjson, the ratio, the agent's cost, mean sizes of a record."""
    import orjson

    values = records(name, count)
    is_json = values[0].startswith(b"{")
    if is_wrapped:
        values = wrap(values)
    objects = as_json(name, values)
    reading = source_format(name.partition(" ")[0])
    chunks, metrics = chunks_of(values, CHUNK), Metrics()
    found = 0

    def ours() -> None:
        nonlocal found
        found = 0
        for start in range(0, len(values), CHUNK):
            for run in reading.decode(values[start : start + CHUNK]).runs:
                run.group("t", _Targets())
                found += len(run.message)

    def theirs() -> None:
        for start in range(0, len(values), CHUNK):
            found = list(map(orjson.loads, objects[start : start + CHUNK]))
            if is_wrapped and is_json:
                list(map(orjson.loads, [each["message"] for each in found]))

    def whole() -> None:
        taken = ingest(name.partition(" ")[0], chunks, metrics)
        if taken != count:
            raise AssertionError(f"{name}: {taken} flows of {count} records in tenant-log")

    ours_s, theirs_s, whole_s = _best_s((ours, theirs, whole), repeats)
    if found != count:
        raise AssertionError(f"{name}: {found} flows of {count} records")
    return {
        "bytes": round(sum(map(len, values)) / count),
        "json_bytes": round(sum(map(len, objects)) / count),
        "flows_per_s": round(count / ours_s),
        "orjson_per_s": round(count / theirs_s),
        "ratio": round(theirs_s / ours_s, 2),
        "agent": round(whole_s / ours_s, 2),
    }


def goal(json_bytes: float) -> float:
    """Return the least ratio wanted: 0.3 below 300 bytes, 0.6 from 1 kB, in between in between."""
    return min(0.6, max(0.3, 0.3 + 0.3 * (json_bytes - 300) / 700))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Read the command line and measure; prints a table unless ``--json`` is given."""
    parser = argparse.ArgumentParser(prog="drift bench sources", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--flows", type=int, default=40_000)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--wrapped", action="store_true", help="each record as text in a log shipper's")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    if not parsed.json:
        head = f"{'format':23} {'bytes':>6} {'as JSON':>8} {'flows/s':>10} {'orjson/s':>10}"
        print(f"{head} {'ratio':>6} {'goal':>5} {'agent':>6}")
    for name in parsed.formats:
        if parsed.wrapped and "proto" in name:
            continue  # no text
        figures = result[name] = measure(name, parsed.flows, is_wrapped=parsed.wrapped)
        if not parsed.json:
            print(
                f"{name:23} {figures['bytes']:>6} {figures['json_bytes']:>8} {figures['flows_per_s']:>10,} "
                f"{figures['orjson_per_s']:>10,} {figures['ratio']:>6} {goal(figures['json_bytes']):>5.2f} "
                f"{figures['agent']:>6}"
            )
    return result


if __name__ == "__main__":
    main()
