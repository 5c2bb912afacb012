"""Findings against incidents that are known: episode recall, detection delay, false alarms a day. Pure.

A finding shows an incident if it touches one of its services or edges (any, where none is named) and some of its
evidence lies in a window that overlaps the incident, or follows it within the grace: an outage is also told by its end.
A finding that overlaps no incident, with the grace on both sides, whatever it touches, is a false alarm: within one,
consequences elsewhere cannot be told from noise, so they count as neither.
Source of the measures: episode recall as in "point-adjusted" evaluation, but by episode and not by point, which is what
that is criticised for (Kim et al., AAAI 2022, "Towards a Rigorous Evaluation of Time-Series Anomaly Detection").
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from schemas.drift import DriftEvent
from schemas.labelled import DetectedIncident, LabelledIncident, LabelledReport

DAY_MS = 86_400_000


def judge_findings(
    events: Iterable[DriftEvent],
    windows_ms: Sequence[int],
    learning_ms: Sequence[int],
    incidents: Sequence[LabelledIncident],
    window_ms: int,
    grace_windows: int = 2,
    lead_windows: int | None = None,
) -> LabelledReport:
    """Return how findings match incidents.

    Args:
        events: all that was raised, in order; early ones, updates and closes count to their finding.
        windows_ms: starts of the closed windows that had traffic. learning_ms: those of them that only taught.
        grace_windows: how long after an incident a finding may still be of it. lead_windows: how long before it no
            alarm is false, as long by default.
    """
    grace_ms = grace_windows * window_ms
    lead_ms = grace_ms if lead_windows is None else lead_windows * window_ms
    evidence = _evidence_of(events)
    taught = set(learning_ms)
    judged_ms = sorted(set(windows_ms) - taught)
    found = [_detected(one, evidence, judged_ms, window_ms, grace_ms) for one in incidents]
    seen = [one for one in found if one.had_traffic]
    false = [
        first
        for first, starts in evidence.values()
        if not any(_overlaps(start, one, window_ms, lead_ms, grace_ms) for start in starts for one in incidents)
    ]
    quiet = sum(
        not any(_overlaps(start, one, window_ms, lead_ms, grace_ms) for one in incidents) for start in judged_ms
    )
    quiet_days = quiet * window_ms / DAY_MS
    delays = [one.delay_windows for one in seen if one.delay_windows > 0]
    return LabelledReport(
        incidents=tuple(found),
        recall=_share(seen),
        recall_by_kind={kind: _share([o for o in seen if o.kind == kind]) for kind in sorted({o.kind for o in seen})},
        delay_windows_median=float(median(delays)) if delays else -1.0,
        delay_windows_max=max(delays, default=-1),
        false_alarms=len(false),
        false_alarms_by_kind=dict(sorted(Counter(event.kind.value for event in false).items())),
        quiet_windows=quiet,
        quiet_days=quiet_days,
        false_alarms_per_day=len(false) / quiet_days if quiet_days else -1.0,
        learning_windows=len(taught),
    )


def _evidence_of(events: Iterable[DriftEvent]) -> dict[str, tuple[DriftEvent, list[int]]]:
    """Return by finding its first event and the starts of the windows that showed it; its end shows nothing."""
    found: dict[str, tuple[DriftEvent, list[int]]] = {}
    for event in events:
        if not event.close_reason:
            found.setdefault(event.finding_id, (event, []))[1].append(event.window_start_ms)
    return found


def _detected(
    incident: LabelledIncident,
    evidence: dict[str, tuple[DriftEvent, list[int]]],
    windows_ms: Sequence[int],
    window_ms: int,
    grace_ms: int,
) -> DetectedIncident:
    matching = sorted(
        (min(hits), first.finding_id, first)
        for first, starts in evidence.values()
        if _touches(first, incident) and (hits := [s for s in starts if _overlaps(s, incident, window_ms, 0, grace_ms)])
    )
    at_ms, _, first = matching[0] if matching else (0, "", None)
    began_ms = incident.start_ms // window_ms * window_ms
    return DetectedIncident(
        name=incident.name,
        kind=incident.kind,
        delay_windows=(at_ms - began_ms) // window_ms + 1 if first is not None else -1,
        finding_id=first.finding_id if first is not None else "",
        finding_kind=first.kind.value if first is not None else "",
        findings=len(matching),
        had_traffic=any(_overlaps(start, incident, window_ms, 0, 0) for start in windows_ms),
    )


def _overlaps(start_ms: int, incident: LabelledIncident, window_ms: int, before_ms: int, after_ms: int) -> bool:
    return start_ms < incident.end_ms + after_ms and start_ms + window_ms > incident.start_ms - before_ms


def _touches(event: DriftEvent, incident: LabelledIncident) -> bool:
    if not incident.services and not incident.edges:
        return True
    pairs = {(event.src, event.dst)} | {(edge.src, edge.dst) for edge in event.edges}
    names = {name for pair in pairs for name in pair}
    return not names.isdisjoint(incident.services) or not pairs.isdisjoint(incident.edges)


def _share(found: Sequence[DetectedIncident]) -> float:
    return sum(one.delay_windows > 0 for one in found) / len(found) if found else 0.0
