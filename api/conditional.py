"""ETags: an answer that has not changed is not sent again (RFC 9110, section 13). Pure ASGI."""

import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CACHEABLE = "private, no-cache"
"""A client may keep an answer for itself, and asks each time whether it still holds."""
VARY = "Authorization, X-API-Key"
UNCACHED = ("/v1/me", "/v1/accounts", "/v1/api-keys", "/v1/audit-log", "/v1/live")
"""Paths whose answers are kept by nobody: who may do what, and who did; and streams."""


def is_cacheable(method: str, path: str) -> bool:
    """Say whether answers of a path get an ETag."""
    is_kept_out = any(path == one or path.startswith(one + "/") for one in UNCACHED)
    return method == "GET" and path.startswith("/v1/") and not is_kept_out


def etag_of(body: bytes) -> str:
    """Return the strong entity tag of an answer."""
    return f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'


def is_matched(given: list[str], etag: str) -> bool:
    """Say whether ``If-None-Match`` names a tag; weak ones compare alike (RFC 9110, section 8.8.3.2)."""
    tags = [tag.strip().removeprefix("W/") for line in given for tag in line.split(",")]
    return etag in tags or "*" in tags


class Conditional:
    """Gives JSON answers of data an ETag, and answers 304 where the client has it already.

    The answer is still made: what is saved is the way. Whoever may not see it gets no 304, but the refusal.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or not is_cacheable(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist("if-none-match")
        start: Message | None = None

        async def send_tagged(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_json(message):
                start = message
                return
            if start is not None:
                first, start = start, None
                if not message.get("more_body", False):
                    message = _tag(first, message, given)
                await send(first)
            await send(message)

        await self._app(scope, receive, send_tagged)


def _is_json(message: Message) -> bool:
    kind = Headers(raw=message["headers"]).get("content-type", "")
    return message["status"] == 200 and kind.startswith("application/json")


def _tag(start: Message, body: Message, given: list[str]) -> Message:
    """Put the tag into ``start``; return the body, or an empty one where the client has it."""
    headers = MutableHeaders(scope=start)
    etag = etag_of(body.get("body", b""))
    headers["ETag"], headers["Cache-Control"] = etag, CACHEABLE
    headers.add_vary_header(VARY)
    if not is_matched(given, etag):
        return body
    start["status"] = 304
    del headers["content-length"], headers["content-type"]
    return {"type": "http.response.body", "body": b""}
