"""Every error the API answers: application/problem+json (RFC 9457), without a word about what is inside."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.websockets import WebSocket

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:secureguard-drift:problem:"
RETRY_AFTER_S = "5"


class ParameterError(BaseModel):
    """One parameter that cannot be used."""

    name: str = Field(examples=["since"])
    message: str = Field(examples=["use ISO 8601 with a time zone, epoch milliseconds, or an age such as -1h"])


class ProblemOut(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(description="Stable name of the problem, a URN.", examples=[TYPE_PREFIX + "invalid-parameter"])
    title: str = Field(examples=["A parameter cannot be used"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["since: use ISO 8601 with a time zone, epoch milliseconds, or an age such as -1h"])
    instance: str = Field(description="Path of the request.", examples=["/v1/drift-events"])
    request_id: str = Field(description="Also in the X-Request-Id header and in the log.", examples=["5f0c7e2a"])
    errors: list[ParameterError] = Field(default_factory=list)


class Problem(Exception):
    """An answer that is an error. ``name`` is the last part of its type."""

    def __init__(
        self,
        status: int,
        name: str,
        title: str,
        detail: str,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.name, self.title, self.detail = status, name, title, detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


def invalid_parameter(name: str, message: str) -> Problem:
    """Return the 422 of one parameter."""
    return Problem(422, "invalid-parameter", "A parameter cannot be used", f"{name}: {message}", [(name, message)])


def not_found(what: str) -> Problem:
    """Return the 404 of a thing that is not there, or not this tenant's: the two look alike."""
    return Problem(404, "not-found", "Not found", f"{what} does not exist for this tenant.")


def store_unavailable(detail: str) -> Problem:
    """Return the 503 of a ClickHouse that cannot answer now."""
    return Problem(
        503, "store-unavailable", "The store cannot answer now", detail, headers={"Retry-After": RETRY_AFTER_S}
    )


def query_timeout(limit_s: int) -> Problem:
    """Return the 504 of a query that ran into its time limit."""
    return Problem(
        504,
        "query-timeout",
        "The query took too long",
        f"The store did not answer within {limit_s} s. Ask for a shorter range or fewer rows.",
    )


def result_too_large() -> Problem:
    """Return the 422 of a query whose result is over the cap."""
    return Problem(422, "result-too-large", "The result is too large", "Ask for a shorter range or fewer rows.")


def internal_error() -> Problem:
    """Return the 500."""
    return Problem(500, "internal", "Internal error", "The request failed. The log has the cause under the request id.")


def problem_body(problem: Problem, path: str, request_id: str) -> bytes:
    """Return the JSON of a problem."""
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + problem.name,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": path,
        "request_id": request_id,
    }
    if problem.errors:
        body["errors"] = [{"name": name, "message": message} for name, message in problem.errors]
    return json.dumps(body).encode()


def _answer(request: Request, problem: Problem) -> Response:
    body = problem_body(problem, request.url.path, request.scope.get("request_id", ""))
    return Response(body, problem.status, problem.headers, MEDIA_TYPE)


_HTTP_NAMES = {
    400: ("unreadable", "The request cannot be read"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "Method not allowed"),
}


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _answer(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    name, title = _HTTP_NAMES.get(error.status_code, ("http-error", "The request failed"))
    detail = {404: "There is nothing at this path.", 405: "This path does not know this method."}.get(
        error.status_code, title
    )
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _methods_of(request) or headers.get("Allow", "")
    return _answer(request, Problem(error.status_code, name, title, detail, headers=headers))


def _methods_of(request: Request) -> str:
    """Return the methods that the document has for a path: the framework names those of one of its routes alone."""
    state = request.app.state
    if not hasattr(state, "methods_by_path"):
        paths = request.app.openapi()["paths"].items()
        state.methods_by_path = [
            (compile_path(path)[0], ", ".join(sorted(method.upper() for method in item))) for path, item in paths
        ]
    known: list[tuple[re.Pattern[str], str]] = state.methods_by_path
    return next((methods for pattern, methods in known if pattern.match(request.url.path)), "")


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, (RequestValidationError, WebSocketRequestValidationError))
    # The message alone: `input` would send back what was sent, `ctx` and `url` speak of the library.
    # ``loc`` is ("query", name) and, for repeatable parameters, the position.
    errors = [(str(one["loc"][min(1, len(one["loc"]) - 1)]), str(one["msg"])) for one in error.errors()]
    detail = "; ".join(f"{name}: {message}" for name, message in errors)
    return _answer(request, Problem(422, "invalid-parameter", "A parameter cannot be used", detail, errors))


def install_handlers(app: FastAPI) -> None:
    """Make every error of ``app`` a problem. What nobody foresaw is answered by the middleware."""
    app.add_exception_handler(Problem, _for_sockets_too(_on_problem))
    app.add_exception_handler(HTTPException, _for_sockets_too(_on_http_exception))
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(WebSocketRequestValidationError, _for_sockets_too(_on_invalid))


def _for_sockets_too(handler: Callable[[Request, Exception], Awaitable[Response]]) -> Any:
    """Return a handler that also refuses the handshake of a WebSocket."""

    async def handle(connection: Any, error: Exception) -> Response | None:
        answer = await handler(connection, error)
        if not isinstance(connection, WebSocket):
            return answer
        if "websocket.http.response" in connection.scope.get("extensions", {}):
            await connection.send_denial_response(answer)
        else:
            await connection.close(1008)
        return None

    return handle


def _documented(text: str) -> dict[str, Any]:
    return {"model": ProblemOut, "description": text}


ACCESS_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: _documented("The request cannot be read."),
    401: _documented("No credential, or one that proves nothing."),
    403: _documented("The role is missing, or the password must be replaced first."),
    408: _documented("The request's body did not come in time."),
    413: _documented("The request's body is too large."),
    421: _documented("The host is asked for by a name that is not allowed."),
    422: _documented("A parameter is unknown or cannot be used, or the result would be too large."),
    429: _documented("Too many requests; repeat after `Retry-After` seconds."),
    500: _documented("Internal error."),
    503: _documented("Accounts or the store cannot answer now; repeat after `Retry-After` seconds."),
    504: _documented("The request took longer than `api.limits.request_timeout_s`."),
}
RESPONSES: dict[int | str, dict[str, Any]] = ACCESS_RESPONSES | {
    504: _documented("The query took longer than `api.query_timeout_s`."),
}
OPEN_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: ACCESS_RESPONSES[status] for status in (408, 413, 421, 500, 503, 504)
}
"""Of paths that ask for no credential and take no parameter."""
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: _documented("Does not exist, or not for this tenant.")}
CONFLICT: dict[int | str, dict[str, Any]] = {409: _documented("Not possible as things are; the detail says why.")}
