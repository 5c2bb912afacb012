"""`drift evaluate incidents` on a small recorded day that the test makes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from deploy.cli import cli
from deploy.fault_recordings.days import read_days
from deploy.fault_recordings.figures import figures_of

START_S = 1_700_000_040  # a whole minute
FAULTS = {40: ("cpu_contention", "cart"), 50: ("return", "ads")}
"""By the minute in which a fault begins, for three minutes."""


def write_day(folder: Path, factor: float = 20.0, minutes: int = 60) -> Path:
    """Write a system whose calls to `cart` take ``factor`` times as long in the first fault."""
    rng = np.random.default_rng(5)
    columns: dict[str, list[Any]] = {name: [] for name in ("ts_us", "src", "dst", "op", "client_us", "trace")}
    for minute in range(minutes):
        for number, at_s in enumerate(np.sort(rng.uniform(0, 60, 30)).tolist()):
            slow = factor if 40 <= minute < 43 else 1.0
            for src, dst, usual_us in (("_user", "web", 30_000), ("web", "cart", 5_000 * slow), ("web", "ads", 8_000)):
                took_us = int(usual_us * float(rng.lognormal(0, 0.2)))
                row = (int((START_S + minute * 60 + at_s) * 1e6), src, dst, "get", took_us, f"{minute}-{number}")
                for name, value in zip(columns, row, strict=True):
                    columns[name].append(value)
    pq.write_table(pa.table(columns), folder / "shop_calls_2023-11-14.parquet")
    cases = [
        {
            "case": f"shop_{minute}",
            "system": "shop",
            "day": "2023-11-14",
            "inject_ts": START_S + minute * 60,
            "duration_s": 180,
            "fault": fault,
            "root_cause": service,
        }
        for minute, (fault, service) in FAULTS.items()
    ]
    (folder / "nezha_cases.json").write_text(json.dumps(cases))
    return folder


def test_a_fault_is_found_and_quiet_minutes_are_counted(tmp_path: Path) -> None:
    (day,) = read_days(write_day(tmp_path))
    figures = figures_of(day, seed=7, hours=1, thresholds={})
    for run in (figures.as_recorded, figures.after_a_day):
        assert (run.kinds["cpu_contention"].found, run.kinds["cpu_contention"].delay_windows_max) == (1, 1)
        assert (run.families["code"].recall, run.families["all"].faults) == (0.0, 2)
        assert (run.false_alarms, run.missed) == (0, ())
    # Sixty minutes, but for ten that only teach, and for two faults of three minutes and one in which each wears off.
    assert figures.as_recorded.fault_free_minutes == 60 - 10 - 2 * 4
    assert figures.after_a_day.fault_free_minutes == 60 - 2 * 4
    assert figures.judged_days == pytest.approx(50 / 1440)


def test_what_is_not_slower_is_missed(tmp_path: Path) -> None:
    (day,) = read_days(write_day(tmp_path, factor=1.0))
    figures = figures_of(day, seed=7, hours=1, thresholds={})
    assert figures.after_a_day.families["resource"].recall == 0.0
    assert figures.after_a_day.missed == ("cpu_contention@cart",)


def test_the_same_seed_gives_the_same_figures_and_another_another_day(tmp_path: Path) -> None:
    (day,) = read_days(write_day(tmp_path))
    loud = {"z_threshold": 1.0, "min_effect_ratio": 1.0, "min_latency_shift_us": 0}
    first, again, other = (figures_of(day, seed, 1, loud) for seed in (7, 7, 8))
    assert first == again
    assert first.false_alarms > 0
    assert first.false_alarms_per_day == pytest.approx(first.false_alarms / first.judged_days)
    assert first.as_recorded == other.as_recorded, "nothing is drawn there"
    assert first.false_alarms_by_kind != other.false_alarms_by_kind


def test_the_command_prints_figures_and_json(tmp_path: Path) -> None:
    write_day(tmp_path)
    command = ["evaluate", "incidents", "--dataset", "nezha", "--data", str(tmp_path), "--hours", "1"]
    table = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert "shop 2023-11-14" in table.output
    assert "cpu_contention" in table.output
    made = json.loads(CliRunner().invoke(cli, [*command, "--json"], catch_exceptions=False).output)
    assert made["systems"]["shop 2023-11-14"]["after_a_day"]["families"]["resource"]["recall"] == 1.0
