"""Which drift events a request asks for: the query parameters that list, export, summary and timeline share."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query

from api.parameters import MAX_TIME_MS, Lane, Service, Since, Until, is_age, parse_time
from api.problems import invalid_parameter
from api.repository import EventFilter, Repository
from schemas.drift import Activity, DriftKind, Severity
from schemas.ids import TenantId

_Member = TypeVar("_Member", Severity, Activity)
_SEVERITIES = ", ".join(one.name.lower() for one in Severity)
_ACTIVITIES = ", ".join(one.name.lower() for one in Activity)


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Filters as they were asked for; ages are not resolved yet."""

    kinds: tuple[DriftKind, ...]
    severities: tuple[Severity, ...]
    least_severity: Severity
    activities: tuple[Activity, ...]
    service: str
    incident: str
    text: str
    lane: str
    is_alert: bool | None
    since: str | None
    until: str | None

    @property
    def key(self) -> dict[str, Any]:
        """Return what a cursor belongs to."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "kinds": sorted(self.kinds),
            "severities": sorted(self.severities),
            "activities": sorted(self.activities),
        }

    async def times(
        self, repository: Repository, tenant: TenantId, since: str | None = None, until_ms: int = MAX_TIME_MS
    ) -> tuple[int, int]:
        """Return the range asked for. ``since``, ``until_ms``: where the request names none.

        Raises:
            Problem: 422 if a time is none.
        """
        start, end = self.since if self.since is not None else since, self.until
        newest_ms = await repository.newest_ms(tenant, self.lane) if is_age(start) or is_age(end) else 0
        since_ms = parse_time("since", start, newest_ms) if start is not None else 0
        return since_ms, parse_time("until", end, newest_ms) if end is not None else until_ms

    def within(self, since_ms: int, until_ms: int, after: tuple[int, str] | None = None) -> EventFilter:
        """Return the filter over a range; ``after``: time and id of the last event of the page before."""
        return EventFilter(
            since_ms=since_ms,
            until_ms=until_ms,
            lane=self.lane,
            kinds=self.kinds,
            severities=self.severities,
            least_severity=self.least_severity,
            activities=self.activities,
            service=self.service,
            incident=self.incident,
            text=self.text,
            is_alert=self.is_alert,
            after=after,
        )


def event_query(
    kind: Annotated[list[DriftKind] | None, Query(description="Kinds; repeat for several.")] = None,
    severity: Annotated[
        list[str] | None, Query(description=f"Exactly these ({_SEVERITIES}); repeat for several.", examples=[["high"]])
    ] = None,
    min_severity: Annotated[
        str | None, Query(description=f"At least this ({_SEVERITIES}).", examples=["medium"])
    ] = None,
    activity: Annotated[
        list[str] | None, Query(description=f"{_ACTIVITIES}; repeat for several.", examples=[["create"]])
    ] = None,
    service: Service = None,
    incident: Annotated[
        str | None,
        Query(description="Incident by id.", max_length=64, examples=["aa11bb22cc33dd44ee55ff6600778899"]),
    ] = None,
    text: Annotated[
        str | None,
        Query(
            description="Is in the title, the message or a service's name; upper and lower case are alike.",
            max_length=256,
            examples=["payment"],
        ),
    ] = None,
    lane: Lane = None,
    is_alert: Annotated[bool | None, Query(description="Only those inside (true) or outside the alert budget.")] = None,
    since: Since = None,
    until: Until = None,
) -> EventQuery:
    """Return the filters of a request.

    Raises:
        Problem: 422 if a severity or an activity is none.
    """
    return EventQuery(
        kinds=tuple(kind or ()),
        severities=tuple(member_of("severity", Severity, name) for name in severity or ()),
        least_severity=member_of("min_severity", Severity, min_severity or "informational"),
        activities=tuple(member_of("activity", Activity, name) for name in activity or ()),
        service=service or "",
        incident=incident or "",
        text=text or "",
        lane=lane or "",
        is_alert=is_alert,
        since=since,
        until=until,
    )


Events = Annotated[EventQuery, Depends(event_query)]


def member_of(name: str, members: type[_Member], text: str) -> _Member:
    """Return a member by its name in lower case.

    Raises:
        Problem: 422 if there is none.
    """
    try:
        return members[text.upper()]
    except KeyError:
        known = ", ".join(one.name.lower() for one in members)
        raise invalid_parameter(name, f"use one of {known}") from None
