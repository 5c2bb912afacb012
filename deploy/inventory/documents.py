"""Inventory files to documents: YAML, JSON or CSV, cut where one control could not carry them. Pure but for reading."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

from schemas.documents import MAX_DOCUMENT_BYTES, MAX_DOCUMENTS
from schemas.errors import ConfigurationError
from schemas.inventory import (
    MAX_PATTERNS,
    AddressRule,
    Inventory,
    check_inventory,
    encode_inventory,
    read_network,
)
from streams.result import short

DEFAULT_DOCUMENT = "main"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CUT_AT_BYTES = MAX_DOCUMENT_BYTES - 16 * 1024
_RULE_BYTES, _RANGE_BYTES = 64, 3  # of JSON around a rule's name, and around a range
_COLUMNS = ("cidr", "name", "inside", "collapse")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a document holds. ``ranges``: address ranges of all its rules."""

    ranges: int
    labels: int
    names: int

    @property
    def text(self) -> str:
        """Return it for people."""
        return f"{self.ranges:,} ranges, {self.labels:,} label rules, {self.names:,} name rules"


def summary_of(inventory: Inventory) -> Summary:
    """Count what a document holds."""
    return Summary(sum(len(rule.cidrs) for rule in inventory.addresses), len(inventory.labels), len(inventory.names))


def read_file(path: Path) -> Inventory:
    """Read an inventory file: ``.csv`` with columns cidr, name and perhaps inside and collapse; else YAML or JSON.

    Raises:
        ConfigurationError: the file cannot be read, or a rule makes no sense.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is no text of UTF-8") from error
    try:
        inventory = _from_csv(text) if path.suffix.lower() == ".csv" else _from_yaml(text)
        for part in split(inventory):
            check_inventory(part)
    except (ValueError, yaml.YAMLError) as error:  # msgspec's too
        raise ConfigurationError(f"{path}: {short(str(error))}") from error
    return inventory


def _from_yaml(text: str) -> Inventory:
    loaded = yaml.safe_load(text)
    return msgspec.convert({} if loaded is None else loaded, Inventory)


def _from_csv(text: str) -> Inventory:
    rows = list(csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True))
    if not rows:
        return Inventory()
    unknown = sorted({str(name) for name in rows[0]} - set(_COLUMNS))
    if unknown or "cidr" not in rows[0]:
        raise ValueError(f"the first line names the columns {', '.join(_COLUMNS)}; cidr and name are enough")
    return msgspec.convert(
        {"addresses": [{name: value for name, value in row.items() if value} for row in rows]}, Inventory, strict=False
    )


def check_name(name: str) -> str:
    """Return the name of a document.

    Raises:
        ConfigurationError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no name of a document: 1 to 64 letters, digits, points and dashes")
    return name


def split(inventory: Inventory) -> list[Inventory]:
    """Cut an inventory where a control could not carry it, the most exact ranges first.

    Parts take effect one after the other: with the most exact first, no address gets a name that a later part takes
    away again.
    """
    patterns = len(inventory.labels) + len(inventory.names)
    if len(encode_inventory(inventory)) <= MAX_DOCUMENT_BYTES and patterns <= MAX_PATTERNS:
        return [inventory]
    parts = [Inventory(addresses=addresses) for addresses in _cut(inventory.addresses)]
    for start in range(0, len(inventory.labels), MAX_PATTERNS):
        parts.append(Inventory(labels=inventory.labels[start : start + MAX_PATTERNS]))
    for start in range(0, len(inventory.names), MAX_PATTERNS):
        parts.append(Inventory(names=inventory.names[start : start + MAX_PATTERNS]))
    return parts


def _cut(rules: Iterable[AddressRule]) -> Iterator[tuple[AddressRule, ...]]:
    ranges = [(read_network(text), text, rule) for rule in rules for text in rule.cidrs]
    # By name among ranges of a length: then few documents have to repeat one.
    ranges.sort(key=lambda item: (-item[0].prefixlen, item[2].name or "", item[0].version, item[0].network_address))
    part: dict[int, tuple[AddressRule, list[str]]] = {}
    size = 0
    for _, text, rule in ranges:
        more = len(text) + _RANGE_BYTES
        if id(rule) not in part:
            more += len((rule.name or "").encode()) * 2 + _RULE_BYTES
        if part and size + more > _CUT_AT_BYTES:
            yield _rules_of(part)
            part, size = {}, 0
        part.setdefault(id(rule), (rule, []))[1].append(text)
        size += more
    if part:
        yield _rules_of(part)


def _rules_of(part: Mapping[int, tuple[AddressRule, list[str]]]) -> tuple[AddressRule, ...]:
    return tuple(msgspec.structs.replace(rule, cidr=tuple(texts)) for rule, texts in part.values())


def documents_of(name: str, inventory: Inventory) -> dict[str, bytes]:
    """Return the controls' values by document: one, or several numbered ones.

    Raises:
        ConfigurationError: they would be more than a tenant may have.
    """
    parts = split(inventory)
    if len(parts) > MAX_DOCUMENTS:
        raise ConfigurationError(
            f"{summary_of(inventory).text} make {len(parts)} documents; a tenant may have {MAX_DOCUMENTS}: "
            "leave out what you do not meet (--only)"
        )
    return {_part_name(name, number): encode_inventory(part) for number, part in enumerate(parts, start=1)}


def _part_name(name: str, number: int) -> str:
    return name if number == 1 else f"{name}/{number}"


def is_part_of(document: str, name: str) -> bool:
    """Say whether a document is ``name``, or a numbered part of it."""
    return document == name or document.startswith(f"{name}/")
