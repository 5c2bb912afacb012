"""Known incidents of a stretch of traffic, and how well findings match them."""

import msgspec


class LabelledIncident(msgspec.Struct, frozen=True):
    """Something that is known to have gone wrong. One JSON object a line.

    Attributes:
        start_ms, end_ms: when, Unix epoch in milliseconds, ``end_ms`` exclusive.
        services: services that were affected; empty if only edges, or nothing, is known of it.
        edges: ``[caller, callee]`` pairs that were affected.
        kind: what it was, to report by.
    """

    name: str
    start_ms: int
    end_ms: int
    services: tuple[str, ...] = ()
    edges: tuple[tuple[str, str], ...] = ()
    kind: str = ""


class DetectedIncident(msgspec.Struct, frozen=True):
    """What became of an incident.

    Attributes:
        delay_windows: windows from the one in which it began to the end of the one that first showed it, at least 1;
            -1 if none did.
        finding_id, finding_kind: the first finding of it.
        findings: how many matched.
        had_traffic: a window with traffic closed while it lasted; without one it could not be seen.
    """

    name: str
    kind: str
    delay_windows: int
    finding_id: str
    finding_kind: str
    findings: int
    had_traffic: bool


class LabelledReport(msgspec.Struct, frozen=True):
    """How well findings matched what is known.

    Attributes:
        recall: share of the incidents that some finding showed, of those with traffic.
        recall_by_kind: alike, by kind of incident.
        delay_windows_median, delay_windows_max: of the incidents that were shown; -1 if none was.
        false_alarms: findings outside of every incident. false_alarms_by_kind: alike, by kind of finding.
        quiet_windows: windows with traffic outside of every incident; quiet_days: their time in days.
        false_alarms_per_day: over ``quiet_days``; -1 where there is no such time.
        learning_windows: windows at the start in which nothing could be found; they count as neither.
    """

    incidents: tuple[DetectedIncident, ...]
    recall: float
    recall_by_kind: dict[str, float]
    delay_windows_median: float
    delay_windows_max: int
    false_alarms: int
    false_alarms_by_kind: dict[str, int]
    quiet_windows: int
    quiet_days: float
    false_alarms_per_day: float
    learning_windows: int
