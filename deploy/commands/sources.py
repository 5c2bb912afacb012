"""`drift sources`: lists the formats of producers that are read, and explains what becomes of one record."""

import json
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from deploy.inventory.documents import DEFAULT_DOCUMENT, documents_of
from deploy.inventory.documents import read_file as read_rules
from deploy.inventory.explaining import explain_name, line_of, rules_of
from deploy.source_catalogue import catalogue, examples_of, message_of
from deploy.source_explanation import DEAD_LETTER, FLOW_KEYS, NOT_A_FLOW, Explanation, Source, explain, verdict_of
from models.graph.naming import Naming
from schemas.errors import ConfigurationError
from streams.log_files import format_for, read_file, shape_of
from streams.sources.registry import AUTO, source_format, split_spelling

_LOOKED_AT = 10_000
"""Records among which the first flow is looked for."""
_SHOWN_CHARACTERS = 100
_EXPLAINED = 10
"""Spans of one message that are explained unless one is asked for."""
_NO_PARTS = "--part is for messages of many spans (otlp-traces)"
_LAYOUTS = {"lines": "line by line", "values": "JSON value by value", "arrow": "Arrow batches"}
_LABELS = {"src": "client", "dst": "server", "time_ms": "time"}


@click.group(invoke_without_command=True, epilog="Example: drift sources explain --format zeek-conn conn.log.gz")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def sources(ctx: click.Context, as_json: bool) -> None:
    """List the formats that are read, what each carries and the options it takes (`name?option=value`)."""
    if ctx.invoked_subcommand is not None:
        return
    entries = catalogue()
    if as_json:
        listed = [{"format": e.name, "carries": e.carries, "options": e.options, "note": e.note} for e in entries]
        click.echo(json.dumps(listed))
        return
    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    for entry in entries:
        _paragraph(entry.name, entry.note or ", ".join(entry.carries) or "no examples are shipped", 18, width)
        for name, meaning in entry.options.items():
            _paragraph("", f"{name}=  {meaning}", 18, width)


def _paragraph(head: str, text: str, indent: int, width: int) -> None:
    lines = textwrap.wrap(text, width - indent) or [""]
    click.echo(f"{head:<{indent}}{lines[0]}")
    for line in lines[1:]:
        click.echo(" " * indent + line)


@dataclass(frozen=True, slots=True)
class _Found:
    """A record of a file: its number, from 1, and its bytes."""

    number: int
    value: bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """One record of a message: its number among ``count``, from 1, and what there is to say of it."""

    number: int
    count: int
    value: bytes
    found: Explanation


@sources.command("explain", epilog="Example: drift sources explain --format zeek-conn conn.log.gz --record 12")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--format", "format_name", default=AUTO, show_default=True, help="How the file is read.")
@click.option("--record", "number", type=click.IntRange(min=1), help="Which record, from 1; default: the first flow.")
@click.option("--part", type=click.IntRange(min=1), help="Which of its spans, from 1; default: the first ones.")
@click.option(
    "--inventory",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Name client and server by this file too (docs/inventory.md).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain_record(
    file: Path, format_name: str, number: int | None, part: int | None, inventory: Path | None, as_json: bool
) -> None:
    """Explain step by step what becomes of one record of FILE, and which of its fields made it so."""
    spelling = format_for(file, format_name)
    packing, layout = shape_of(file)
    if layout == "arrow":
        raise ConfigurationError(
            f"{file.name}: an Arrow file has the columns of `canonical`; nothing is to be explained"
        )
    record = _record_of(file, spelling, number)
    name, arguments = split_spelling(spelling)
    examples = [message_of(example) for example in examples_of(name)]
    whole, count = _parts_of(spelling, record, part)
    parts = [_Part(number, count, value, explain(spelling, value, examples)) for number, value in whole]
    naming = Naming() if inventory is None else Naming(rules_of(documents_of(DEFAULT_DOCUMENT, read_rules(inventory))))
    if as_json:
        read = {
            "file": file.name,
            "packing": packing,
            "layout": layout,
            "format": name,
            "options": arguments,
            "is_recognised": source_format(format_name).name == AUTO,
            "record": record.number,
            "bytes": len(record.value),
        }
        if count == 1:
            click.echo(json.dumps({**read, **_as_json(parts[0].found, naming)}))
        else:
            several = [{"part": one.number, **_as_json(one.found, naming)} for one in parts]
            click.echo(json.dumps({**read, "parts_total": count, "parts": several}))
        return
    how = "recognised" if source_format(format_name).name == AUTO else "as told"
    from_file = set(arguments) - set(split_spelling(format_name)[1])
    named = f"; {', '.join(sorted(from_file))} as the file's first lines say" if from_file else ""
    _step(1, "file", f"{file.name}: {packing}, {_LAYOUTS[layout]}; format {name}, {how}{named}")
    for one in parts:
        _show(record, one, naming)
    if len(parts) < count and part is None:
        click.echo(f"{count - len(parts)} spans more: --part N explains one of them")


def _parts_of(spelling: str, record: _Found, part: int | None) -> tuple[list[tuple[int, bytes]], int]:
    """Return those records of a message that are to be explained, by number, and how many there are."""
    records_alone: Any = getattr(source_format(spelling), "records_alone", None)
    values = [record.value] if records_alone is None else records_alone(record.value)
    if part is not None and part > len(values):
        raise ConfigurationError(f"record {record.number} holds {len(values)} spans" if records_alone else _NO_PARTS)
    wanted = range(1, len(values) + 1)[:_EXPLAINED] if part is None else (part,)
    return [(number, values[number - 1]) for number in wanted], len(values)


def _record_of(file: Path, spelling: str, number: int | None) -> _Found:
    """Return the record asked for, else the first that is a flow, else the first dead letter, else the first."""
    reading = source_format(spelling)
    first: _Found | None = None
    dead: _Found | None = None
    at = 0
    for at, message in enumerate(read_file(file, spelling), start=1):
        if number is not None and at < number:
            continue
        found = _Found(at, message.value)
        first = first or found
        verdict = verdict_of(reading, message.value)
        if number is not None or verdict.flows:
            return found
        if verdict.dead:
            dead = dead or found
        if at >= _LOOKED_AT:
            break
    if first is None:
        raise ConfigurationError(f"{file.name} has {at} records" if at else f"{file.name} has no records")
    return dead or first


# -- text --------------------------------------------------------------------------------------------------------------


def _step(number: int, title: str, text: str) -> None:
    click.echo(f"{number}. {title:<10}{text}")


def _line(text: str) -> None:
    click.echo(" " * 13 + text)


def _show(record: _Found, part: _Part, naming: Naming) -> None:
    found = part.found
    verdict, fields = found.verdict, found.fields
    which = f", span {part.number} of {part.count}" if part.count > 1 else ""
    size = f"record {record.number}{which}, {len(part.value)} bytes"
    if fields is None:
        _step(2, "read", f"{size}: neither JSON nor a line of this format's columns")
        _line(_printable(part.value.decode(errors="replace")))
    else:
        _step(2, "read", f"{size}: {len(fields)} fields; those marked * have a bearing on what it became")
        width = min(40, max(len(name) for name, _ in fields))
        for name, value in fields:
            _line(f"{'*' if name in found.used else ' '} {_printable(name):<{width}}  {_printable(value)}")
    if verdict.flows:
        _show_flow(found)
    elif found.decided_by:
        _step(3, "why", f"with another value in {' or '.join(found.decided_by)} it would be something else")
    else:
        _step(3, "why", "no single field would make it something else")
    _step(4, "became", _became(found))
    for kind in verdict.losses:
        _line(f"it reports loss: {kind}")
    for reason, detail in verdict.dead:
        _line(f"dead letter: {reason}: {_printable(detail)}")
    if verdict.flows:
        ends = [explain_name(naming, verdict.flows[0][end]) for end in ("src", "dst")]
        _step(5, "counts as", _printable(f"{ends[0].name} -> {ends[1].name}"))
        for end in ends:
            if end.name != end.given:
                _line(_printable(line_of(end)))


def _show_flow(found: Explanation) -> None:
    flow = found.verdict.flows[0]
    _step(3, "took", "value          from" if len(found.verdict.flows) == 1 else "of its first flow")
    for key in FLOW_KEYS:
        source = found.sources.get(key)
        if flow[key] is None and source is None:
            if key in ("latency_us", "errors", "bytes_out", "bytes_in"):
                _line(f"{_LABELS.get(key, key):<12}unknown")
            continue
        _line(f"{_LABELS.get(key, key):<12}{_value(key, flow[key])}{_origin(source, flow[key])}")
    turned = (
        f"another {' or '.join(found.turned_by)} would turn it round" if found.turned_by else "no one field turns it"
    )
    _line(f"{'direction':<12}{flow['src']} called {flow['dst']}; {turned}")
    for name, why in found.needed.items():
        _line(f"without {name}: {_printable(why)}")


def _origin(source: Source | None, value: Any) -> str:
    if source is None:
        return ""
    if value is None:
        return f"; another {' or '.join((*source.fields, *source.also))} could give one"
    also = f" (with {', '.join(source.also)})" if source.also and source.fields else ""
    return f"  <- {', '.join(source.fields or source.also)}{also}"


def _value(key: str, value: Any) -> str:
    if value is None:
        return "unknown"
    if key == "time_ms":
        return f"{datetime.fromtimestamp(value / 1_000, UTC).isoformat(timespec='milliseconds')}"
    return _printable(value)


def _became(found: Explanation) -> str:
    verdict = found.verdict
    if verdict.flows:
        first = verdict.flows[0]
        more = f", and {len(verdict.flows) - 1} flows more" if len(verdict.flows) > 1 else ""
        port = "" if first["port"] is None else f":{first['port']}"
        wire = "" if first["protocol"] is None else f" ({first['protocol']})"
        return f"a flow: {first['src']} -> {first['dst']}{port}{wire}{more}"
    if verdict.became == NOT_A_FLOW:
        return f"not a flow record: {', '.join(verdict.skipped)}"
    return f"a {DEAD_LETTER}" if verdict.dead else "nothing: the message holds no record"


def _printable(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


# -- JSON --------------------------------------------------------------------------------------------------------------


def _as_json(found: Explanation, naming: Naming) -> dict[str, Any]:
    verdict = found.verdict
    used = set(found.used)
    return {
        "became": verdict.became,
        "fields": None if found.fields is None else _fields(found.fields, used),
        "flows": verdict.flows,
        "counts_as": [{end: naming.name(flow[end]) for end in ("src", "dst")} for flow in verdict.flows],
        "from": {key: {"fields": s.fields, "also": s.also} for key, s in found.sources.items()},
        "turned_by": found.turned_by,
        "needed": found.needed,
        "decided_by": found.decided_by,
        "not_flow": dict(verdict.skipped),
        "losses": verdict.losses,
        "dead_letters": [{"reason": reason, "detail": detail} for reason, detail in verdict.dead],
    }


def _fields(fields: Iterable[tuple[str, Any]], used: Sequence[str] | set[str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value, "is_used": name in used} for name, value in fields]
