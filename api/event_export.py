"""Drift events as files: CSV for spreadsheets, JSON lines for programs. Pages are read as they are sent."""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from api.repository import EventFilter, Repository
from api.responses import event_out
from schemas.drift import TECHNIQUES, DriftEvent
from schemas.ids import TenantId

MAX_EVENTS = 100_000
PAGE = 2_000
"""Events held at once."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Encode = Callable[[Sequence[DriftEvent]], str]


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_CELLS: dict[str, Callable[[DriftEvent], Any]] = {
    "event_id": lambda event: event.event_id,
    "finding_id": lambda event: event.finding_id,
    "incident_id": lambda event: event.incident_id,
    "time": lambda event: _time(event.time_ms),
    "lane": lambda event: event.lane,
    "kind": lambda event: event.kind.value,
    "activity": lambda event: event.activity.name.lower(),
    "severity": lambda event: event.severity.name.lower(),
    "risk_score": lambda event: event.risk_score,
    "confidence": lambda event: event.confidence,
    "is_alert": lambda event: str(event.is_alert).lower(),
    "is_early": lambda event: str(event.is_early).lower(),
    "window_start": lambda event: _time(event.window_start_ms),
    "window_end": lambda event: _time(event.window_end_ms),
    "first_seen": lambda event: _time(event.first_seen_ms),
    "src": lambda event: event.src,
    "dst": lambda event: event.dst,
    "port": lambda event: event.port,
    "protocol": lambda event: event.protocol,
    "edges_total": lambda event: event.edges_total,
    "title": lambda event: event.title,
    "message": lambda event: event.message,
    "checks": lambda event: " | ".join(event.checks),
    "technique": lambda event: TECHNIQUES[event.kind].technique_id,
    "close_reason": lambda event: event.close_reason,
}


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: names come from whoever sends flows."""
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)  # RFC 4180: CRLF, quotes doubled
    return text.getvalue()


def csv_header() -> str:
    """Return the line of the columns' names."""
    return _csv([_CELLS])


def as_csv(events: Sequence[DriftEvent]) -> str:
    """Return a line an event (RFC 4180)."""
    return _csv([_cell(cell(event)) for cell in _CELLS.values()] for event in events)


def as_json_lines(events: Sequence[DriftEvent]) -> str:
    """Return a line an event, each as the API answers it."""
    return "".join(json.dumps(event_out(event).model_dump(mode="json")) + "\n" for event in events)


async def pages_of(
    repository: Repository, tenant: TenantId, wanted: EventFilter, limit: int
) -> AsyncIterator[list[DriftEvent]]:
    """Yield at most ``limit`` events, newest first, in pages; events that arrive meanwhile are not among them."""
    left = limit
    while left > 0:
        page = await repository.events(tenant, wanted, min(PAGE, left))
        if page:
            yield page
        if len(page) < min(PAGE, left):
            return
        left -= len(page)
        wanted = replace(wanted, after=(page[-1].time_ms, page[-1].event_id))


async def lines_of(
    first: list[DriftEvent], rest: AsyncIterator[list[DriftEvent]], encode: Encode, head: str = ""
) -> AsyncIterator[str]:
    """Yield the text of an export whose first page has been read."""
    yield head + encode(first)
    async for page in rest:
        yield encode(page)
