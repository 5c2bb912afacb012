"""What every answer gets: a request id, security headers, and a problem instead of a stack. Pure ASGI."""

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import MEDIA_TYPE, Problem, internal_error, problem_body

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
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})


class Envelope:
    """Wraps the whole application.

    ``X-Request-Id`` is taken over if it is plain, else made. A request for a host other than loopback is refused:
    without authentication, a web page could otherwise read this API through a name that it points at 127.0.0.1.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = request_id
        is_started = False

        async def send_wrapped(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                answer = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    answer[name] = value
                answer["X-Request-Id"] = request_id
            await send(message)

        if not _is_loopback(headers.get("host", "")):
            problem = Problem(421, "host-not-allowed", "Host not allowed", "Ask for 127.0.0.1 or localhost.")
            await _send_problem(problem, scope, send_wrapped)
            return
        try:
            await self._app(scope, receive, send_wrapped)
        except Exception:
            log.exception("request %s to %s failed", request_id, scope["path"])
            if is_started:
                raise
            await _send_problem(internal_error(), scope, send_wrapped)


def _is_loopback(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if re.search(r":\d*$", host) else host
    return name.lower() in LOOPBACK_HOSTS


async def _send_problem(problem: Problem, scope: Scope, send: Send) -> None:
    body = problem_body(problem, scope["path"], scope["request_id"])
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
