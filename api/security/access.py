"""Who is asking: credentials to principals, against the accounts, keys and revocations that are known."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from api.problems import RETRY_AFTER_S, Problem
from api.security.api_keys import is_key, key_id, verify_key
from api.security.directory import Account, Directory, new_stamp
from api.security.limits import Limits
from api.security.lockout import Lockout
from api.security.passwords import Passwords, one_time_password
from api.security.principal import How, Principal, Refused, Role
from api.security.providers import Providers
from api.security.tokens import ISSUER, OwnTokens, issuer_of
from schemas.access_records import ACCOUNT, REVOCATION, ControlLog, RecordsUnavailable
from schemas.audit import AuditLog, AuditRecord
from schemas.settings import ApiSettings

log = logging.getLogger("api")

FIRST_ADMIN = "admin"
RETRY_S = 2.0
TIDY_EVERY_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Where a request comes from, for the audit log."""

    address: str = ""
    request_id: str = ""


def unavailable() -> Problem:
    """Return the 503 while records of accounts cannot be read or written."""
    return Problem(
        503,
        "accounts-unavailable",
        "Accounts cannot be read or changed now",
        "Nothing was changed for certain; repeat after the time in Retry-After.",
        headers={"Retry-After": RETRY_AFTER_S},
    )


def unauthenticated() -> Problem:
    """Return the 401. Never says why: the log does."""
    return Problem(
        401,
        "unauthenticated",
        "Not authenticated",
        "Send `Authorization: Bearer` with a token of POST /v1/sessions or your identity provider, or an API key.",
        headers={"WWW-Authenticate": 'Bearer realm="secureguard-drift"'},
    )


class Access:
    """All that decides who gets in. One per process.

    Args:
        now_ms: Unix epoch UTC in ms.
        on_first_admin: is given tenant, account and one-time password of the administrator made at the first start.
    """

    def __init__(
        self,
        settings: ApiSettings,
        tokens: OwnTokens,
        controls: ControlLog,
        audit: AuditLog,
        now_ms: Callable[[], int],
        on_first_admin: Callable[[str, str, str], None],
        passwords: Passwords | None = None,
    ) -> None:
        self.tokens, self.controls, self.audit = tokens, controls, audit
        self.directory = Directory()
        self.lockout = Lockout()
        self.passwords = passwords or Passwords()
        self.limits = Limits(settings.limits, lambda: now_ms() / 1_000)
        self._providers = Providers(settings.auth.providers)
        self._admin_tenant = settings.auth.admin_tenant
        self._now_ms, self._on_first_admin = now_ms, on_first_admin
        self._tasks: list[asyncio.Task[None]] = []

    def now_s(self) -> int:
        """Return Unix epoch UTC in seconds."""
        return self._now_ms() // 1_000

    async def start(self) -> None:
        """Begin to read the records. Where they are there at once, the first administrator is too on return."""
        await self.audit.start()
        await self.controls.start(self.directory.apply)
        if self.controls.is_caught_up:
            await self._make_first_admin()
        else:
            self._tasks.append(asyncio.create_task(self._begin_later(), name="first start"))
        self._tasks.append(asyncio.create_task(self._tidy(), name="forget expired revocations"))

    async def stop(self) -> None:
        """Stop reading."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.controls.stop()
        await self.audit.stop()

    async def _begin_later(self) -> None:
        await self.controls.wait_caught_up()
        while True:
            try:
                return await self._make_first_admin()
            except RecordsUnavailable as error:
                log.warning("the first account cannot be made yet: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _make_first_admin(self) -> None:
        if self.directory.accounts_of(self._admin_tenant):
            return
        password = one_time_password()
        account = Account(
            FIRST_ADMIN,
            self._admin_tenant,
            int(Role.ADMIN),
            await self.passwords.hash(password),
            self.now_s(),
            must_change=True,
            stamp=new_stamp(),
        )
        await self.controls.write(self._admin_tenant, ACCOUNT, FIRST_ADMIN, account.encoded())
        self.note(Caller(), self._admin_tenant, "first-start", "account.create", target=FIRST_ADMIN, detail="admin")
        self._on_first_admin(self._admin_tenant, FIRST_ADMIN, password)

    async def _tidy(self) -> None:
        """Remove the records of revocations that name what has expired anyway."""
        while True:
            await asyncio.sleep(TIDY_EVERY_S)
            for tenant, record_id in self.directory.forget_expired(self.now_s()):
                try:
                    await self.controls.write(tenant, REVOCATION, record_id, None)
                except RecordsUnavailable:
                    break  # another process, or the next start, removes the rest

    @property
    def is_ready(self) -> bool:
        """Whether all records have been read: until then nobody is let in, since nobody knows who was put out."""
        return self.controls.is_caught_up

    def check_ready(self) -> None:
        """Refuse while records have not been read.

        Raises:
            Problem: 503.
        """
        if not self.is_ready:
            raise unavailable()

    async def authenticate(self, bearer: str | None, api_key: str | None) -> Principal:
        """Return who sent these credentials.

        Args:
            bearer: what stands behind ``Authorization: Bearer``. api_key: what stands in ``X-API-Key``.

        Raises:
            Refused: nobody, or more than one. Problem: 503, it cannot be known now.
        """
        self.check_ready()
        if (bearer is None) == (api_key is None):
            raise Refused("no credential" if bearer is None else "two credentials")
        now_s = self.now_s()
        credential = api_key if bearer is None else bearer
        assert credential is not None
        if api_key is not None or is_key(credential):
            record = self.directory.keys.get(key_id(credential))
            return self.directory.check(verify_key(credential, record, now_s))
        if issuer_of(credential) == ISSUER:
            principal, _ = self.tokens.verify(credential, now_s)
        else:
            principal = await self._providers.verify(credential, now_s)
        return self.directory.check(principal)

    def recheck(self, principal: Principal) -> None:
        """See that one who was let in still would be: for what goes on after its request was answered.

        Raises:
            Refused: the credential has expired or was revoked, or its account or key is gone.
        """
        if principal.expires_s and self.now_s() >= principal.expires_s:
            raise Refused("expired")
        if principal.how is How.API_KEY:
            record = self.directory.keys.get(principal.credential_id)
            if record is None or record.tenant != principal.tenant:
                raise Refused("no such key any more")
            if record.expires_s and self.now_s() >= record.expires_s:
                raise Refused("expired")
        if self.directory.check(principal).must_change:
            raise Refused("the password must be replaced")

    async def write(self, tenant: str, kind: str, record_id: str, value: bytes | None) -> None:
        """Write a record.

        Raises:
            Problem: 503, it may or may not be written.
        """
        try:
            await self.controls.write(tenant, kind, record_id, value)
        except RecordsUnavailable as error:
            log.warning("a record of accounts was not written: %s", error)
            raise unavailable() from None

    def note(
        self,
        caller: Caller,
        tenant: str,
        actor: str,
        action: str,
        *,
        outcome: str = "done",
        target: str = "",
        detail: str = "",
    ) -> None:
        """Put a line into the audit log and the process's own."""
        record = AuditRecord(
            secrets.token_hex(16),
            tenant,
            self._now_ms(),
            actor,
            action,
            outcome,
            target,
            detail,
            caller.address,
            caller.request_id,
        )
        log.info("audit: %s %s by %r of %r from %s: %s", action, outcome, actor, tenant, caller.address, detail)
        self.audit.take(record)
