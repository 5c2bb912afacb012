"""`drift accounts`: accounts of the API for the operator, who writes to `drift-controls` without asking the API."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from api.problems import Problem
from api.security.access import Access, Caller
from api.security.administration import Administration
from api.security.principal import Role
from api.security.tokens import OwnTokens
from deploy.signing_key import new_key_pem
from schemas.errors import ConfigurationError
from schemas.flow import MAX_NAME_BYTES
from schemas.ids import TenantId
from schemas.settings import Settings, load_settings
from streams.audit_log import KafkaAuditLog
from streams.clock import SystemClock
from streams.control_log import KafkaControlLog
from streams.kafka_clients import check_connection

_READ_WITHIN_S = 60.0
ACTOR = "operator"
_T = TypeVar("_T")

tenant_option = click.option("--tenant", required=True, help="Whose account.")
json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")


@click.group(epilog="Example: drift accounts add ann --tenant acme --role admin")
def accounts() -> None:
    """Make, list and remove accounts of the API, with access to Kafka alone."""


@accounts.command(epilog="Example: drift accounts add ann --tenant acme --role admin")
@click.argument("name")
@tenant_option
@click.option("--role", type=click.Choice(["viewer", "operator", "admin"]), default="viewer", show_default=True)
@json_option
@click.pass_obj
def add(config: Path | None, name: str, tenant: str, role: str, as_json: bool) -> None:
    """Make an account and print its one-time password."""

    async def work(administration: Administration, _: Access) -> str:
        _account, password = await administration.create_account(_tenant(tenant), name, Role.of(role), ACTOR, Caller())
        return password

    password = _run(load_settings(config), work)
    if as_json:
        click.echo(json.dumps({"tenant": tenant, "account": name, "role": role, "one_time_password": password}))
    else:
        click.echo(f"account {name} of tenant {tenant}, {role}, one-time password {password}")


@accounts.command("list", epilog="Example: drift accounts list --tenant acme")
@tenant_option
@json_option
@click.pass_obj
def list_(config: Path | None, tenant: str, as_json: bool) -> None:
    """Show a tenant's accounts."""

    async def work(_: Administration, access: Access) -> list[tuple[str, str, str]]:
        return [
            (one.name, Role(one.role).name.lower(), _state(one.is_disabled, one.must_change))
            for one in access.directory.accounts_of(tenant)
        ]

    for name, role, state in _run(load_settings(config), work):
        shown = json.dumps({"account": name, "role": role, "state": state}) if as_json else f"{name}\t{role}\t{state}"
        click.echo(shown)


@accounts.command(epilog="Example: drift accounts remove ann --tenant acme")
@click.argument("name")
@tenant_option
@click.pass_obj
def remove(config: Path | None, name: str, tenant: str) -> None:
    """Remove an account; its tokens end. The last administrator is kept."""

    async def work(administration: Administration, _: Access) -> None:
        await administration.delete_account(_tenant(tenant), name, ACTOR, Caller())

    _run(load_settings(config), work)
    click.echo(f"account {name} of tenant {tenant} is removed")


def _state(is_disabled: bool, must_change: bool) -> str:
    return "disabled" if is_disabled else "one-time password" if must_change else "active"


def _tenant(name: str) -> TenantId:
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES or not name.isprintable() or ":" in name:
        raise ConfigurationError(f"tenant {name!r} cannot have accounts: use a printable name without colons")
    return TenantId(name)


def _run(settings: Settings, work: Callable[[Administration, Access], Awaitable[_T]]) -> _T:
    async def whole() -> _T:
        async with _opened(settings) as access:
            try:
                return await work(Administration(access), access)
            except Problem as problem:
                raise ConfigurationError(problem.detail) from None

    return asyncio.run(whole())


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Access]:
    """Read the records, and close everything afterwards; makes no first administrator."""
    await check_connection(settings.kafka)
    controls, audit = KafkaControlLog(settings), KafkaAuditLog(settings)
    # It issues no token: the key is as good as none.
    tokens = OwnTokens(new_key_pem())
    access = Access(settings.api, tokens, controls, audit, SystemClock().now_ms, lambda *_: None)
    await audit.start()
    await controls.start(access.directory.apply)
    try:
        async with asyncio.timeout(_READ_WITHIN_S):
            await controls.wait_caught_up()
        yield access
    except TimeoutError:
        raise ConfigurationError(
            f"the accounts could not be read from Kafka within {_READ_WITHIN_S:g} s: `drift doctor` says why"
        ) from None
    finally:
        await controls.stop()
        await audit.stop()
