"""Log-in, refresh, log-out; who one is; one's own password."""

from fastapi import APIRouter, Depends

from api.access_bodies import LoginIn, MeOut, PasswordIn, RefreshIn, SessionOut, me_out, session_out
from api.dependencies import AccessOf, Anybody, CallerOf, SessionsOf, anybody
from api.problems import ACCESS_RESPONSES, CONFLICT
from schemas.ids import TenantId

open_router = APIRouter(tags=["sessions"], responses=ACCESS_RESPONSES)
"""The two paths of ``/v1`` that anybody may ask."""
router = APIRouter(tags=["sessions"], responses=ACCESS_RESPONSES, dependencies=[Depends(anybody)])


@open_router.post("/sessions", summary="Log in")
async def log_in(body: LoginIn, access: AccessOf, sessions: SessionsOf, caller: CallerOf) -> SessionOut:
    """Return an access token, which lives 15 minutes, and a refresh token, which lives 12 hours.

    Every refusal looks alike. After five failures in a row an account, and an address, waits longer each time.
    """
    await access.limits.count_login(caller.address)
    new = None if body.new_password is None else body.new_password.get_secret_value()
    password = body.password.get_secret_value()
    issued = await sessions.login(TenantId(body.tenant), body.account, password, caller, new)
    account = access.directory.accounts.get((body.tenant, body.account))
    return session_out(issued, must_change=account is not None and account.must_change)


@open_router.post("/sessions/refresh", summary="Renew tokens")
async def refresh(body: RefreshIn, access: AccessOf, sessions: SessionsOf, caller: CallerOf) -> SessionOut:
    """Return new tokens for a refresh token, which ends. One that is used twice ends the whole log-in."""
    await access.limits.count_login(caller.address)
    issued = await sessions.refresh(body.refresh_token.get_secret_value(), caller)
    return session_out(issued, must_change=False)


@router.delete("/sessions", summary="Log out", status_code=204, responses=CONFLICT)
async def log_out(principal: Anybody, sessions: SessionsOf, caller: CallerOf) -> None:
    """End this log-in with all its tokens; of an identity provider's, this token."""
    await sessions.logout(principal, caller)


@router.get("/me", summary="Who is asking")
async def me(principal: Anybody) -> MeOut:
    """Return whose credential this is and what it may do."""
    return me_out(principal)


@router.put("/me/password", summary="Replace one's password", responses=CONFLICT)
async def change_password(body: PasswordIn, principal: Anybody, sessions: SessionsOf, caller: CallerOf) -> SessionOut:
    """Replace one's own password. All log-ins of the account end; the answer is a new one."""
    old, new = body.password.get_secret_value(), body.new_password.get_secret_value()
    return session_out(await sessions.change_password(principal, old, new, caller), must_change=False)
