"""`drift policies`: a tenant's declared rules of who may call whom."""

import asyncio
import json
import sys
from pathlib import Path

import click
import msgspec
import yaml

from deploy.commands.options import ControlledTenant
from deploy.inventory.documents import DEFAULT_DOCUMENT, check_name
from deploy.policy_files import read_policy_file
from schemas.documents import MAX_DOCUMENTS
from schemas.errors import ConfigurationError
from schemas.policies import POLICIES, Policies, encode_policies, read_policies
from schemas.settings import Settings, load_settings
from streams.controls import read_controls, write_controls
from streams.kafka_clients import check_connection

_tenant = click.option("--tenant", type=ControlledTenant(), required=True, help="Whose policies.")
_document = click.option("--document", default=DEFAULT_DOCUMENT, show_default=True, help="Which of its documents.")


@click.group(epilog="Example: drift policies push policies.yaml --tenant acme")
def policies() -> None:
    """Rules of who may call whom; calls that one denies are findings of kind policy_violation (docs/policies.md)."""


@policies.command(epilog="Example: drift policies push policies.yaml --tenant acme")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_tenant
@_document
@click.pass_obj
def push(config: Path | None, file: Path, tenant: str, document: str) -> None:
    """Put FILE (YAML or JSON) in the place of a document; it holds from now on."""
    rules = read_policy_file(file)
    settings, name = load_settings(config), check_name(document)

    async def put() -> None:
        present = await _read(settings, tenant)
        if len(present.keys() - {name}) >= MAX_DOCUMENTS:
            raise ConfigurationError(f"tenant {tenant} has {MAX_DOCUMENTS} documents already, the most there may be")
        await write_controls(settings, tenant, POLICIES, {name: encode_policies(rules)})

    asyncio.run(put())
    click.echo(f"document {name} of tenant {tenant} holds from now on: {_count(rules)}")


@policies.command("list", epilog="Example: drift policies list --tenant acme")
@_tenant
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def list_documents(config: Path | None, tenant: str, as_json: bool) -> None:
    """List a tenant's documents and how many rules they hold."""
    found = asyncio.run(_read(load_settings(config), tenant))
    if as_json:
        click.echo(json.dumps([{"document": name, "rules": len(rules.rules)} for name, rules in found.items()]))
        return
    for name, rules in found.items():
        click.echo(f"{name:<24} {_count(rules)}")
    if not found:
        click.echo(f"tenant {tenant} has no policies")


@policies.command(epilog="Example: drift policies show --tenant acme > policies.yaml")
@_tenant
@_document
@click.pass_obj
def show(config: Path | None, tenant: str, document: str) -> None:
    """Print a document as YAML, as it can be pushed again."""
    found = asyncio.run(_read(load_settings(config), tenant))
    if document not in found:
        raise ConfigurationError(f"tenant {tenant} has no document {document!r}: see drift policies list")
    plain = msgspec.to_builtins(found[document])
    yaml.safe_dump(plain, sys.stdout, sort_keys=False, default_flow_style=None, width=120)


@policies.command(epilog="Example: drift policies remove --tenant acme --document main")
@_tenant
@click.option("--document", required=True, help="Which of its documents.")
@click.pass_obj
def remove(config: Path | None, tenant: str, document: str) -> None:
    """Take a document away; its rules deny nothing from now on."""
    settings = load_settings(config)

    async def take_away() -> bool:
        is_there = document in await _read(settings, tenant)
        if is_there:
            await write_controls(settings, tenant, POLICIES, {document: b""})
        return is_there

    if not asyncio.run(take_away()):
        raise ConfigurationError(f"tenant {tenant} has no document {document!r}: see drift policies list")
    click.echo(f"document {document} of tenant {tenant} is gone")


def _count(rules: Policies) -> str:
    return f"{len(rules.rules):,} rule{'' if len(rules.rules) == 1 else 's'}"


async def _read(settings: Settings, tenant: str) -> dict[str, Policies]:
    """Return a tenant's sound documents; others are dead letters and hold nowhere."""
    await check_connection(settings.kafka)
    found: dict[str, Policies] = {}
    for name, value in (await read_controls(settings, tenant, POLICIES)).items():
        try:
            found[name] = read_policies(value)
        except ValueError:
            continue
    return found
