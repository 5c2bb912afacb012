"""The audit log of one's own tenant: for administrators."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.access_bodies import AuditOut, AuditPage
from api.dependencies import AccessOf, Admin, RepositoryOf, admin
from api.parameters import MAX_TIME_MS, CursorText, decode_cursor, encode_cursor, parse_time
from api.problems import RESPONSES

router = APIRouter(tags=["administration"], responses=RESPONSES, dependencies=[Depends(admin)])

MAX_PAGE = 500
_TIME = "ISO 8601 with a time zone, epoch milliseconds, or an age (`-1h`) that counts back from now."


@router.get("/audit-log", summary="Log-ins and changes of accounts and keys")
async def list_audit_log(
    principal: Admin,
    repository: RepositoryOf,
    access: AccessOf,
    action: Annotated[
        str | None, Query(max_length=64, description="Exactly this action.", examples=["session.login"])
    ] = None,
    actor: Annotated[str | None, Query(max_length=256, description="Exactly this one.", examples=["login:ann"])] = None,
    outcome: Annotated[str | None, Query(max_length=64, description="done or refused.", examples=["refused"])] = None,
    since: Annotated[str | None, Query(description=f"Start, inclusive. {_TIME}", examples=["-1d"])] = None,
    until: Annotated[str | None, Query(description=f"End, exclusive. {_TIME}", examples=["-1h"])] = None,
    cursor: CursorText = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Lines a page.")] = 100,
) -> AuditPage:
    """Return what was done, newest first, in pages. A line is there some seconds after what it tells."""
    query: dict[str, Any] = {"action": action, "actor": actor, "outcome": outcome, "since": since, "until": until}
    position = decode_cursor(query, cursor, (int, int, int, str))
    if position is None:
        now_ms = access.now_s() * 1_000
        since_ms = parse_time("since", since, now_ms) if since is not None else 0
        until_ms = parse_time("until", until, now_ms) if until is not None else MAX_TIME_MS
        after = None
    else:
        since_ms, until_ms, after = position[0], position[1], (position[2], position[3])
    rows = await repository.audit_log(
        principal.tenant,
        action=action or "",
        actor=actor or "",
        outcome=outcome or "",
        since_ms=since_ms,
        until_ms=until_ms,
        after=after,
        limit=limit + 1,
    )
    page = rows[:limit]
    is_last = len(rows) <= limit
    return AuditPage(
        records=[AuditOut.model_validate(row) for row in page],
        next_cursor=None if is_last else encode_cursor(query, [since_ms, until_ms, page[-1].time_ms, page[-1].id]),
    )
