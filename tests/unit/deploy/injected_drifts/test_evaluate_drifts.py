"""`drift evaluate drifts` on a small made recording: what is injected is there, and what is counted is true."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from deploy.cli import cli
from deploy.injected_drifts.drifts import NOTHING, SIZES, Drift, Maker, Size
from deploy.injected_drifts.figures import PARTS, SystemRuns, figures_of
from deploy.injected_drifts.recordings import ENTRY, PARTNER, read_recordings
from deploy.injected_drifts.stream import FIRST_MINUTE, planned, quiet, run
from deploy.injected_drifts.traffic import MINUTE_MS, Calls, Edges, Recording, Traffic
from schemas.errors import ConfigurationError

DAY, DAY_S = "2030-01-02", 1_893_542_400
SERVICES = ("web", "cart", "pay", "mail", "stock")
TRACES_A_SECOND = 2
FAULT_S = DAY_S + 200
SLOW_US = 900_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five minutes of two traces a second, `_user` to web to the four others; slow around one fault."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(5)
    rows: list[tuple[int, str, str, int, str]] = []
    for number in range(300 * TRACES_A_SECOND):
        start_s = DAY_S + number / TRACES_A_SECOND
        is_slow = FAULT_S <= start_s < FAULT_S + 20
        for place, (src, dst) in enumerate([("_user", "web"), *(("web", other) for other in SERVICES[1:])]):
            took_us = SLOW_US if is_slow else int(rng.lognormal(np.log(20_000), 0.1))
            rows.append((int(start_s * 1e6) + place * 1_000, src, dst, took_us, f"{number:016x}"))
    columns = dict(zip(("ts_us", "src", "dst", "client_us", "trace"), zip(*rows, strict=True), strict=True))
    pq.write_table(
        pa.table({name: list(values) for name, values in columns.items()}), folder / f"shop_calls_{DAY}.parquet"
    )
    case = {"system": "shop", "day": DAY, "inject_ts": FAULT_S, "duration_s": 20}
    (folder / "nezha_cases.json").write_text(json.dumps([case]))
    return folder


@pytest.fixture(scope="module")
def recording(data: Path) -> Recording:
    (one,) = read_recordings(data, 7)
    return one


def _maker(recording: Recording) -> Maker:
    return Maker(recording, Edges.of(recording.edges), np.random.default_rng(1))


def _size(kind: str, size: str) -> Size:
    return next(one for one in SIZES if (one.kind, one.size) == (kind, size))


def _around(recording: Recording, drift: Drift) -> tuple[Calls, Calls]:
    """Return the calls of a drift's edges in its time, without and with it."""
    traffic, rng = Traffic(recording, np.random.default_rng(3)), np.random.default_rng(4)
    before: list[Calls] = []
    after: list[Calls] = []
    for minute in range(FIRST_MINUTE, FIRST_MINUTE + 8):
        calls = traffic.minute(minute)
        for kept, one in ((before, calls), (after, drift.apply(calls, minute, rng))):
            inside = (one.time_ms >= drift.start_ms) & (one.time_ms < drift.end_ms)
            kept.append(one.take(np.isin(one.edge, drift.edges) & inside))
    return Calls.joined(before), Calls.joined(after)


def test_a_recording_is_what_lies_outside_of_the_faults_and_what_was_made(recording: Recording) -> None:
    pairs = {edge[:2] for edge in recording.edges}
    real = {(ENTRY, "web"), *(("web", other) for other in SERVICES[1:])}
    assert pairs >= real
    assert {dst for _, dst in pairs - real} == {PARTNER}
    is_real = np.array([edge[1] != PARTNER for edge in recording.edges])
    assert recording.calls.latency_us[is_real[recording.calls.edge]].max() < SLOW_US / 2
    # 10 s before the fault, its 20 s and 60 s after it are gone: 190 s and 20 s are left.
    assert recording.seconds.tolist() == pytest.approx([189.5, 19.5], abs=1) or len(recording.seconds) == 1
    assert recording.calls_a_minute()[:5] == pytest.approx(60 * TRACES_A_SECOND, rel=0.02)


def test_traffic_has_the_recordings_rate_and_keeps_minutes_apart(recording: Recording) -> None:
    traffic = Traffic(recording, np.random.default_rng(1))
    minutes = [traffic.minute(FIRST_MINUTE + n) for n in range(30)]
    for number, calls in enumerate(minutes):
        assert set((calls.time_ms // MINUTE_MS).tolist()) == {FIRST_MINUTE + number}
    usual = recording.calls_a_minute().sum()
    assert np.mean([len(calls) for calls in minutes]) == pytest.approx(usual, rel=0.1)
    again = Traffic(recording, np.random.default_rng(1))
    assert all(np.array_equal(again.minute(FIRST_MINUTE + n).time_ms, minutes[n].time_ms) for n in range(3))


def test_every_size_does_what_it_says(recording: Recording) -> None:
    for size in SIZES:
        drift = size.make(_maker(recording), size, FIRST_MINUTE + 1)
        before, after = _around(recording, drift)
        what, value = (size.kind, size.size)
        number = float("".join(letter for letter in value if letter in "0123456789.") or 0)
        if what in ("new edge", "new port", "new egress"):
            assert (len(before), len(after)) == (0, number), value
        elif what == "scan":
            assert (len(before), len(after), len(drift.edges)) == (0, number, number), value
        elif what == "slow-down":
            assert after.latency_us.mean() == pytest.approx(before.latency_us.mean() * number, rel=0.001)
        elif what == "errors":
            assert after.errors.mean() - before.errors.mean() == pytest.approx(number / 100, abs=0.06)
        elif what == "drop":
            assert len(after) / len(before) == pytest.approx(1 - number / 100, abs=0.1)
        elif what == "removal":
            assert len(before) > len(after) == 0
        elif what == "more calls":
            assert len(after) == number * len(before)
        elif what == "exfiltration":
            assert after.bytes_out.sum() - before.bytes_out.sum() == number * 1_000_000
        else:
            assert what == NOTHING
            assert np.array_equal(before.time_ms, after.time_ms)


def test_new_edges_and_ports_are_never_given_twice(recording: Recording) -> None:
    maker = _maker(recording)
    for kind, text in (("new edge", "1 call"), ("new port", "1 call"), ("scan", "20 ports"), ("scan", "20 hosts")):
        size, known = _size(kind, text), len(maker.edges.known)
        made = [size.make(maker, size, FIRST_MINUTE).edges for _ in range(5)]
        new = [edge for edges in made for edge in edges]
        assert min(new) >= known, "the recording has none of them"
        assert len(set(new)) == len(new), kind
    with pytest.raises(ConfigurationError, match="too few pairs"):
        [maker.pair() for _ in range(100)]


def test_a_plan_has_every_size_as_often_and_one_at_a_time(recording: Recording) -> None:
    sizes = [_size("drop", "-100 %"), _size("new port", "1 call")]
    plan = planned(recording, 3, 7, sizes)
    assert sorted(drift.kind for drift in plan.drifts) == ["drop"] * 3 + ["new port"] * 3
    ends = [(drift.start_ms, drift.end_ms) for drift in plan.drifts]
    assert all(end + 5 * MINUTE_MS < start for (_, end), (start, _) in pairwise(ends))
    assert plan.minutes * MINUTE_MS + FIRST_MINUTE * MINUTE_MS > ends[-1][1]


def test_figures_are_those_of_what_was_injected_and_parts_can_be_left_out(recording: Recording) -> None:
    sizes = [_size("slow-down", "x4"), _size("errors", "+50 points"), _size("new edge", "1 call"), _size(NOTHING, "-")]
    runs = SystemRuns(
        "shop", run(recording, quiet(recording, 60), 7), run(recording, planned(recording, 2, 7, sizes), 7)
    )
    whole = {one.kind: one for one in figures_of(runs).sizes}
    assert {kind: one.recall for kind, one in whole.items()} == {
        "slow-down": 1.0,
        "errors": 1.0,
        "new edge": 1.0,
        NOTHING: 0.0,
    }
    assert whole["slow-down"].told_by == {"latency_increase": 2}
    assert {delay for kind in ("slow-down", "errors", "new edge") for delay in whole[kind].delays} <= {1, 2}
    less = {one.kind: one.recall for one in figures_of(runs, ["latency", "first-seen"]).sizes}
    assert less == {"slow-down": 0.0, "errors": 1.0, "new edge": 0.0, NOTHING: 0.0}
    figures = figures_of(runs)
    assert figures.quiet_days == pytest.approx((60 + 60 - 10) / 1_440, abs=2 / 1_440), "less what only teaches"
    told = sum(figures.false_alarms_by_kind.values())
    assert figures.false_alarms_per_day * figures.quiet_days == pytest.approx(told)


def test_false_alarms_are_what_is_told_of_an_untouched_stream(recording: Recording) -> None:
    untouched = quiet(recording, 60)
    slow = replace(
        _size("slow-down", "x4").make(_maker(recording), _size("slow-down", "x4"), FIRST_MINUTE + 80), kind="unknown"
    )
    silent, loud = (run(recording, replace(untouched, drifts=drifts), 7) for drifts in ((), (slow,)))
    loud.incidents = []  # nobody knows of it
    told = figures_of(SystemRuns("shop", loud, silent))
    assert told.false_alarms_by_kind["latency_increase"] >= 1
    assert told.false_alarms_per_day > 0
    usual = figures_of(SystemRuns("shop", silent, silent))
    assert usual.false_alarms_per_day < told.false_alarms_per_day


def _invoke(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        cli, ["evaluate", "drifts", "--data", str(data), "--rounds", "1", "--hours", "1", *arguments]
    )


def test_the_command_prints_the_same_figures_twice(data: Path) -> None:
    done = _invoke(data, "--json", "--seed", "3")
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.output)
    assert {(one["kind"], one["size"]) for one in result["together"]} == {(one.kind, one.size) for one in SIZES}
    assert result["systems"]["shop"]["quiet_days"] > 0
    assert json.loads(_invoke(data, "--json", "--seed", "3").output) == result


def test_the_command_prints_what_each_part_adds(data: Path) -> None:
    done = _invoke(data, "--kind", "errors", "--without", "each")
    assert done.exit_code == 0, done.output
    for name in PARTS:
        assert f"\n{name} " in done.output
    assert "errors        +50 points" in done.output
    assert "new edge" not in done.output


def test_settings_that_hold_back_everything_hold_back_everything(data: Path) -> None:
    done = _invoke(data, "--json", "--kind", "new port", "--set", "learning_windows=100000")
    assert done.exit_code == 0, done.output
    result = json.loads(done.output)
    assert [one["recall"] for one in result["together"]] == [0, 0, 0]
    assert result["systems"]["shop"]["false_alarms_by_kind"] == {}


def test_a_folder_without_recordings_is_named_in_one_line(tmp_path: Path) -> None:
    done = _invoke(tmp_path)
    assert done.exit_code != 0
    assert isinstance(done.exception, SystemExit | ConfigurationError)
