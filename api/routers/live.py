"""Drift events as they happen: server-sent events for programs and pages, a WebSocket for those that have one.

Each is of one tenant, that of the credential, which is looked at again for as long as the stream goes on.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Header, Query, WebSocket
from fastapi.responses import StreamingResponse
from starlette.requests import HTTPConnection

from api.dependencies import LivePrincipal, RepositoryOf
from api.event_filters import member_of
from api.live.hub import CREDENTIAL, GAP, GONE, SLOW, STOP, Hub, LiveItem, Subscription, Wants
from api.live.stream import BEHIND, LiveStream, Message
from api.parameters import Lane, Service
from api.problems import RESPONSES, Problem
from schemas.drift import DriftEvent, DriftKind, Severity

router = APIRouter(tags=["live"], responses=RESPONSES)

PROTOCOL = "drift.v1"
RECONNECT_MS = 3_000
_CLOSE_CODES = {SLOW: 1013, CREDENTIAL: 1008, GAP: 1012, STOP: 1001, BEHIND: 1013, GONE: 1000}
"""RFC 6455, section 7.4: try again later, policy, service restart, going away, normal."""

LastId = Annotated[
    str | None,
    Query(max_length=64, description="Go on behind this event.", examples=["3f0d6c1b9a2e4d5f8c7b6a5948372615"]),
]


def live_filter(
    kind: Annotated[list[DriftKind] | None, Query(description="Kinds; repeat for several.")] = None,
    min_severity: Annotated[str | None, Query(description="At least this.", examples=["medium"])] = None,
    service: Service = None,
    lane: Lane = None,
    is_alert: Annotated[bool | None, Query(description="Only those inside (true) or outside the alert budget.")] = None,
) -> Wants:
    """Return which events a client wants.

    Raises:
        Problem: 422 if the severity is none.
    """
    kinds = frozenset(kind or ())
    least = member_of("min_severity", Severity, min_severity or "informational")

    def wants(event: DriftEvent) -> bool:
        return (
            (not kinds or event.kind in kinds)
            and event.severity >= least
            and (lane is None or event.lane == lane)
            and (is_alert is None or event.is_alert is is_alert)
            and (service is None or _concerns(event, service))
        )

    return wants


def _concerns(event: DriftEvent, service: str) -> bool:
    return service in (event.src, event.dst) or any(service in (edge.src, edge.dst) for edge in event.edges)


async def live_place(
    connection: HTTPConnection, principal: LivePrincipal, wants: Annotated[Wants, Depends(live_filter)]
) -> AsyncIterator[tuple[Hub, Subscription, dict[str, LiveItem]]]:
    """Hold a place among the tenant's live clients until the answer is through.

    Raises:
        Problem: 429 there is none; 503 the topic is not read.
    """
    hub: Hub = connection.app.state.hub
    subscription, held = hub.subscribe(principal, wants)
    try:
        yield hub, subscription, held
    finally:
        hub.unsubscribe(subscription)


Place = Annotated[tuple[Hub, Subscription, dict[str, LiveItem]], Depends(live_place)]


@router.get(
    "/live/events",
    summary="Drift events as they happen",
    response_class=StreamingResponse,
    openapi_extra={"security": [{"bearer": []}, {"apiKey": []}]},
    responses={
        200: {
            "description": "Server-sent events: `drift` with its id, `reset` (events may be missing) and `end` with a "
            "reason.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def follow_events(
    principal: LivePrincipal,
    repository: RepositoryOf,
    place: Place,
    last_event_id: LastId = None,
    resume: Annotated[
        str | None, Header(alias="Last-Event-ID", max_length=64, description="As `last_event_id`; this one holds.")
    ] = None,
) -> StreamingResponse:
    """Send each drift event of the tenant once it is on `drift-events`; what was missed behind the last one seen first.

    A client that reads too slowly is ended with the reason `slow`, one whose credential has ended with `credential`:
    come back with the id of the last event seen. `/v1/live/socket` is the same as a WebSocket.
    """
    stream = LiveStream(*place, repository, principal.tenant)
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(_lines(stream, resume or last_event_id), media_type="text/event-stream", headers=headers)


async def _lines(stream: LiveStream, last_id: str | None) -> AsyncIterator[str]:
    yield f"retry: {RECONNECT_MS}\n\n"
    async for message in stream.messages(last_id):
        yield _line(message)


def _line(message: Message) -> str:
    """Return one server-sent event (HTML Living Standard, section 9.2)."""
    if message.item is not None:
        return f"id: {message.item.id}\nevent: drift\ndata: {message.item.json()}\n\n"
    if message.kind == "ping":
        return ": ping\n\n"
    return f"event: {message.kind}\ndata: {json.dumps({'reason': message.reason})}\n\n"


def check_origin(websocket: WebSocket) -> None:
    """Refuse web pages of origins that may not call the API: browsers ask nobody before they open a WebSocket.

    Raises:
        Problem: 403.
    """
    origin = websocket.headers.get("origin")
    allowed: tuple[str, ...] = websocket.app.state.cors_origins
    if origin is not None and origin not in allowed and urlsplit(origin).netloc != websocket.headers.get("host"):
        raise Problem(403, "origin-not-allowed", "Not allowed", "Name this page's origin in api.cors_origins.")


@router.websocket("/live/socket", dependencies=[Depends(check_origin)])
async def follow_by_socket(
    websocket: WebSocket,
    principal: LivePrincipal,
    repository: RepositoryOf,
    place: Place,
    last_event_id: LastId = None,
) -> None:
    """Send what `/v1/live/events` sends as JSON texts: ``type``, and ``id`` and ``event``, or ``reason``."""
    offered = websocket.scope.get("subprotocols", [])
    try:
        await websocket.accept(PROTOCOL if PROTOCOL in offered else None)
    except OSError:
        return  # it went while it was let in
    subscription = place[1]
    listener = asyncio.create_task(_until_gone(websocket))
    listener.add_done_callback(lambda _: subscription.finish(GONE))
    try:
        async for message in LiveStream(*place, repository, principal.tenant).messages(last_event_id):
            if subscription.end == GONE:
                break
            if message.kind != "ping":  # the server has pings of its own
                await websocket.send_text(_text(message))
            if message.kind == "end":
                await websocket.close(_CLOSE_CODES.get(message.reason, 1000), message.reason)
    except OSError:
        return  # the client went while something was sent
    except RuntimeError:
        if not subscription.end:  # starlette says it so where the end was seen first
            raise
    finally:
        listener.cancel()


async def _until_gone(websocket: WebSocket) -> None:
    """Return when the client leaves, or says anything: there is nothing to say here."""
    await websocket.receive()


def _text(message: Message) -> str:
    if message.item is not None:
        return f'{{"type": "event", "id": "{message.item.id}", "event": {message.item.json()}}}'
    return json.dumps({"type": message.kind, "reason": message.reason})
