"""Producers' own log files through the formats: what becomes of every line, beside counts made without them.

    drift bench source-files DIR

Each file's format is recognised from its first lines, and its lines go through it one a message, as in a replay. The
independent counts take nothing but `json`, `str.split` and the field names of the tools' documentation.
"""

import argparse
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import ConfigurationError
from streams.sources.registry import AUTO, format_of_file, source_format
from tests.bench.fuzz_sources import check

_HEAD_BYTES = 1 << 16
_CHUNK = 4_000


def lines_of(path: Path) -> list[bytes]:
    """Return the lines of a file, gzip or plain, that are not empty."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [line.strip() for line in data.split(b"\n") if line.strip()]


def through_format(lines: Sequence[bytes]) -> tuple[str, Counter[str]]:
    """Return the format taken and how many lines became what: ``flow``, ``not-flow KIND``, ``dead REASON: DETAIL``."""
    spelling = format_of_file(AUTO, b"\n".join(lines)[:_HEAD_BYTES])
    reading = source_format(spelling)
    counts: Counter[str] = Counter()
    for start in range(0, len(lines), _CHUNK):
        chunk = lines[start : start + _CHUNK]
        decoded = reading.decode(chunk)
        counts["flow"] += check(decoded, chunk)["flows"]
        counts.update({f"not-flow {kind}": count for kind, count in decoded.skipped.items()})
        counts.update(f"dead {bad.reason}: {bad.detail}" for bad in decoded.rejected)
    return spelling, +counts


def by_hand(lines: Sequence[bytes]) -> Counter[str]:
    """Count the same lines with a few lines of Python: kinds as `through_format` names them, dead ones as ``dead``."""
    counts: Counter[str] = Counter()
    for line in lines:
        if line.startswith(b"#"):
            counts["not-flow header"] += 1
        elif line.startswith(b"{"):
            record = json.loads(line)
            if "resourceSpans" in record:
                counts.update(_spans_by_hand(record))
                continue
            log = record.get("_path") or record.get("@stream") or record.get("event_type")
            counts["flow" if log in ("conn", "flow") else f"not-flow {log}"] += 1
        else:
            cells = line.decode().split("\t")
            is_conn = len(cells) > 10 and any(cell in ("tcp", "udp", "icmp") for cell in cells)
            has_time = any(cell.replace(".", "", 1).isdigit() and "." in cell for cell in cells[:2])
            counts["flow" if is_conn and has_time else "dead"] += 1
    return counts


def _spans_by_hand(document: Any) -> Iterator[str]:
    """Name what becomes of each span of an OTLP document."""
    kinds = {0: "unspecified", 1: "internal"}
    for found in document["resourceSpans"]:
        for scope in found["scopeSpans"]:
            for span in scope["spans"]:
                kind, flags = span.get("kind", 0), span.get("flags", 0)
                is_nested = kind in (2, 5) and span.get("parentSpanId") and flags & 0x300 == 0x100
                yield f"not-flow {kinds[kind]}" if kind in kinds else "not-flow nested" if is_nested else "flow"


def summary(counts: Counter[str]) -> Counter[str]:
    """Return counts with all dead letters in one."""
    found: Counter[str] = Counter()
    for what, count in counts.items():
        found["dead" if what.startswith("dead") else what] += count
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print counts per file; return 1 if any two of them differ."""
    parser = argparse.ArgumentParser(prog="drift bench source-files", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    differs = 0
    for path in sorted(parser.parse_args(arguments).folder.iterdir()):
        lines = lines_of(path)
        try:
            spelling, counts = through_format(lines)
        except ConfigurationError as error:
            print(f"{path.name}: {len(lines)} lines: {error}")
            continue
        hand = by_hand(lines)
        agree = summary(counts) == hand and sum(counts.values()) >= len(lines)  # a line may hold many records
        differs += not agree
        print(f"{path.name}: {len(lines)} lines as {spelling[:60]}")
        for what, count in counts.most_common():
            print(f"  {count:>7,}  {what}")
        print(f"  by hand: {dict(hand.most_common())}: {'agree' if agree else 'DIFFER'}")
    return int(differs > 0)


if __name__ == "__main__":
    sys.exit(main())
