"""The bundled sample is what faults.json and its README say: canonical, ordered, gapless, its faults visible."""

import gzip
import hashlib
import itertools
import json
from collections import defaultdict
from typing import Any

import msgspec
import numpy as np
import pytest

from deploy.sample.build import (
    FAULTS,
    HERE,
    MIN_CALLS,
    SAMPLE,
    SEGMENTS,
    START_MS,
    TENANT,
    WINDOW_MS,
    Segment,
    faults_of,
    join_segments,
    lines_of,
)
from schemas.flow import Flow

MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return dict(json.loads((HERE / FAULTS).read_text()))


@pytest.fixture(scope="module")
def text() -> bytes:
    return gzip.decompress((HERE / SAMPLE).read_bytes())


@pytest.fixture(scope="module")
def flows(text: bytes) -> list[Flow]:
    decoder = msgspec.json.Decoder(Flow)
    return [decoder.decode(line) for line in text.splitlines()]


def test_sample_is_small_and_is_the_one_described(summary: dict[str, Any], text: bytes) -> None:
    assert (HERE / SAMPLE).stat().st_size < MAX_BYTES
    assert hashlib.sha256(text).hexdigest() == summary["sha256_of_lines"]
    assert text.count(b"\n") == summary["flows"] == sum(segment["calls"] for segment in summary["segments"])


def test_every_field_is_one_of_the_canonical_record(text: bytes) -> None:
    known = set(Flow.__struct_fields__)
    assert all(set(json.loads(line)) <= known for line in itertools.islice(text.splitlines(), 0, None, 997))


def test_time_runs_forward_without_empty_windows(summary: dict[str, Any], flows: list[Flow]) -> None:
    times = [flow.time_ms for flow in flows]
    assert times == sorted(times)
    windows = {time // WINDOW_MS for time in times}
    assert windows == set(range(summary["start_ms"] // WINDOW_MS, summary["end_ms"] // WINDOW_MS))


def test_segments_join_on_window_boundaries(summary: dict[str, Any]) -> None:
    bounds = [(segment["start_ms"], segment["end_ms"]) for segment in summary["segments"]]
    assert bounds[0][0] == summary["start_ms"] and bounds[-1][1] == summary["end_ms"]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))
    assert all(start % WINDOW_MS == 0 for start, _ in bounds)


def test_names_and_reporters_are_as_the_readme_says(flows: list[Flow]) -> None:
    assert {flow.tenant for flow in flows} == {TENANT}
    assert all((flow.src == "ext:users") == (flow.reporter == "server") for flow in flows)
    assert {flow.dst for flow in flows if flow.src == "ext:users"} == {"frontend"}
    assert all(flow.port is None and flow.protocol is None and flow.bytes_out is None for flow in flows)


def test_learning_time_is_free_of_faults_and_faults_are_apart(summary: dict[str, Any]) -> None:
    faults = summary["faults"]
    assert len({(fault["fault"], fault["root_cause"]) for fault in faults}) >= 4
    assert faults[0]["start_ms"] - summary["start_ms"] >= 20 * WINDOW_MS
    for before, after in itertools.pairwise(faults):
        assert after["start_ms"] - before["end_ms"] >= 6 * WINDOW_MS
    assert summary["end_ms"] - faults[-1]["end_ms"] >= 6 * WINDOW_MS


def test_every_fault_shows_on_an_edge_at_its_root_cause(summary: dict[str, Any], flows: list[Flow]) -> None:
    """Recomputed here from the lines, not taken from the builder."""
    per_window: dict[tuple[str, str], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for flow in flows:
        assert flow.latency_us is not None
        per_window[flow.src, flow.dst][flow.time_ms // WINDOW_MS * WINDOW_MS].append(flow.latency_us)
    faults = summary["faults"]
    for fault in faults:
        visible = []
        for edge, windows in per_window.items():
            if fault["root_cause"] not in edge:
                continue
            p95 = {start: np.percentile(v, 95) / 1000 for start, v in windows.items() if len(v) >= MIN_CALLS}
            inside = [p95[s] for s in p95 if fault["start_ms"] <= s and s + WINDOW_MS <= fault["end_ms"]]
            outside = [
                p95[s] for s in p95 if all(s + 2 * WINDOW_MS <= f["start_ms"] or s >= f["end_ms"] for f in faults)
            ]
            if len(inside) >= 3 and len(outside) >= 10:
                visible.append(np.median(inside) / np.median(outside))
        assert max(visible) > 5, fault
        best = fault["most_visible"][0]
        assert best["windows_above_all_usual"] == best["windows"]


def test_readme_gives_the_figures_of_faults_json(summary: dict[str, Any]) -> None:
    readme = (HERE / "README.md").read_text()
    assert f"{summary['flows']:,} real" in readme
    for fault in summary["faults"]:
        best = fault["most_visible"][0]
        row = next(line for line in readme.splitlines() if f"| {fault['fault']} | {fault['root_cause']} |" in line)
        assert f"{best['edge']} | {best['p95_ms']} ms | {best['usual_p95_ms']} ms" in row


def test_attribution_is_kept() -> None:
    notice = (HERE.parents[1] / "NOTICE").read_text()
    assert "Copyright (c) 2023 IntelligentDDS" in notice and "MIT License" in notice
    assert "MIT" in (HERE / "README.md").read_text()


def test_join_shifts_calls_and_drops_what_lies_between() -> None:
    calls = {
        "ts_us": np.array([5_000_000, 15_999_999, 16_000_000, 40_000_000, 50_000_000], dtype=np.int64),
        "src": np.array(["_user", "a", "a", "a", "a"], dtype=object),
        "dst": np.array(["a", "b", "b", "b", "b"], dtype=object),
        "client_us": np.array([1, 2, 3, 4, 5], dtype=np.int64),
    }
    joined, origin = join_segments(calls, [Segment("x", 6, 10), Segment("y", 40, 10)])
    assert (joined["time_ms"] - START_MS).tolist() == [9_999, 10_000]
    assert [part["calls"] for part in origin] == [1, 1]
    assert [json.loads(line)["latency_us"] for line in lines_of(joined)] == [2, 4]


def test_faults_are_moved_and_cut_with_their_segment() -> None:
    cases = [
        {"case": "x", "inject_ts": 4, "duration_s": 180, "fault": "f", "root_cause": "r"},
        {"case": "y", "inject_ts": 60, "duration_s": 180, "fault": "f", "root_cause": "r"},
    ]
    faults = faults_of(cases, [Segment("x", 6, 10), Segment("y", 40, 10)])
    assert [(f["case"], f["start_ms"] - START_MS, f["end_ms"] - START_MS) for f in faults] == [("x", 0, 10_000)]


def test_segments_are_whole_windows() -> None:
    assert all(segment.length_s * 1000 % WINDOW_MS == 0 for segment in SEGMENTS)
