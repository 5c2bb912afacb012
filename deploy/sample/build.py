"""Builds the bundled sample from the prepared Nezha data: `python -m deploy.sample.build --data DIR`.

Reads `nezha_ob_calls_2022-08-22.parquet` and `nezha_cases.json` in DIR; writes `online-boutique.jsonl.gz` and
`faults.json` beside this file. The same input gives the same lines (their SHA-256 stands in faults.json).
README.md says what was changed and why.
"""

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as parquet

HERE = Path(__file__).parent
SAMPLE = "online-boutique.jsonl.gz"
FAULTS = "faults.json"
CALLS_FILE = "nezha_ob_calls_2022-08-22.parquet"
CASES_FILE = "nezha_cases.json"

TENANT = "online-boutique"
ENTRY = "ext:users"
"""Stands for the source's `_user`: whoever calls the front end lies outside the estate."""
WINDOW_MS = 10_000
MIN_CALLS = 10
"""Calls a window needs before its p95 counts in the visibility figures."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the recording: where it starts (Unix seconds, the source's clock) and how long it is."""

    case: str
    start_s: int
    length_s: int


# Every start is the first whole second of a recorded piece; every length a multiple of the window, so that no
# window mixes two pieces. Stretches named after a case but ending before its injection are fault-free.
SEGMENTS = (
    # learning: 160 s without any fault
    Segment("nezha_ob_2022-08-22_13", 1661146939, 80),
    Segment("nezha_ob_2022-08-22_14", 1661147479, 80),
    # each of the next three: fault-free first, then its fault
    Segment("nezha_ob_2022-08-22_16", 1661150058, 180),
    Segment("nezha_ob_2022-08-22_23", 1661154739, 180),
    Segment("nezha_ob_2022-08-22_21", 1661153119, 180),
    # fault-free
    Segment("nezha_ob_2022-08-22_01", 1661140879, 40),
    Segment("nezha_ob_2022-08-22_05", 1661142919, 30),
    # fault throughout
    Segment("nezha_ob_2022-08-22_04", 1661142439, 120),
    # fault-free
    Segment("nezha_ob_2022-08-22_11", 1661145978, 40),
    Segment("nezha_ob_2022-08-22_09", 1661144959, 20),
    # fault-free first, then its fault
    Segment("nezha_ob_2022-08-22_00", 1661140339, 180),
    # fault-free, so that what is still open can be seen to recover
    Segment("nezha_ob_2022-08-22_20", 1661152639, 30),
    Segment("nezha_ob_2022-08-22_17", 1661151139, 30),
    Segment("nezha_ob_2022-08-22_19", 1661152158, 20),
)
START_MS = SEGMENTS[0].start_s // 10 * 10_000
"""The sample's clock starts at the first stretch's own time and has no gaps."""

Calls = dict[str, npt.NDArray[Any]]


def read_calls(data: Path) -> Calls:
    """Return the source's columns in order of time; equal times keep the source's order."""
    table = parquet.read_table(data / CALLS_FILE, columns=["ts_us", "src", "dst", "client_us"])
    columns = {name: table[name].to_numpy() for name in table.column_names}
    order = np.argsort(columns["ts_us"], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def join_segments(calls: Calls, segments: Sequence[Segment] = SEGMENTS) -> tuple[Calls, list[dict[str, Any]]]:
    """Cut the segments out and lay them end to end.

    Returns the joined columns (``time_ms`` on the sample's clock) and what came from where.
    """
    parts: list[Calls] = []
    origin: list[dict[str, Any]] = []
    at_ms = START_MS
    for segment in segments:
        first, last = np.searchsorted(
            calls["ts_us"], [segment.start_s * 1_000_000, (segment.start_s + segment.length_s) * 1_000_000]
        )
        part = {name: values[first:last] for name, values in calls.items()}
        part["time_ms"] = (part["ts_us"] // 1000 - segment.start_s * 1000 + at_ms).astype(np.int64)
        parts.append(part)
        origin.append(
            {
                "start_ms": at_ms,
                "end_ms": at_ms + segment.length_s * 1000,
                "recorded_start_ms": segment.start_s * 1000,
                "calls": int(last - first),
            }
        )
        at_ms += segment.length_s * 1000
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, origin


def lines_of(joined: Calls) -> Iterable[str]:
    """Yield canonical flow records as JSON lines.

    ``latency_us`` is the caller's view, network included. Only the root call has none (its caller was not traced):
    the source repeats the server's duration there, and the record says that the server reported it.
    """
    for time_ms, src, dst, latency_us in zip(
        joined["time_ms"].tolist(), joined["src"], joined["dst"], joined["client_us"].tolist(), strict=True
    ):
        is_root = src == "_user"
        flow = {
            "time_ms": time_ms,
            "src": ENTRY if is_root else src,
            "dst": dst,
            "calls": 1,
            "latency_us": latency_us,
            "reporter": "server" if is_root else "client",
            "tenant": TENANT,
        }
        yield json.dumps(flow, separators=(",", ":"))


def faults_of(cases: list[dict[str, Any]], segments: Sequence[Segment] = SEGMENTS) -> list[dict[str, Any]]:
    """Return the injected faults that the joined sample contains, with their times on the sample's clock."""
    by_name = {case["case"]: case for case in cases}
    faults = []
    at_ms = START_MS
    for segment in segments:
        case = by_name[segment.case]
        offset_s = case["inject_ts"] - segment.start_s
        end_s = min(offset_s + case["duration_s"], segment.length_s)
        if offset_s < segment.length_s and end_s > 0:
            faults.append(
                {
                    "case": segment.case,
                    "fault": case["fault"],
                    "root_cause": case["root_cause"],
                    "start_ms": at_ms + max(offset_s, 0) * 1000,
                    "end_ms": at_ms + end_s * 1000,
                }
            )
        at_ms += segment.length_s * 1000
    return faults


def p95_per_window(joined: Calls) -> dict[tuple[str, str], dict[int, float]]:
    """Return p95 latency in ms by edge and window start, windows of at least ``MIN_CALLS`` calls."""
    window = joined["time_ms"] // WINDOW_MS * WINDOW_MS
    result: dict[tuple[str, str], dict[int, float]] = {}
    for src, dst in sorted(set(zip(joined["src"], joined["dst"], strict=True))):
        on_edge = (joined["src"] == src) & (joined["dst"] == dst)
        result[(ENTRY if src == "_user" else src, dst)] = {
            int(start): float(np.percentile(values, 95)) / 1000
            for start in np.unique(window[on_edge])
            if len(values := joined["client_us"][on_edge & (window == start)]) >= MIN_CALLS
        }
    return result


def visibility_of(joined: Calls, faults: list[dict[str, Any]], most: int = 3) -> None:
    """Add to each fault the edges where it shows most: median of the windows' p95 inside it and outside all."""
    windows = p95_per_window(joined)

    def overlaps(start: int, fault: dict[str, Any]) -> bool:
        return bool(start < fault["end_ms"] and start + WINDOW_MS > fault["start_ms"])

    def in_full(start: int, fault: dict[str, Any]) -> bool:
        return bool(fault["start_ms"] <= start and start + WINDOW_MS <= fault["end_ms"])

    # The window before an injection is no "usual" one: some faults act a few seconds before their recorded time.
    usual = {
        edge: [
            p95
            for start, p95 in by_start.items()
            if not any(overlaps(start, fault) or overlaps(start + WINDOW_MS, fault) for fault in faults)
        ]
        for edge, by_start in windows.items()
    }
    for fault in faults:
        seen = []
        for edge, by_start in windows.items():
            inside = [p95 for start, p95 in by_start.items() if in_full(start, fault)]
            if len(inside) < 3 or len(usual[edge]) < 10:
                continue
            middle = float(np.median(usual[edge]))
            seen.append(
                {
                    "edge": f"{edge[0]} -> {edge[1]}",
                    "p95_ms": round(float(np.median(inside)), 1),
                    "usual_p95_ms": round(middle, 1),
                    "times_usual": round(float(np.median(inside)) / middle, 1),
                    "windows": len(inside),
                    "windows_above_all_usual": sum(p95 > max(usual[edge]) for p95 in inside),
                }
            )
        fault["most_visible"] = sorted(seen, key=lambda entry: -float(str(entry["times_usual"])))[:most]


def build(data: Path, out: Path) -> dict[str, Any]:
    """Write the sample and its faults.json to ``out``; return what faults.json holds."""
    joined, segments = join_segments(read_calls(data))
    text = "".join(f"{line}\n" for line in lines_of(joined)).encode()
    with (out / SAMPLE).open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(text)
    cases = json.loads((data / CASES_FILE).read_text())
    faults = faults_of(cases)
    visibility_of(joined, faults)
    summary = {
        "sample": SAMPLE,
        "flows": len(joined["time_ms"]),
        "sha256_of_lines": hashlib.sha256(text).hexdigest(),
        "start_ms": START_MS,
        "end_ms": segments[-1]["end_ms"],
        "window_ms": WINDOW_MS,
        "tenant": TENANT,
        "faults": faults,
        "segments": segments,
    }
    (out / FAULTS).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def main() -> None:
    """Build the sample and print what is in it."""
    parser = argparse.ArgumentParser(prog="python -m deploy.sample.build", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {CALLS_FILE} and {CASES_FILE}")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: beside this script)")
    arguments = parser.parse_args()
    summary = build(arguments.data, arguments.out)
    minutes = (summary["end_ms"] - summary["start_ms"]) / 60_000
    size = (arguments.out / SAMPLE).stat().st_size
    print(f"{summary['flows']} flows, {minutes:.1f} minutes, {size} bytes, {len(summary['faults'])} faults")
    for fault in summary["faults"]:
        print(f"  {fault['fault']} of {fault['root_cause']}, {(fault['end_ms'] - fault['start_ms']) // 1000} s")
        for seen in fault["most_visible"]:
            print(f"    {seen['edge']}: p95 {seen['p95_ms']} ms, usually {seen['usual_p95_ms']} ms")


if __name__ == "__main__":
    main()
