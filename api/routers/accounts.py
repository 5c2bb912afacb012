"""Accounts and API keys of one's own tenant: for administrators."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from api.access_bodies import (
    AccountChangeIn,
    AccountIn,
    AccountOut,
    AccountsOut,
    KeyIn,
    KeysOut,
    NewAccountOut,
    NewKeyOut,
    account_out,
    key_out,
    new_account_out,
    new_key_out,
)
from api.dependencies import AccessOf, Admin, AdministrationOf, CallerOf, admin
from api.problems import ACCESS_RESPONSES, CONFLICT, NOT_FOUND
from api.security.principal import Role

router = APIRouter(tags=["administration"], responses=ACCESS_RESPONSES, dependencies=[Depends(admin)])

Name = Annotated[str, Path(max_length=64, description="Account by name.", examples=["ann"])]
KeyId = Annotated[str, Path(max_length=64, description="Key by id.", examples=["0123456789abcdef"])]


@router.get("/accounts", summary="List accounts")
async def list_accounts(principal: Admin, access: AccessOf) -> AccountsOut:
    """Return the tenant's accounts by name."""
    return AccountsOut(accounts=[account_out(one) for one in access.directory.accounts_of(principal.tenant)])


@router.post("/accounts", summary="Create an account", status_code=201, responses=CONFLICT)
async def create_account(
    body: AccountIn, principal: Admin, administration: AdministrationOf, caller: CallerOf
) -> NewAccountOut:
    """Create an account. The answer holds its password for the first log-in, and nothing shows it again."""
    made = await administration.create_account(principal.tenant, body.account, body.role.role, principal.name, caller)
    return new_account_out(*made)


@router.patch("/accounts/{account}", summary="Change an account", responses=NOT_FOUND | CONFLICT)
async def change_account(
    account: Name, body: AccountChangeIn, principal: Admin, administration: AdministrationOf, caller: CallerOf
) -> AccountOut:
    """Change role or lock an account. Its tokens end."""
    role = None if body.role is None else body.role.role
    changed = await administration.change_account(
        principal.tenant, account, role, body.is_disabled, principal.name, caller
    )
    return account_out(changed)


@router.post("/accounts/{account}/password-reset", summary="Give a new one-time password", responses=NOT_FOUND)
async def reset_password(
    account: Name, principal: Admin, administration: AdministrationOf, caller: CallerOf
) -> NewAccountOut:
    """Replace an account's password by one for one log-in, shown this once. Its tokens end."""
    return new_account_out(*await administration.reset_password(principal.tenant, account, principal.name, caller))


@router.delete("/accounts/{account}", summary="Delete an account", status_code=204, responses=NOT_FOUND | CONFLICT)
async def delete_account(account: Name, principal: Admin, administration: AdministrationOf, caller: CallerOf) -> None:
    """Delete an account. Its tokens end."""
    await administration.delete_account(principal.tenant, account, principal.name, caller)


@router.get("/api-keys", summary="List API keys")
async def list_keys(principal: Admin, access: AccessOf) -> KeysOut:
    """Return the tenant's API keys, oldest first, without their secrets."""
    return KeysOut(keys=[key_out(one) for one in access.directory.keys_of(principal.tenant)])


@router.post("/api-keys", summary="Create an API key", status_code=201, responses=CONFLICT)
async def create_key(body: KeyIn, principal: Admin, administration: AdministrationOf, caller: CallerOf) -> NewKeyOut:
    """Create a key for a SIEM, a dashboard or a pipeline. The answer holds it, and nothing shows it again."""
    key, record = await administration.create_key(
        principal.tenant, body.name, Role.of(body.role), body.days, principal.name, caller
    )
    return new_key_out(record, key)


@router.delete("/api-keys/{key_id}", summary="Revoke an API key", status_code=204, responses=NOT_FOUND)
async def revoke_key(key_id: KeyId, principal: Admin, administration: AdministrationOf, caller: CallerOf) -> None:
    """End a key."""
    await administration.revoke_key(principal.tenant, key_id, principal.name, caller)
