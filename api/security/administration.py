"""Accounts and API keys of a tenant, as its administrators and the operator's command line manage them."""

import re

import msgspec

from api.problems import Problem, invalid_parameter, not_found
from api.security.access import Access, Caller
from api.security.api_keys import ApiKeyRecord, new_key
from api.security.directory import Account, new_stamp
from api.security.passwords import one_time_password
from api.security.principal import Role
from schemas.access_records import ACCOUNT, API_KEY
from schemas.ids import TenantId

ACCOUNT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
MAX_ACCOUNTS = 1_000
MAX_KEYS = 1_000
MAX_KEY_DAYS = 3_650
DAY_S = 86_400


class Administration:
    """Changes of one tenant's accounts and keys; ``actor`` is who makes them, as the audit log names it."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def create_account(
        self, tenant: TenantId, name: str, role: Role, actor: str, caller: Caller
    ) -> tuple[Account, str]:
        """Return a new account and the password with which it logs in once.

        Raises:
            Problem: 409 it exists or there are too many; 422 it cannot be a name; 503.
        """
        access = self._access
        access.check_ready()
        if not re.fullmatch(ACCOUNT_NAME, name, re.ASCII):
            raise invalid_parameter("account", "a name has 1 to 64 letters, digits, dots, hyphens, underscores and @")
        mine = access.directory.accounts_of(tenant)
        if any(account.name == name for account in mine):
            raise Problem(409, "account-exists", "The account exists", f"There is an account {name} already.")
        if len(mine) >= MAX_ACCOUNTS:
            raise Problem(409, "too-many-accounts", "Too many accounts", f"A tenant has at most {MAX_ACCOUNTS}.")
        password = one_time_password()
        account = Account(
            name,
            tenant,
            int(role),
            await access.passwords.hash(password),
            access.now_s(),
            must_change=True,
            stamp=new_stamp(),
        )
        await self._store(account)
        access.note(caller, tenant, actor, "account.create", target=name, detail=role.name.lower())
        return account, password

    async def change_account(
        self, tenant: TenantId, name: str, role: Role | None, is_disabled: bool | None, actor: str, caller: Caller
    ) -> Account:
        """Return the account with another role, or locked or unlocked. Its tokens end.

        Raises:
            Problem: 404; 409 if no administrator would be left; 503.
        """
        account = self._account(tenant, name)
        changed = account.changed(
            role=account.role if role is None else int(role),
            is_disabled=account.is_disabled if is_disabled is None else is_disabled,
        )
        self._keep_an_admin(account, changed)
        await self._store(changed)
        detail = f"{Role(changed.role).name.lower()}{', disabled' if changed.is_disabled else ''}"
        self._access.note(caller, tenant, actor, "account.change", target=name, detail=detail)
        return changed

    async def reset_password(self, tenant: TenantId, name: str, actor: str, caller: Caller) -> tuple[Account, str]:
        """Return an account with a new one-time password. Its tokens end.

        Raises:
            Problem: 404; 503.
        """
        account, password = self._account(tenant, name), one_time_password()
        changed = account.changed(
            password_hash=await self._access.passwords.hash(password),
            must_change=True,
        )
        await self._store(changed)
        self._access.note(caller, tenant, actor, "account.reset-password", target=name)
        return changed, password

    async def delete_account(self, tenant: TenantId, name: str, actor: str, caller: Caller) -> None:
        """Remove an account. Its tokens end.

        Raises:
            Problem: 404; 409 if no administrator would be left; 503.
        """
        self._keep_an_admin(self._account(tenant, name), None)
        await self._access.write(tenant, ACCOUNT, name, None)
        self._access.note(caller, tenant, actor, "account.delete", target=name)

    async def create_key(
        self, tenant: TenantId, name: str, role: Role, days: int | None, actor: str, caller: Caller
    ) -> tuple[str, ApiKeyRecord]:
        """Return a new API key, which nobody can show again, and what is stored of it.

        Args:
            days: until it expires; ``None`` never.

        Raises:
            Problem: 409 there are too many; 422 an administrator's; 503.
        """
        access = self._access
        access.check_ready()
        if role >= Role.ADMIN:
            raise invalid_parameter("role", "a key is a viewer's or an operator's: accounts are managed by people")
        if len(access.directory.keys_of(tenant)) >= MAX_KEYS:
            raise Problem(409, "too-many-keys", "Too many keys", f"A tenant has at most {MAX_KEYS}: revoke some.")
        now_s = access.now_s()
        key, record = new_key(tenant, name, role, now_s, 0 if days is None else now_s + days * DAY_S)
        await access.write(tenant, API_KEY, record.id, msgspec.json.encode(record))
        access.note(caller, tenant, actor, "api-key.create", target=record.id, detail=role.name.lower())
        return key, record

    async def revoke_key(self, tenant: TenantId, key_id: str, actor: str, caller: Caller) -> None:
        """End an API key.

        Raises:
            Problem: 404, also for a key of another tenant; 503.
        """
        self._access.check_ready()
        record = self._access.directory.keys.get(key_id)
        if record is None or record.tenant != tenant:
            raise not_found("This key")
        await self._access.write(tenant, API_KEY, key_id, None)
        self._access.note(caller, tenant, actor, "api-key.revoke", target=key_id)

    def _account(self, tenant: TenantId, name: str) -> Account:
        self._access.check_ready()
        account = self._access.directory.accounts.get((tenant, name))
        if account is None:
            raise not_found("This account")
        return account

    def _keep_an_admin(self, before: Account, after: Account | None) -> None:
        def rules(account: Account) -> bool:
            return account.role >= Role.ADMIN and not account.is_disabled

        others = (one for one in self._access.directory.accounts_of(before.tenant) if one.name != before.name)
        if rules(before) and not (after is not None and rules(after)) and not any(map(rules, others)):
            raise Problem(409, "last-admin", "The last administrator", "Make another account administrator first.")

    async def _store(self, account: Account) -> None:
        await self._access.write(account.tenant, ACCOUNT, account.name, account.encoded())
