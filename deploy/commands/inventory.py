"""`drift inventory`: the rules by which a tenant's addresses, pods and names become services."""

import asyncio
import contextlib
import gzip
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click
import msgspec
import yaml

from deploy.commands.options import ControlledTenant
from deploy.inventory.documents import DEFAULT_DOCUMENT, check_name, documents_of, is_part_of, read_file, summary_of
from deploy.inventory.explaining import explain_name, line_of, rules_of
from deploy.inventory.publishers import PUBLISHERS, read_table
from models.graph.machine import TENANT_SETTINGS
from models.graph.naming import Naming
from schemas.detection import DetectionConfig
from schemas.documents import MAX_DOCUMENTS
from schemas.errors import ConfigurationError
from schemas.inventory import INVENTORY, Inventory, encode_inventory, read_inventory
from schemas.settings import Settings, load_settings
from streams.controls import read_controls, write_controls
from streams.kafka_clients import check_connection
from streams.result import short

_tenant = click.option("--tenant", type=ControlledTenant(), required=True, help="Whose inventory.")
_document = click.option("--document", default=DEFAULT_DOCUMENT, show_default=True, help="Which of its documents.")
_json = click.option("--json", "as_json", is_flag=True, help="For machines.")


@click.group(epilog="Example: drift inventory push services.yaml --tenant acme")
def inventory() -> None:
    """Rules that name a tenant's services: by address range, by labels, by name (docs/inventory.md)."""


@inventory.command(epilog="Example: drift inventory push services.yaml --tenant acme")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_tenant
@_document
@click.pass_obj
def push(config: Path | None, file: Path, tenant: str, document: str) -> None:
    """Put FILE (YAML, JSON, or CSV with columns cidr,name) in the place of a document; it holds from now on."""
    rules = read_file(file)
    asyncio.run(_put(load_settings(config), tenant, check_name(document), rules))


@inventory.command("import", epilog="Example: drift inventory import aws ip-ranges.json --tenant acme --only 'aws/s3'")
@click.argument("publisher", type=click.Choice(sorted(PUBLISHERS)))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--tenant", type=ControlledTenant(), help="Whose inventory.")
@click.option("--document", help="Which of its documents; default: the publisher's name.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Names that are wanted, with `*`; may be repeated.")
@click.option("--regions", is_flag=True, help="Names with regions, say aws/s3.eu-west-1.")
@click.option("--print", "is_shown", is_flag=True, help="Print the document as YAML instead of pushing it.")
@click.pass_obj
def import_table(
    config: Path | None,
    publisher: str,
    file: Path,
    tenant: str | None,
    document: str | None,
    only: tuple[str, ...],
    regions: bool,
    is_shown: bool,
) -> None:
    """Make a document of an address table that a cloud or a registry publishes; FILE may be packed with gzip."""
    try:
        data = file.read_bytes()
        rules = read_table(publisher, gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, regions, only)
    except (OSError, EOFError) as error:
        raise ConfigurationError(f"{file} cannot be read: {short(str(error))}") from error
    except ValueError as error:
        raise ConfigurationError(f"{file}: {short(str(error))}") from error
    if not rules.addresses:
        raise ConfigurationError(f"{file}: no range is left: see --only")
    if is_shown:
        yaml.safe_dump(msgspec.to_builtins(rules), sys.stdout, sort_keys=False, default_flow_style=None, width=120)
        return
    if tenant is None:
        raise ConfigurationError("whose inventory is it? Name the tenant (--tenant), or look at it first (--print)")
    asyncio.run(_put(load_settings(config), tenant, check_name(document or publisher), rules))


@inventory.command("list", epilog="Example: drift inventory list --tenant acme")
@_tenant
@_json
@click.pass_obj
def list_documents(config: Path | None, tenant: str, as_json: bool) -> None:
    """List a tenant's documents and what they hold."""
    settings = load_settings(config)
    documents = asyncio.run(_read(settings, tenant))
    rows = [(name, len(value), summary_of(read_inventory(value))) for name, value in documents.items()]
    if as_json:
        listed = [{"document": name, "bytes": size, **asdict(summary)} for name, size, summary in rows]
        click.echo(json.dumps(listed))
        return
    for name, size, summary in rows:
        click.echo(f"{name:<24} {summary.text} ({size:,} bytes)")
    if not rows:
        click.echo(f"tenant {tenant} has no inventory")


@inventory.command(epilog="Example: drift inventory show --tenant acme > services.yaml")
@_tenant
@_document
@click.pass_obj
def show(config: Path | None, tenant: str, document: str) -> None:
    """Print a document as YAML, as it can be pushed again."""
    documents = asyncio.run(_read(load_settings(config), tenant))
    parts = [read_inventory(value) for name, value in documents.items() if is_part_of(name, document)]
    if not parts:
        raise ConfigurationError(f"tenant {tenant} has no document {document!r}: see drift inventory list")
    whole = Inventory(
        tuple(rule for part in parts for rule in part.addresses),
        tuple(rule for part in parts for rule in part.labels),
        tuple(rule for part in parts for rule in part.names),
    )
    yaml.safe_dump(msgspec.to_builtins(whole), sys.stdout, sort_keys=False, default_flow_style=None, width=120)


@inventory.command(epilog="Example: drift inventory explain --tenant acme 10.1.2.3 prod/cart-7x4f")
@click.argument("names", nargs=-1, required=True, metavar="NAME_OR_ADDRESS...")
@click.option("--tenant", type=ControlledTenant(), help="Whose inventory.")
@click.option(
    "--inventory",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Ask this file instead of the inventory in force.",
)
@_json
@click.pass_obj
def explain(config: Path | None, names: tuple[str, ...], tenant: str | None, file: Path | None, as_json: bool) -> None:
    """Say what endpoints are called, and which rule says so."""
    if file is not None:
        naming = Naming(rules_of(documents_of(DEFAULT_DOCUMENT, read_file(file))))
    elif tenant is not None:
        naming = asyncio.run(_naming_of(load_settings(config), tenant))
    else:
        raise ConfigurationError("name the tenant (--tenant), or a file (--inventory)")
    for found in (explain_name(naming, name) for name in names):
        click.echo(json.dumps({**asdict(found), "is_outside": found.is_outside}) if as_json else line_of(found))


@inventory.command(epilog="Example: drift inventory remove --tenant acme --document aws")
@_tenant
@click.option("--document", required=True, help="Which of its documents.")
@click.pass_obj
def remove(config: Path | None, tenant: str, document: str) -> None:
    """Take a document away; what it named goes by the other rules from now on."""
    settings = load_settings(config)

    async def take_away() -> list[str]:
        present = [name for name in await _read(settings, tenant) if is_part_of(name, document)]
        await write_controls(settings, tenant, INVENTORY, dict.fromkeys(present, b""))
        return present

    if not asyncio.run(take_away()):
        raise ConfigurationError(f"tenant {tenant} has no document {document!r}: see drift inventory list")
    click.echo(f"document {document} of tenant {tenant} is gone")


async def _read(settings: Settings, tenant: str) -> dict[str, bytes]:
    """Return a tenant's sound documents; others are dead letters and hold nowhere."""
    await check_connection(settings.kafka)
    found = await read_controls(settings, tenant, INVENTORY)
    return {name: value for name, value in found.items() if _is_sound(value)}


async def _naming_of(settings: Settings, tenant: str) -> Naming:
    """Return how a tenant's endpoints are named by its inventory and its own settings."""
    documents, own = await _read(settings, tenant), DetectionConfig()
    for value in (await read_controls(settings, tenant, TENANT_SETTINGS)).values():
        with contextlib.suppress(ValueError):
            own = msgspec.convert(msgspec.json.decode(value), DetectionConfig, strict=False)
    return Naming(rules_of(documents), own.outside_prefix_v4, own.outside_prefix_v6)


def _is_sound(value: bytes) -> bool:
    try:
        read_inventory(value)
    except ValueError:
        return False
    return True


async def _put(settings: Settings, tenant: str, document: str, rules: Inventory) -> None:
    """Write a document, in parts if need be, and take away parts that it no longer has."""
    values = documents_of(document, rules)
    await check_connection(settings.kafka)
    present = await read_controls(settings, tenant, INVENTORY)
    others = [name for name in present if not is_part_of(name, document)]
    if len(others) + len(values) > MAX_DOCUMENTS:
        raise ConfigurationError(
            f"tenant {tenant} would have {len(others) + len(values)} documents; the limit is {MAX_DOCUMENTS}"
        )
    stale = [name for name in present if is_part_of(name, document) and name not in values]
    changed = {name: value for name, value in values.items() if not _says(present.get(name), value)}
    await write_controls(settings, tenant, INVENTORY, {**changed, **dict.fromkeys(stale, b"")})
    _tell(document, tenant, rules, values, changed.keys() | set(stale))


def _says(present: bytes | None, wanted: bytes) -> bool:
    """Say whether a document is there already, however it is written."""
    return present is not None and _is_sound(present) and encode_inventory(read_inventory(present)) == wanted


def _tell(document: str, tenant: str, rules: Inventory, values: Iterable[str], changed: set[str]) -> None:
    parts = len(list(values))
    cut = f", in {parts} parts" if parts > 1 else ""
    state = "holds from now on" if changed else "was there already"
    click.echo(f"document {document} of tenant {tenant} {state}: {summary_of(rules).text}{cut}")
