"""What routes are given: the repository, who is asking, and the refusal of those who may not."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection

from api.graph_repository import GraphRepository
from api.problems import Problem
from api.repository import Repository
from api.security.access import Access, Caller, unauthenticated
from api.security.administration import Administration
from api.security.principal import Principal, Refused, Role
from api.security.sessions import Sessions

log = logging.getLogger("api")

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="Access token of `POST /v1/sessions` or of a configured identity provider, or an API key.",
)
_api_key = APIKeyHeader(
    auto_error=False, name="X-API-Key", scheme_name="apiKey", description="API key, as `sgd_<id>_<secret>`."
)


def current_repository(request: HTTPConnection) -> Repository:
    """Return the application's repository."""
    repository: Repository = request.app.state.repository
    return repository


def current_graph_repository(request: Request) -> GraphRepository:
    """Return what reads the graph over ranges, from where the repository reads."""
    return GraphRepository(*current_repository(request).source)


def current_access(request: HTTPConnection) -> Access:
    """Return what decides who gets in."""
    access: Access = request.app.state.access
    return access


AccessOf = Annotated[Access, Depends(current_access)]


def current_caller(request: HTTPConnection) -> Caller:
    """Return where the request comes from."""
    address = request.client.host if request.client is not None else ""
    return Caller(address, request.scope.get("request_id", ""))


CallerOf = Annotated[Caller, Depends(current_caller)]


async def _authenticate(
    connection: HTTPConnection, access: Access, caller: Caller, bearer: str | None, api_key: str | None
) -> Principal:
    """Return who is asking, counted.

    Args:
        bearer, api_key: as read from the headers; ``None`` where they are not there, or of another kind.

    Raises:
        Problem: 401 nobody; 429 too often; 503 it cannot be known now.
    """
    headers = connection.headers
    try:
        if len(headers.getlist("authorization")) + len(headers.getlist("x-api-key")) > 1:
            raise Refused("several credentials")
        if "authorization" in headers and bearer is None:
            raise Refused("another kind of credential")
        principal = await access.authenticate(bearer, api_key)
    except Refused as refused:
        if bearer is not None or "authorization" in headers or "x-api-key" in headers:
            log.info("request %s from %s: %s", caller.request_id, caller.address, refused.reason)
            await access.limits.count_login(caller.address)
        raise unauthenticated() from None
    await access.limits.count_request(principal)
    return principal


async def current_principal(
    request: Request,
    access: AccessOf,
    caller: CallerOf,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    api_key: Annotated[str | None, Depends(_api_key)],
) -> AsyncIterator[Principal]:
    """Return who is asking, and hold their place among the requests under way until the answer is through.

    Raises:
        Problem: 401 nobody; 429 too often; 503 it cannot be known now.
    """
    token = bearer.credentials if bearer is not None else None
    principal = await _authenticate(request, access, caller, token, api_key)
    async with access.limits.turn(principal.tenant):
        yield principal


SOCKET_BEARER = "bearer."
"""Pages cannot give a WebSocket headers: they offer this and their credential as a subprotocol."""


def socket_credential(connection: HTTPConnection) -> str | None:
    """Return the credential among the subprotocols that a WebSocket's client offers.

    Raises:
        Refused: there are several, or one beside a header.
    """
    offered = [one for one in connection.scope.get("subprotocols", []) if one.startswith(SOCKET_BEARER)]
    if not offered:
        return None
    if len(offered) > 1 or "authorization" in connection.headers or "x-api-key" in connection.headers:
        raise unauthenticated()
    return str(offered[0].removeprefix(SOCKET_BEARER))


async def live_principal(connection: HTTPConnection, access: AccessOf, caller: CallerOf) -> Principal:
    """Return who opens a stream, which has places of its own: it is not among the requests under way.

    Raises:
        Problem: 401 nobody; 429 too often; 503 it cannot be known now.
    """
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    bearer = token.strip() or None if scheme.lower() == "bearer" else None
    return await _authenticate(
        connection, access, caller, bearer or socket_credential(connection), connection.headers.get("x-api-key")
    )


PrincipalOf = Annotated[Principal, Depends(current_principal)]


class Needs:
    """A dependency that lets through only who has a role. Every route of ``/v1`` has one, but those that log in."""

    def __init__(self, role: Role, *, may_change_password: bool = False) -> None:
        self.role = role
        self._may_change_password = may_change_password

    def __call__(self, principal: PrincipalOf) -> Principal:
        """Return who is asking.

        Raises:
            Problem: 403.
        """
        if principal.must_change and not self._may_change_password:
            detail = "This password was for one log-in. Replace it: PUT /v1/me/password."
            raise Problem(403, "password-must-change", "Replace the password first", detail)
        if principal.role < self.role:
            name = self.role.name.lower()
            raise Problem(403, "role-missing", "Not allowed", f"This needs the role {name}.")
        return principal


class NeedsLive(Needs):
    """As `Needs`, of who opens a stream."""

    def __call__(
        self,
        principal: Annotated[Principal, Depends(live_principal)],
    ) -> Principal:
        """Return who is asking.

        Raises:
            Problem: 403.
        """
        return super().__call__(principal)


viewer = Needs(Role.VIEWER)
live_viewer = NeedsLive(Role.VIEWER)
LivePrincipal = Annotated[Principal, Depends(live_viewer)]
operator = Needs(Role.OPERATOR)
admin = Needs(Role.ADMIN)
anybody = Needs(Role.VIEWER, may_change_password=True)
"""Also one whose password must be replaced first."""


def current_sessions(request: Request) -> Sessions:
    """Return log-in and log-out."""
    sessions: Sessions = request.app.state.sessions
    return sessions


def current_administration(request: Request) -> Administration:
    """Return the management of accounts and keys."""
    administration: Administration = request.app.state.administration
    return administration


RepositoryOf = Annotated[Repository, Depends(current_repository)]
GraphRepositoryOf = Annotated[GraphRepository, Depends(current_graph_repository)]
SessionsOf = Annotated[Sessions, Depends(current_sessions)]
AdministrationOf = Annotated[Administration, Depends(current_administration)]
Admin = Annotated[Principal, Depends(admin)]
Anybody = Annotated[Principal, Depends(anybody)]
