"""Findings against incidents that are known."""

from typing import Any

import msgspec

from models.drift.labelled import DAY_MS, judge_findings
from schemas.drift import Activity, DriftEvent, DriftKind, EdgeRef
from schemas.labelled import LabelledIncident, LabelledReport
from tests.builders_clickhouse import make_event

WINDOW_MS = 60_000


def at(window: int, src: str = "web", dst: str = "db", name: str = "", **changes: Any) -> DriftEvent:
    """Return an event of a finding on an edge in a window; the same ``name`` is the same finding."""
    changes = {"kind": DriftKind.ERROR_INCREASE, "edges": (EdgeRef(src, dst),), **changes}
    event = make_event(**{**changes, "src": src, "dst": dst, "window_start_ms": window * WINDOW_MS})
    return msgspec.structs.replace(event, finding_id=name or f"{src}-{dst}-{window}")


def incident(first: int, last: int, **changes: Any) -> LabelledIncident:
    """Return one that lasts from the middle of a window to the middle of another."""
    values = {"services": ("db",), "kind": "errors", **changes}
    half_ms = WINDOW_MS // 2
    return LabelledIncident(f"i{first}", first * WINDOW_MS + half_ms, last * WINDOW_MS + half_ms, **values)


def judged(
    events: list[DriftEvent], *incidents: LabelledIncident, windows: int = 100, learning: int = 10
) -> LabelledReport:
    starts = [n * WINDOW_MS for n in range(windows)]
    return judge_findings(events, starts, starts[:learning], incidents, WINDOW_MS)


def test_an_incident_is_shown_by_a_finding_of_its_services_in_its_time() -> None:
    report = judged([at(20)], incident(20, 22))
    (one,) = report.incidents
    assert (report.recall, one.delay_windows, one.finding_kind) == (1.0, 1, "error_increase")
    assert judged([at(22)], incident(20, 22)).incidents[0].delay_windows == 3
    assert judged([at(24)], incident(20, 22)).recall == 1.0, "within the grace"
    assert judged([at(25)], incident(20, 22)).recall == 0.0
    assert judged([at(19)], incident(20, 22)).recall == 0.0


def test_what_touches_nothing_of_it_shows_it_not_and_is_no_false_alarm() -> None:
    report = judged([at(20, "a", "b")], incident(20, 22))
    assert (report.recall, report.false_alarms) == (0.0, 0)
    assert judged([at(20, "a", "b")], incident(20, 22, services=())).recall == 1.0, "nothing is known of what it hit"
    by_edge = incident(20, 22, services=(), edges=(("web", "db"),))
    assert judged([at(20)], by_edge).recall == 1.0
    assert judged([at(20, "db", "web")], by_edge).recall == 0.0


def test_findings_outside_of_all_incidents_are_false_alarms_a_day_of_quiet_time() -> None:
    report = judged([at(40), at(60), at(60, "x", "y"), at(20)], incident(20, 22))
    assert (report.false_alarms, report.false_alarms_by_kind) == (3, {"error_increase": 3})
    # Windows 18 to 24 belong to the incident and its grace, the first ten taught.
    assert report.quiet_windows == 100 - 10 - 7
    assert report.quiet_days == report.quiet_windows * WINDOW_MS / DAY_MS
    assert report.false_alarms_per_day == 3 / report.quiet_days


def test_a_finding_counts_once_and_its_end_not_at_all() -> None:
    life = [
        at(40, name="f"),
        at(41, name="f", activity=Activity.UPDATE),
        at(50, name="f", activity=Activity.CLOSE, close_reason="recovered"),
    ]
    assert judged(life).false_alarms == 1
    late_close = [at(15, name="f"), at(21, name="f", activity=Activity.CLOSE, close_reason="recovered")]
    assert judged(late_close, incident(20, 22)).recall == 0.0


def test_a_finding_that_reaches_into_an_incident_is_no_false_alarm() -> None:
    events = [at(12, name="f"), at(21, name="f", activity=Activity.UPDATE)]
    report = judged(events, incident(20, 22))
    assert (report.recall, report.false_alarms) == (1.0, 0)


def test_incidents_without_traffic_or_while_learning_cannot_be_seen() -> None:
    starts = [n * WINDOW_MS for n in range(10, 30)]
    report = judge_findings([], starts, starts[:5], [incident(2, 4), incident(11, 13), incident(20, 21)], WINDOW_MS)
    assert [one.had_traffic for one in report.incidents] == [False, False, True]
    assert report.recall == 0.0 and report.delay_windows_median == -1.0


def test_kinds_are_told_apart() -> None:
    report = judged([at(20), at(50)], incident(20, 22), incident(50, 52), incident(80, 82, kind="latency"))
    assert report.recall == 2 / 3
    assert report.recall_by_kind == {"errors": 1.0, "latency": 0.0}
    assert (report.delay_windows_median, report.delay_windows_max) == (1.0, 1)


def test_without_quiet_time_there_is_no_rate() -> None:
    report = judge_findings([], [], [], [], WINDOW_MS)
    assert (report.false_alarms_per_day, report.quiet_windows, report.recall) == (-1.0, 0, 0.0)
