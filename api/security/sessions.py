"""Log-in, refresh, log-out, and one's own password."""

import contextlib
from typing import NoReturn

import msgspec

from api.problems import Problem, invalid_parameter
from api.security.access import Access, Caller, unauthenticated
from api.security.directory import FAMILY, Account, Revocation
from api.security.limits import too_many
from api.security.passwords import complaint_about
from api.security.principal import How, Principal, Refused, Role
from api.security.tokens import LEEWAY_S, REFRESH_LIFE_S, Issued, Refresh
from schemas.access_records import ACCOUNT, REVOCATION
from schemas.ids import TenantId


class Sessions:
    """What one does with an own account."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._rotating: set[str] = set()

    async def login(
        self, tenant: TenantId, name: str, password: str, caller: Caller, new_password: str | None = None
    ) -> Issued:
        """Return tokens for one who knows the password.

        Args:
            new_password: replaces it at once, as a one-time password must be.

        Raises:
            Problem: 401 for whatever reason; 422 if the new password cannot be taken; 429 after too many failures.
        """
        access = self._access
        access.check_ready()
        account = await self._proven(tenant, name, password, caller)
        if new_password is not None:
            account = await self._with_password(account, password, new_password)
            access.note(caller, tenant, f"login:{name}", "password.change", target=name)
        elif access.passwords.must_be_hashed_anew(account.password_hash):
            stronger = msgspec.structs.replace(account, password_hash=await access.passwords.hash(password))
            with contextlib.suppress(Problem):  # the next log-in tries again
                await access.write(tenant, ACCOUNT, name, stronger.encoded())
        access.note(caller, tenant, f"login:{name}", "session.login")
        return self._issue(account)

    async def _proven(self, tenant: TenantId, name: str, password: str, caller: Caller) -> Account:
        """Return the account whose password this is; every try counts as failed until it is known not to be."""
        access, now_s = self._access, self._access.now_s()
        of_account, of_address = f"account:{tenant}:{name}", f"address:{caller.address}"
        wait_s = max(access.lockout.wait_s(who, now_s) for who in (of_account, of_address))
        if wait_s > 0:
            self._note_refused(tenant, name, caller, "locked out")
            raise too_many("Too many log-ins have failed.", wait_s)
        for who in (of_account, of_address):
            access.lockout.note_failure(who, now_s)
        account = access.directory.accounts.get((tenant, name))
        usable = account is not None and not account.is_disabled
        stored = account.password_hash if account is not None and usable else None
        if not await access.passwords.verify(stored, password) or account is None:
            self._note_refused(tenant, name, caller, "wrong password" if usable else "no such account")
            raise _login_refused()
        access.lockout.note_success(of_account)
        access.lockout.take_back(of_address)
        return account

    def _note_refused(self, tenant: TenantId, name: str, caller: Caller, why: str) -> None:
        # Of tenants that nobody can log in to, nothing is kept: names would be made up without end.
        if self._access.directory.accounts_of(tenant):
            self._access.note(caller, tenant, f"login:{name}", "session.login", outcome="refused", detail=why)

    async def _with_password(self, account: Account, old: str, new: str) -> Account:
        complaint = complaint_about(new, account.name)
        if complaint is None and old == new:
            complaint = "the new password is the old one"
        if complaint is not None:
            raise invalid_parameter("new_password", complaint)
        changed = account.changed(password_hash=await self._access.passwords.hash(new), must_change=False)
        await self._access.write(account.tenant, ACCOUNT, account.name, changed.encoded())
        return changed

    def _issue(self, account: Account, family: str = "") -> Issued:
        tenant, now_s = TenantId(account.tenant), self._access.now_s()
        return self._access.tokens.issue(account.name, tenant, Role(account.role), now_s, family, account.stamp)

    async def refresh(self, token: str, caller: Caller) -> Issued:
        """Return new tokens for a refresh token, which ends. One that comes twice was stolen: the whole login ends.

        Raises:
            Problem: 401.
        """
        access = self._access
        access.check_ready()
        try:
            refresh = access.tokens.verify_refresh(token, access.now_s())
        except Refused:
            raise unauthenticated() from None
        tenant, revoked = refresh.tenant, access.directory.revoked
        if (tenant, FAMILY + refresh.family) in revoked:
            raise unauthenticated()
        if (tenant, refresh.id) in revoked or refresh.id in self._rotating:
            await self._end_stolen(refresh, caller)
        try:
            access.directory.check(_principal_of(refresh))
        except Refused:
            raise unauthenticated() from None
        self._rotating.add(refresh.id)
        try:
            await self._revoke(tenant, refresh.id, refresh.expires_s)
        finally:
            self._rotating.discard(refresh.id)
        account = access.directory.accounts.get((tenant, refresh.account))
        if account is None or account.stamp != refresh.stamp or (tenant, FAMILY + refresh.family) in revoked:
            raise unauthenticated()  # it ended meanwhile
        return self._issue(account, refresh.family)

    async def _end_stolen(self, refresh: Refresh, caller: Caller) -> NoReturn:
        await self._revoke(refresh.tenant, FAMILY + refresh.family, self._access.now_s() + REFRESH_LIFE_S)
        actor, why = f"login:{refresh.account}", "a refresh token came twice; all of this login is ended"
        self._access.note(caller, refresh.tenant, actor, "session.refresh", outcome="refused", detail=why)
        raise unauthenticated()

    async def logout(self, principal: Principal, caller: Caller) -> None:
        """End a login with all its tokens, or one token of a provider.

        Raises:
            Problem: 409 for an API key, which is revoked instead.
        """
        if principal.how is How.API_KEY:
            raise Problem(409, "no-session", "No session", "An API key has no session: revoke it to end it.")
        if principal.how is How.LOGIN:
            await self._revoke(principal.tenant, FAMILY + principal.family, self._access.now_s() + REFRESH_LIFE_S)
        else:
            await self._revoke(principal.tenant, principal.credential_id, principal.expires_s)
        self._access.note(caller, principal.tenant, principal.name, "session.logout")

    async def change_password(self, principal: Principal, old: str, new: str, caller: Caller) -> Issued:
        """Replace one's own password; ends all other sessions and returns the tokens of a new one.

        Raises:
            Problem: 401, 422, 429 as for `login`; 409 for one who has no password here.
        """
        if principal.how is not How.LOGIN:
            raise Problem(
                409, "no-password", "No password", "This credential is no log-in with a password of this API."
            )
        account = await self._proven(principal.tenant, principal.subject, old, caller)
        changed = await self._with_password(account, old, new)
        self._access.note(caller, principal.tenant, principal.name, "password.change", target=principal.subject)
        return self._issue(changed)

    async def _revoke(self, tenant: str, token_id: str, until_s: int) -> None:
        value = msgspec.json.encode(Revocation(until_s + 2 * LEEWAY_S))
        await self._access.write(tenant, REVOCATION, token_id, value)


def _principal_of(refresh: Refresh) -> Principal:
    return Principal(
        refresh.account,
        refresh.tenant,
        Role.VIEWER,
        How.LOGIN,
        refresh.id,
        refresh.expires_s,
        refresh.family,
        refresh.stamp,
    )


def _login_refused() -> Problem:
    return Problem(
        401,
        "login-refused",
        "Not logged in",
        "Tenant, account or password is wrong.",
        headers={"WWW-Authenticate": 'Bearer realm="secureguard-drift"'},
    )
