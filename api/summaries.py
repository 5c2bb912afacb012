"""The public HTTP contract of counts: summary, timeline, statistics. Times are Unix epoch UTC in milliseconds."""

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from api.buckets import starts_of
from api.repository import EventBucket, EventCount, EventTotals
from schemas.drift import Severity

_BY_KIND = {"latency_increase": 4, "new_edge": 2}
_BY_SEVERITY = {"informational": 0, "low": 1, "medium": 3, "high": 2, "critical": 0}


class EventSummary(BaseModel):
    """Counts of drift events."""

    since_ms: int
    until_ms: int
    events: int
    findings: int = Field(description="Different findings among them.")
    incidents: int
    alerts: int = Field(description="Events inside the alert budget.")
    first_ms: int | None = Field(description="Time of the oldest; null without events.")
    last_ms: int | None
    by_kind: dict[str, int] = Field(examples=[_BY_KIND])
    by_severity: dict[str, int] = Field(examples=[_BY_SEVERITY])
    by_activity: dict[str, int] = Field(examples=[{"create": 3, "update": 2, "close": 1}])


class TimelineBucket(BaseModel):
    """Counts of one span of time."""

    start_ms: int
    events: int
    by_kind: dict[str, int] = Field(description="Kinds that occur.", examples=[_BY_KIND])
    by_severity: dict[str, int] = Field(description="Severities that occur.", examples=[{"high": 2, "low": 1}])


class EventTimeline(BaseModel):
    """Counts of drift events over time, oldest first, empty spans included."""

    since_ms: int
    until_ms: int
    bucket_ms: int
    buckets: list[TimelineBucket]


class LaneStatisticsOut(BaseModel):
    """The closed windows of a lane in the range."""

    model_config = ConfigDict(from_attributes=True)

    lane: str
    generation: int
    windows: int
    incomplete_windows: int = Field(description="Windows that may lack records.")
    learning_windows: int
    most_edges: int = Field(description="Edges of the window that has most.")
    overflow_calls: int
    first_window_ms: int
    last_window_end_ms: int


class OpenFindingsOut(BaseModel):
    """Findings of `lane`, or of all live ones, that are open now, whatever the range."""

    findings: int
    incidents: int
    alerts: int
    worst_severity: str | None


class TenantStatistics(BaseModel):
    """What is stored of the tenant in a range."""

    since_ms: int
    until_ms: int
    services: int = Field(description="Seen in the range, by `lane` or all live ones.")
    external_services: int
    edges: int = Field(description="Different ones, seen in the range by `lane` or all live ones.")
    open: OpenFindingsOut
    drift_events: EventSummary = Field(description="Of the range; without `lane` replays included.")
    lanes: list[LaneStatisticsOut]


def summary_of(since_ms: int, until_ms: int, totals: EventTotals, counts: Sequence[EventCount]) -> EventSummary:
    """Return the summary of counts by kind, severity and activity."""
    kinds, activities = Counter[str](), Counter[str]()
    severities = Counter({severity.name.lower(): 0 for severity in Severity})
    for one in counts:
        kinds[one.kind] += one.events
        severities[one.severity.name.lower()] += one.events
        activities[one.activity.name.lower()] += one.events
    return EventSummary(
        since_ms=since_ms,
        until_ms=until_ms,
        events=totals.events,
        findings=totals.findings,
        incidents=totals.incidents,
        alerts=totals.alerts,
        first_ms=totals.first_ms,
        last_ms=totals.last_ms,
        by_kind=dict(kinds),
        by_severity=dict(severities),
        by_activity=dict(activities),
    )


def timeline_of(since_ms: int, until_ms: int, bucket_ms: int, counts: Sequence[EventBucket]) -> EventTimeline:
    """Return the timeline of counts by bucket, kind and severity."""
    buckets = {
        start_ms: TimelineBucket(start_ms=start_ms, events=0, by_kind={}, by_severity={})
        for start_ms in starts_of(bucket_ms, since_ms, until_ms)
    }
    for one in counts:
        bucket, severity = buckets[one.start_ms], one.severity.name.lower()
        bucket.events += one.events
        bucket.by_kind[one.kind] = bucket.by_kind.get(one.kind, 0) + one.events
        bucket.by_severity[severity] = bucket.by_severity.get(severity, 0) + one.events
    return EventTimeline(since_ms=since_ms, until_ms=until_ms, bucket_ms=bucket_ms, buckets=list(buckets.values()))
