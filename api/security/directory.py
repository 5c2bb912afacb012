"""Accounts, keys and revocations: records of `drift-controls`, as every API process has read them. Pure.

| kind | id | value |
|---|---|---|
| ``account`` | name of the account | `Account` |
| ``api-key`` | id of the key | `ApiKeyRecord` |
| ``revocation`` | id of a token, or ``family:ID`` of a login | `Revocation` |

An empty value removes. A later record wins. What cannot be read is left out and counted: it lets nobody in, nor does
what the account or key was before it.
"""

import secrets
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from api.security.api_keys import ApiKeyRecord
from api.security.principal import How, Principal, Refused, Role
from schemas.access_records import ACCOUNT, API_KEY, REVOCATION

FAMILY = "family:"


def new_stamp() -> str:
    """Return a stamp that no account has had."""
    return secrets.token_hex(8)


class Account(msgspec.Struct, frozen=True):
    """One who logs in here.

    Attributes:
        password_hash: Argon2id, as a PHC string. must_change: the password was given out once and must be replaced.
        stamp: is in every token of the account, and made anew when password, role or lock change: that ends the tokens.
            Times would not do: a second has room for a log-in and a change, in any order.
    """

    name: str
    tenant: str
    role: int
    password_hash: str
    created_s: int
    must_change: bool = False
    is_disabled: bool = False
    stamp: str = ""

    def changed(self, **changes: Any) -> "Account":
        """Return the account with changes that end its tokens."""
        return msgspec.structs.replace(self, stamp=new_stamp(), **changes)

    def encoded(self) -> bytes:
        """Return the record's value."""
        return msgspec.json.encode(self)


class Revocation(msgspec.Struct, frozen=True):
    """A token, or all of a login, that is no longer taken. After ``until_s`` it would have expired anyway."""

    until_s: int


@dataclass(slots=True)
class Directory:
    """All that is known, by tenant."""

    accounts: dict[tuple[str, str], Account] = field(default_factory=dict)
    keys: dict[str, ApiKeyRecord] = field(default_factory=dict)
    revoked: dict[tuple[str, str], int] = field(default_factory=dict)
    unreadable: int = 0

    def apply(self, tenant: str, kind: str, record_id: str, value: bytes | None) -> None:
        """Take in one record."""
        try:
            if kind == ACCOUNT:
                self._apply_account(tenant, record_id, value)
            elif kind == API_KEY:
                self._apply_key(tenant, record_id, value)
            elif kind == REVOCATION:
                self._apply_revocation(tenant, record_id, value)
        except (msgspec.MsgspecError, ValueError):
            self.unreadable += 1
            # It may have said that somebody is to be kept out.
            if kind == ACCOUNT:
                self.accounts.pop((tenant, record_id), None)

    def _apply_account(self, tenant: str, name: str, value: bytes | None) -> None:
        if not value:
            self.accounts.pop((tenant, name), None)
            return
        account = msgspec.json.decode(value, type=Account)
        # The key of a record says whose it is: what its value says must agree, or a tenant could write into another.
        if (account.tenant, account.name) != (tenant, name):
            raise ValueError("key and value disagree")
        Role(account.role)
        self.accounts[tenant, name] = account

    def _apply_key(self, tenant: str, key_id: str, value: bytes | None) -> None:
        known = self.keys.get(key_id)
        if not value:
            if known is not None and known.tenant == tenant:
                del self.keys[key_id]
            return
        record = msgspec.json.decode(value, type=ApiKeyRecord)
        if (record.tenant, record.id) != (tenant, key_id) or (known is not None and known.tenant != tenant):
            raise ValueError("key and value disagree")
        Role(record.role)
        self.keys[key_id] = record

    def _apply_revocation(self, tenant: str, token_id: str, value: bytes | None) -> None:
        if not value:
            self.revoked.pop((tenant, token_id), None)
            return
        self.revoked[tenant, token_id] = msgspec.json.decode(value, type=Revocation).until_s

    def accounts_of(self, tenant: str) -> list[Account]:
        """Return a tenant's accounts by name."""
        return [account for (owner, _), account in sorted(self.accounts.items()) if owner == tenant]

    def keys_of(self, tenant: str) -> list[ApiKeyRecord]:
        """Return a tenant's API keys, oldest first."""
        mine = (record for record in self.keys.values() if record.tenant == tenant)
        return sorted(mine, key=lambda record: (record.created_s, record.id))

    def forget_expired(self, now_s: int) -> list[tuple[str, str]]:
        """Drop revocations of what has expired; return them as ``(tenant, id)``: their records can be removed."""
        gone = [key for key, until_s in self.revoked.items() if until_s <= now_s]
        for key in gone:
            del self.revoked[key]
        return gone

    def check(self, principal: Principal) -> Principal:
        """Return one whose credential is valid as such, with the role it has now.

        Raises:
            Refused: revoked, or the account is gone, disabled, or has other credentials by now.
        """
        tenant = principal.tenant
        if (tenant, principal.credential_id) in self.revoked or (tenant, FAMILY + principal.family) in self.revoked:
            raise Refused("revoked")
        if principal.how is not How.LOGIN:
            return principal
        account = self.accounts.get((tenant, principal.subject))
        if account is None or account.is_disabled:
            raise Refused("no such account any more")
        if principal.stamp != account.stamp:
            raise Refused("issued before the account changed")
        role = min(principal.role, Role(account.role))
        return replace(principal, role=role, must_change=account.must_change)
