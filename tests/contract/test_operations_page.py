"""docs/operations.md and the alert rules speak of what there is: metrics, settings, states, exit codes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.serving import EXIT_UNFINISHED
from schemas.settings import Settings
from streams.clock import SystemClock
from streams.health import State
from streams.metrics import Metrics
from streams.observe import WorkerStates
from streams.standing import Standing

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]


def families() -> list[Any]:
    """Return every metric that a worker can show."""
    metrics = Metrics()
    states = WorkerStates(Standing(SystemClock()))
    metrics.registry.register(states)
    return [*metrics.registry.collect()]


def exposed_names() -> dict[str, str]:
    """Return the name each metric has for Prometheus, and its help."""
    suffix = {"counter": "_total", "gauge": "", "histogram": ""}
    return {family.name + suffix[family.type]: family.documentation for family in families()}


def sample_names() -> set[str]:
    parts = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + part for family in families() for part in parts[family.type]}


def test_the_page_lists_every_metric_with_its_help_and_no_other() -> None:
    listed = dict(re.findall(r"^\| `(drift_[a-z_]+)`(?: [^|]*)? \| (.+?) \|$", PAGE, flags=re.MULTILINE))
    assert listed == exposed_names()


def test_every_metric_of_an_alert_exists() -> None:
    used = {name for rule in ALERTS for name in re.findall(r"\bdrift_[a-z_]+", rule["expr"])}
    assert used <= sample_names()
    assert len(used) >= 15


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "action"}
    assert rule["expr"].count("(") == rule["expr"].count(")")
    mentioned = re.findall(r"\bdrift_[a-z_]+", rule["annotations"]["action"])
    assert set(mentioned) <= sample_names() | set(exposed_names())


def test_alerts_have_names_of_their_own_and_the_page_has_them_all() -> None:
    names = [rule["alert"] for rule in ALERTS]
    assert len(set(names)) == len(names)
    assert set(re.findall(r"^\| `(Drift[A-Za-z]+)`", PAGE, flags=re.MULTILINE)) == set(names)


def test_the_page_names_real_settings() -> None:
    models = {name: type(getattr(Settings(), name)) for name in ("worker", "kafka", "topics", "clickhouse")}
    named = set(re.findall(r"`(worker|kafka|topics|clickhouse)\.([a-z_]+)`", PAGE))
    assert {f"{part}.{name}" for part, name in named if name not in models[part].model_fields} == set()
    assert {"grace_ms", "metrics_port", "metrics_host", "hold_above_ms"} <= {name for _, name in named}


def test_the_page_tells_every_state_of_readiness_and_the_exit_code() -> None:
    assert set(re.findall(r"^\| `([a-z-]+)` \| (?:200|503) ", PAGE, flags=re.MULTILINE)) == {s.value for s in State}
    assert f"| {EXIT_UNFINISHED} |" in PAGE
