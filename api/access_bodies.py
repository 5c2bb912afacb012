"""Bodies and answers of log-in, accounts, keys and audit log. Times are Unix epoch UTC in seconds."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from api.security.administration import ACCOUNT_NAME, MAX_KEY_DAYS
from api.security.api_keys import ApiKeyRecord
from api.security.directory import Account
from api.security.principal import Principal, Role
from api.security.tokens import Issued
from schemas.flow import MAX_NAME_BYTES

_MAX_PASSWORD = 1_024
_MAX_TOKEN = 8_192


class RoleName(StrEnum):
    """What one may do; each includes those before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def role(self) -> Role:
        """Return the role."""
        return Role.of(self.value)


def _named(role: int) -> RoleName:
    return RoleName(Role(role).name.lower())


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class LoginIn(_In):
    """Who logs in."""

    model_config = ConfigDict(
        extra="forbid",
        hide_input_in_errors=True,
        json_schema_extra={
            "examples": [{"tenant": "acme", "account": "ann", "password": "correct horse battery staple"}]
        },
    )

    tenant: str = Field(min_length=1, max_length=MAX_NAME_BYTES)
    account: str = Field(pattern=ACCOUNT_NAME)
    password: SecretStr = Field(min_length=1, max_length=_MAX_PASSWORD)
    new_password: SecretStr | None = Field(
        default=None, max_length=_MAX_PASSWORD, description="Replaces the password at once, as a one-time one must be."
    )


class RefreshIn(_In):
    """A refresh token. It can be used once."""

    refresh_token: SecretStr = Field(min_length=1, max_length=_MAX_TOKEN)


class SessionOut(BaseModel):
    """Tokens of a log-in."""

    access_token: str = Field(description="Send as `Authorization: Bearer`.")
    token_type: Literal["Bearer"] = "Bearer"
    expires_s: int = Field(description="When the access token ends.")
    refresh_token: str = Field(description="For POST /v1/sessions/refresh, once.")
    refresh_expires_s: int
    must_change_password: bool = Field(description="Nothing but PUT /v1/me/password is allowed until then.")


def session_out(issued: Issued, *, must_change: bool) -> SessionOut:
    """Return tokens as they are answered."""
    return SessionOut(
        access_token=issued.access,
        expires_s=issued.access_expires_s,
        refresh_token=issued.refresh,
        refresh_expires_s=issued.refresh_expires_s,
        must_change_password=must_change,
    )


class MeOut(BaseModel):
    """Who is asking."""

    tenant: str
    subject: str = Field(description="Name of the account, id of the key, or the provider's subject.")
    role: RoleName
    credential: str = Field(description="login, provider or api-key.", examples=["login"])
    expires_s: int = Field(description="When the credential ends; 0 never.")
    must_change_password: bool


def me_out(principal: Principal) -> MeOut:
    """Return who is asking as it is answered."""
    return MeOut(
        tenant=principal.tenant,
        subject=principal.subject,
        role=_named(principal.role),
        credential=principal.how.value,
        expires_s=principal.expires_s,
        must_change_password=principal.must_change,
    )


class PasswordIn(_In):
    """The password as it is and as it shall be."""

    password: SecretStr = Field(min_length=1, max_length=_MAX_PASSWORD)
    new_password: SecretStr = Field(
        max_length=_MAX_PASSWORD, description="12 characters or more, without the account's name."
    )


class AccountIn(_In):
    """A new account."""

    account: str = Field(pattern=ACCOUNT_NAME, examples=["ann"])
    role: RoleName = RoleName.VIEWER


class AccountChangeIn(_In):
    """What changes; what is left out stays."""

    role: RoleName | None = None
    is_disabled: bool | None = None


class AccountOut(BaseModel):
    """An account."""

    account: str
    role: RoleName
    created_s: int
    is_disabled: bool
    must_change_password: bool


class NewAccountOut(AccountOut):
    """An account with its one-time password, which is shown this once."""

    one_time_password: str


class AccountsOut(BaseModel):
    """The tenant's accounts by name."""

    accounts: list[AccountOut]


def account_out(account: Account) -> AccountOut:
    """Return an account as it is answered."""
    return AccountOut(**_account_fields(account))


def new_account_out(account: Account, password: str) -> NewAccountOut:
    """Return an account and its one-time password as they are answered."""
    return NewAccountOut(**_account_fields(account), one_time_password=password)


def _account_fields(account: Account) -> dict[str, Any]:
    return {
        "account": account.name,
        "role": _named(account.role),
        "created_s": account.created_s,
        "is_disabled": account.is_disabled,
        "must_change_password": account.must_change,
    }


class KeyIn(_In):
    """A new API key."""

    name: str = Field(min_length=1, max_length=100, description="What it is for.", examples=["siem"])
    role: Literal["viewer", "operator"] = "viewer"
    days: int | None = Field(default=None, ge=1, le=MAX_KEY_DAYS, description="Until it expires; null never.")


class KeyOut(BaseModel):
    """An API key, without its secret."""

    id: str
    name: str
    role: RoleName
    created_s: int
    expires_s: int = Field(description="0: never.")


class NewKeyOut(KeyOut):
    """An API key, which is shown this once."""

    key: str


class KeysOut(BaseModel):
    """The tenant's API keys, oldest first."""

    keys: list[KeyOut]


def key_out(record: ApiKeyRecord) -> KeyOut:
    """Return a key as it is answered."""
    return KeyOut(**_key_fields(record))


def new_key_out(record: ApiKeyRecord, key: str) -> NewKeyOut:
    """Return a key and its secret as they are answered."""
    return NewKeyOut(**_key_fields(record), key=key)


def _key_fields(record: ApiKeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "role": _named(record.role),
        "created_s": record.created_s,
        "expires_s": record.expires_s,
    }


class AuditOut(BaseModel):
    """One line of the audit log."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    time_ms: int = Field(description="Unix epoch UTC in ms, of the API's clock.")
    actor: str = Field(examples=["login:ann"])
    action: str = Field(examples=["session.login"])
    outcome: str = Field(description="done or refused.")
    target: str
    detail: str
    address: str
    request_id: str


class AuditPage(BaseModel):
    """Lines of the audit log, newest first."""

    records: list[AuditOut]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last one.")
