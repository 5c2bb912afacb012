"""Query parameters: times, cursors, and the refusal of those that no route knows. Pure but for the request."""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from fastapi.dependencies.models import Dependant
from starlette.requests import HTTPConnection

from api.problems import Problem, invalid_parameter
from schemas.ids import stable_hash

MAX_TIME_MS = 1 << 43
TIME_HELP = (
    "ISO 8601 with a time zone (`2026-01-31T12:00:00Z`), epoch milliseconds, or an age (`-30s`, `-15m`, `-1h`, `-7d`). "
    "An age counts back from the end of the tenant's newest closed window, so it works alike on live data and replays."
)
_AGE = re.compile(r"-(\d{1,6})(s|m|h|d)")
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TIME_MESSAGE = "use ISO 8601 with a time zone, epoch milliseconds, or an age such as -1h"

Since = Annotated[str | None, Query(description=f"Start, inclusive. {TIME_HELP}", examples=["-1h"])]
Until = Annotated[str | None, Query(description=f"End, exclusive. {TIME_HELP}", examples=["2026-01-31T12:00:00Z"])]
Lane = Annotated[str | None, Query(description="Lane of the flows.", max_length=256, examples=["default"])]
Service = Annotated[str | None, Query(description="Service by name.", max_length=256, examples=["shop/cart"])]
CursorText = Annotated[
    str | None, Query(alias="cursor", description="`next_cursor` of the page before.", max_length=2048)
]


def is_age(text: str | None) -> bool:
    """Say whether a time needs the newest window to be resolved."""
    return text is not None and _AGE.fullmatch(text) is not None


def parse_time(name: str, text: str, newest_ms: int) -> int:
    """Return epoch ms. ``newest_ms``: what ages count back from.

    Raises:
        Problem: 422 if ``text`` is no time, has no time zone, or lies before 1970 or after 2248.
    """
    if age := _AGE.fullmatch(text):
        return max(newest_ms - int(age[1]) * _UNIT_MS[age[2]], 0)
    if re.fullmatch(r"\d{1,16}", text, re.ASCII):
        if 8 <= len(text) <= 10:
            raise invalid_parameter(name, "this looks like seconds or a date; a number is taken as milliseconds")
        value = int(text)
    else:
        try:
            # An unescaped "+" of a time zone arrives as a space.
            moment = datetime.fromisoformat(re.sub(r" (\d\d:?\d\d)$", r"+\1", text))
            if moment.tzinfo is None:
                raise invalid_parameter(name, "the time has no time zone: append Z for UTC")
            value = int(moment.timestamp() * 1000)
        except (ValueError, OverflowError):
            raise invalid_parameter(name, _TIME_MESSAGE) from None
    if not 0 <= value <= MAX_TIME_MS:
        raise invalid_parameter(name, "the time lies before 1970 or after 2248")
    return value


def encode_cursor(query: dict[str, Any], position: list[Any]) -> str:
    """Return an opaque cursor for the rows after ``position`` of ``query``."""
    body = json.dumps([stable_hash(json.dumps(query, sort_keys=True)), position], separators=(",", ":"))
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def decode_cursor(query: dict[str, Any], text: str | None, kinds: tuple[type, ...]) -> list[Any] | None:
    """Return the position in a cursor, or ``None`` for the first page. ``kinds``: types of its parts.

    A forged cursor moves the position alone; whose rows are read never depends on it.

    Raises:
        Problem: 422 if it is none of ours or belongs to other filters.
    """
    if text is None:
        return None
    try:
        seal, position = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        is_ours = len(position) == len(kinds) and all(type(p) is k for p, k in zip(position, kinds, strict=True))
    except (binascii.Error, ValueError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise invalid_parameter("cursor", "use next_cursor of the page before as it is")
    if seal != stable_hash(json.dumps(query, sort_keys=True)):
        raise invalid_parameter("cursor", "it belongs to other filters: start again without it")
    if any(isinstance(part, int) and not 0 <= part <= MAX_TIME_MS for part in position):
        raise invalid_parameter("cursor", "use next_cursor of the page before as it is")
    return list(position)


def _query_fields(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    for field in dependant.query_params:
        yield field.alias, "list" in str(field.field_info.annotation)
    for below in dependant.dependencies:
        yield from _query_fields(below)


def refuse_unknown_parameters(request: HTTPConnection) -> None:
    """Refuse query parameters that the route does not know, and repeated ones that it takes once.

    A misspelt filter would otherwise be ignored in silence and the answer read as the filtered one.

    Raises:
        Problem: 422 that names the parameter and those that exist.
    """
    known = dict(_query_fields(request.scope["route"].dependant))
    errors = []
    for name in dict.fromkeys(request.query_params.keys()):
        if name not in known:
            errors.append((name[:64], f"unknown; this path knows {', '.join(sorted(known)) or 'none'}"))
        elif not known[name] and len(request.query_params.getlist(name)) > 1:
            errors.append((name, "given more than once"))
    if errors:
        detail = "; ".join(f"{name}: {message}" for name, message in errors)
        raise Problem(422, "invalid-parameter", "A parameter cannot be used", detail, errors)
