"""What every request and answer gets: limits of time and size, a request id, headers, and a problem for a stack.

Pure ASGI.
"""

import asyncio
import contextlib
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import MEDIA_TYPE, Problem, internal_error, problem_body
from schemas.settings import ApiSettings, LimitSettings

log = logging.getLogger("api")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HSTS = "max-age=31536000; includeSubDomains"
LIVE = ("/v1/live/events", "/v1/live/socket")
"""Paths whose answers go on for as long as the client stays; they bound themselves."""
PREDICTIONS = "/v1/predictions"
"""The path whose requests hold manifests."""
LINGER_S = 5.0
"""How long a sender whose body is refused may pause until its connection ends."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})


class Envelope:
    """Wraps the whole application.

    ``X-Request-Id`` is taken over if it is plain, else made. A request for a host by another name than those allowed is
    refused: a web page could otherwise reach this API through a name that it points here.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        own = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._hosts = LOOPBACK_HOSTS | {name.lower() for name in (own, *settings.allowed_hosts)}
        self._headers = dict(SECURITY_HEADERS)
        if settings.is_behind_tls:
            self._headers["Strict-Transport-Security"] = HSTS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id
        is_started = False

        async def send_wrapped(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "websocket.accept":
                is_started = True
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                is_started = True
                answer = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    answer.setdefault(name, value)  # an answer with an ETag says itself who may keep it
                answer["X-Request-Id"] = request_id
            await send(message)

        if not self._is_allowed(headers.getlist("host")):
            detail = "Ask for 127.0.0.1 or localhost, or have the operator name this host in api.allowed_hosts."
            problem = Problem(421, "host-not-allowed", "Host not allowed", detail)
            await _send_problem(problem, scope, send_wrapped)
            return
        try:
            await self._app(scope, receive, send_wrapped)
        except Exception as error:
            if is_started:
                log.exception("request %s to %s failed", request_id, _plain(scope["path"]))
                raise
            if not isinstance(error, Problem):
                log.exception("request %s to %s failed", request_id, _plain(scope["path"]))
            await _send_problem(error if isinstance(error, Problem) else internal_error(), scope, send_wrapped)

    def _is_allowed(self, hosts: list[str]) -> bool:
        if len(hosts) != 1:
            return False
        host = hosts[0]
        name = host.rsplit(":", 1)[0] if re.search(r":\d*$", host) else host
        return name.lower() in self._hosts


class Bounds:
    """Reads a request's body before the application sees it, and ends what takes too long.

    A body over the limit is refused (413) before it is read, or as soon as it is over; one that does not come in time
    too (408). What has not been answered within ``request_timeout_s`` is given up (504), slow readers included.
    """

    def __init__(self, app: ASGIApp, settings: LimitSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = self._settings
        most_bytes = limits.prediction_bytes if scope["path"] == PREDICTIONS else limits.body_bytes
        try:
            body = await self._body(Headers(scope=scope), receive, most_bytes)
        except _TooLarge as refused:
            await self._refuse(refused, scope, receive, send)
            return
        is_given, is_started = False, False

        async def receive_whole() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send_noted(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            async with asyncio.timeout(None if scope["path"] in LIVE else limits.request_timeout_s) as limit:
                await self._app(scope, receive_whole, send_noted)
        except TimeoutError:
            if is_started or not limit.expired():
                raise
            detail = f"There was no answer within {self._settings.request_timeout_s:g} s. Ask for less."
            raise Problem(504, "request-timeout", "The request took too long", detail) from None

    async def _body(self, headers: Headers, receive: Receive, most_bytes: int) -> bytes:
        announced = headers.get("content-length")
        if announced is None and "transfer-encoding" not in headers:
            return b""
        if announced is not None and announced.isdecimal() and int(announced) > most_bytes:
            raise _TooLarge(most_bytes)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most_bytes:
                        raise _TooLarge(most_bytes)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            detail = f"The body was not there within {self._settings.body_timeout_s:g} s."
            headers_out = {"Connection": "close"}
            raise Problem(408, "body-timeout", "The request came too slowly", detail, headers=headers_out) from None
        return b"".join(parts)

    async def _refuse(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and read on for a while before the connection ends.

        Many clients read no answer before they have sent everything, and a connection that is closed with bytes unread
        is reset, which takes the answer from them (RFC 9112, 9.6).
        """
        is_held_back = Headers(scope=scope).get("expect", "").lower() == "100-continue"  # it waits to be told to send

        async def send_then_read(message: Message) -> None:
            if message["type"] != "http.response.body" or is_held_back:
                await send(message)
                return
            await send({**message, "more_body": True})
            await _discard(receive, self._settings.body_timeout_s)
            await send({"type": "http.response.body", "body": b""})

        await _send_problem(problem, scope, send_then_read)


async def _discard(receive: Receive, within_s: float) -> None:
    """Read the rest of a body and forget it; give up when its sender pauses for long, or sends for longer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                async with asyncio.timeout(LINGER_S):
                    message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


class _TooLarge(Problem):
    def __init__(self, most_bytes: int) -> None:
        detail = f"A request may have {most_bytes} bytes."
        super().__init__(413, "body-too-large", "The request is too large", detail, headers={"Connection": "close"})


def _plain(path: str) -> str:
    """Return a path for the log: one line, whatever was asked for."""
    return repr(path[:200])


async def _send_problem(problem: Problem, scope: Scope, send: Send) -> None:
    body = problem_body(problem, scope["path"], scope["request_id"])
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    prefix = ""
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": problem.name})
            return
        prefix = "websocket."
    await send({"type": f"{prefix}http.response.start", "status": problem.status, "headers": headers})
    await send({"type": f"{prefix}http.response.body", "body": body})
