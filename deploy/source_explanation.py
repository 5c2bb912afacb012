"""Why a record becomes what it becomes, found by trying: each field is changed; what changes with it is its doing.

A decoder is a pure function of the record, so trying tells the truth about every format, without a second description
of it that could go stale. Pure.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from schemas.flow import PROTOCOL_NUMBERS, SIDE_SERVER, UNKNOWN
from streams.sources.aws_vpc import DEFAULT_FIELDS as VPC_FIELDS
from streams.sources.format import MARKS, MEASURES, SourceFormat
from streams.sources.registry import source_format, split_spelling
from streams.sources.zeek_records import DEFAULT_FIELDS as ZEEK_FIELDS

MAX_FIELDS = 400
"""A record with more is explained without the fields that gave it what it has."""

FLOW_KEYS = ("tenant", "src", "dst", "port", "protocol", "reporter", "host", "time_ms", *MEASURES, *MARKS)
"""Keys of a flow in an explanation; ``None`` is unknown."""

FLOW, NOT_A_FLOW, DEAD_LETTER, NOTHING = "flow", "not a flow", "dead letter", "nothing"

_REMOVED: Any = object()
_UNSET = "-"
_MORE_VALUES = 12
_ISO = re.compile(r"(\d{4})(-\d\d-\d\d[T ].*)", re.DOTALL)
_ATTRIBUTES = "attributes"
_SHORT = (
    ("resourceSpans[0].resource.attributes[", "resource["),
    ("resourceSpans[0].scopeSpans[0].spans[0].", ""),
    ("resourceSpans[0].scopeSpans[0].", ""),
)
"""Of names of fields: those of OTLP's only span need not say where it is."""
_SECOND_NS, _INSTANTS_NS_FROM = 10**9, 10**17
_MARKS_UNSAID = {"sampling": 1, "continued": 0}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}

Columns = Callable[[str], tuple[str, Sequence[str]] | None]
"""Of a line of text: what parts its cells, and their names; ``None`` where it is no such line."""

Flow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a format makes of one message: flows, what is no flow by kind, (reason, detail) of dead letters."""

    flows: list[Flow]
    skipped: Mapping[str, int]
    dead: list[tuple[str, str]]
    losses: list[str]

    @property
    def became(self) -> str:
        """Return the word for it."""
        return FLOW if self.flows else DEAD_LETTER if self.dead else NOT_A_FLOW if self.skipped else NOTHING


@dataclass(slots=True)
class Source:
    """Where a value comes from.

    Attributes:
        fields: another value of the same kind there gives another value here.
        also: fields that take part: without them, or with other words in them, it is another value, or unknown.
    """

    fields: list[str] = field(default_factory=list)
    also: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Explanation:
    """A record, what became of it, and why.

    Attributes:
        fields: the record's fields by name, in order; ``None``: it cannot be taken apart.
        used: those with any bearing on what it became. needed: those without which it is no flow, and why.
        sources: where each value of the first flow comes from.
        turned_by: fields by which client and server would change places.
        decided_by: of what is no flow: fields that made it so; with another value there it would be something else.
    """

    verdict: Verdict
    fields: list[tuple[str, Any]] | None
    used: list[str] = field(default_factory=list)
    needed: dict[str, str] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    turned_by: list[str] = field(default_factory=list)
    decided_by: list[str] = field(default_factory=list)


class _AnyTenant(dict[str | None, int]):
    def __missing__(self, tenant: str | None) -> int:
        return 0


def verdict_of(reading: SourceFormat, value: bytes) -> Verdict:
    """Return what a format makes of one message."""
    decoded = reading.decode([value])
    flows = [flow for run in decoded.runs for flow in _flows(run)]
    dead = [(bad.reason.value, bad.detail) for bad in decoded.rejected]
    return Verdict(flows, dict(decoded.skipped), dead, [signal.kind for signal in decoded.signals])


def _flows(run: Any) -> Iterator[Flow]:
    grouping = run.group(None, _AnyTenant())
    for row in range(len(run.message)):
        tenant, src, dst, port, protocol = grouping.edges[int(grouping.edge[row])]
        flow: Flow = {"tenant": tenant, "src": src, "dst": dst, "port": _known(port)}
        flow["protocol"] = _PROTOCOL_NAMES.get(protocol, _known(protocol))
        columns = {name: int(column[row]) for name, column in run.columns.items()}
        flow["reporter"] = "server" if columns["side"] == SIDE_SERVER else "client"
        flow["host"] = run.hosts([row])[0]
        for name in ("time_ms", *MEASURES, *MARKS):
            flow[name] = _known(columns.get(name, _MARKS_UNSAID.get(name, UNKNOWN)))
        yield flow


def _known(value: int) -> int | None:
    return None if value == UNKNOWN else value


# -- taking records apart ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """A field: its name, its value, and the record with another value there (``_REMOVED``: without it)."""

    name: str
    value: Any
    put: Callable[[Any], bytes]


def columns_of(spelling: str) -> Columns:
    """Return what names the cells of lines of a format; of JSON formats, nothing."""
    name, arguments = split_spelling(spelling)
    separator = {"zeek-conn": "\t", "aws-vpc": " "}.get(name)
    given = arguments.get("fields", "")

    def columns(line: str) -> tuple[str, Sequence[str]] | None:
        if separator is None or "\n" in line or line.startswith(("#", "{", "[")):
            return None
        cells = line.split(separator)
        if len(cells) < 3:
            return None
        lists = [text.replace(",", " ").split() for text in given.split("|")] if given else []
        if name == "zeek-conn":
            lists.append(list(ZEEK_FIELDS))
        lists.extend(map(list, VPC_FIELDS.values()))
        names = next((names for names in lists if len(names) == len(cells)), lists[0])
        return separator, [names[n] if n < len(names) else f"column {n + 1}" for n in range(len(cells))]

    return columns


def _parts(value: bytes, columns: Columns) -> list[_Part] | None:
    """Return a record's fields, or ``None`` where it is neither JSON nor a line of columns."""
    try:
        text = value.decode()
        tree = json.loads(text) if text.lstrip()[:1] in ("{", "[") else None
        if tree is not None:
            found = list(_walk(tree, "", lambda new: _json(new).encode(), columns))
        else:
            found = _cells(text, lambda new: str(new).encode(), columns)
    except (ValueError, RecursionError):
        return None
    short = [replace(part, name=_short(part.name)) for part in found]
    return short or None


def _short(name: str) -> str:
    for long, short in _SHORT:
        if name.startswith(long):
            return short + name.removeprefix(long)
    return name


def _walk(tree: Any, name: str, put: Callable[[Any], bytes], columns: Columns) -> Iterator[_Part]:
    if isinstance(tree, dict) and tree:
        for key, child in tree.items():
            yield from _walk(child, f"{name}.{key}" if name else key, _putting(tree, key, put), columns)
    elif isinstance(tree, list) and tree:
        for index, child in enumerate(tree):
            put_child = _putting(tree, index, put)
            if name.endswith(_ATTRIBUTES) and _is_attribute(child):
                yield from _attribute(child, name, put_child)
            else:
                yield from _walk(child, f"{name}[{index}]", put_child, columns)
    else:
        inner = list(_wrapped(tree, put, columns)) if isinstance(tree, str) else []
        yield from inner or [_Part(name, tree, put)]


def _is_attribute(tree: Any) -> bool:
    """Say whether something is an attribute of OTLP's JSON: ``{"key": "a", "value": {"stringValue": "b"}}``."""
    if not isinstance(tree, dict) or tree.keys() != {"key", "value"} or not isinstance(tree["key"], str):
        return False
    value = tree["value"]
    return isinstance(value, dict) and len(value) == 1 and not isinstance(next(iter(value.values())), dict | list)


def _attribute(tree: Any, name: str, put: Callable[[Any], bytes]) -> Iterator[_Part]:
    ((kind, value),) = tree["value"].items()
    yield _Part(
        f"{name}[{tree['key']}]",
        value,
        lambda new: put(new if new is _REMOVED else {**tree, "value": {kind: new}}),
    )


def _putting(tree: Any, key: Any, put: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def put_here(new: Any) -> bytes:
        changed = tree.copy()
        if new is _REMOVED:
            del changed[key]
        else:
            changed[key] = new
        return put(changed)

    return put_here


def _wrapped(text: str, put: Callable[[Any], bytes], columns: Columns) -> Sequence[_Part]:
    """Return the fields of a record that is the text of a field, as log shippers write it."""
    if text.lstrip()[:1] == "{":
        try:
            tree = json.loads(text)
        except ValueError:
            return ()
        return list(_walk(tree, "", lambda new: put(_json(new)), columns))
    return _cells(text, put, columns)


def _cells(line: str, put: Callable[[Any], bytes], columns: Columns) -> list[_Part]:
    shape = columns(line.strip("\r\n"))
    if shape is None:
        return []
    separator, names = shape
    cells = line.strip("\r\n").split(separator)

    def putting(number: int) -> Callable[[Any], bytes]:
        def put_here(new: Any) -> bytes:
            changed = [*cells]
            changed[number] = _UNSET if new is _REMOVED or new == "" else str(new)
            return put(separator.join(changed))

        return put_here

    return [_Part(name, cell, putting(n)) for n, (name, cell) in enumerate(zip(names, cells, strict=True))]


def _json(tree: Any) -> str:
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":"))


# -- trying ------------------------------------------------------------------------------------------------------------


def explain(spelling: str, value: bytes, examples: Sequence[bytes] = ()) -> Explanation:
    """Explain a message.

    Args:
        spelling: the format, as `source_format` takes it; with the file's columns, if it has its own.
        examples: other records of the format: they tell which words a field may hold.
    """
    reading, columns = source_format(spelling), columns_of(spelling)
    verdict = verdict_of(reading, value)
    parts = _parts(value, columns)
    found = Explanation(verdict, None if parts is None else [(part.name, part.value) for part in parts])
    if parts is None or len(parts) > MAX_FIELDS:
        return found
    words: dict[str, list[Any]] = {}
    for example in examples:
        for part in _parts(example, columns) or ():
            known = words.setdefault(part.name, [])
            if part.value not in known and len(known) < _MORE_VALUES:
                known.append(part.value)
    for part in parts:
        _try(part, reading, words.get(part.name, ()), found)
    return found


def _try(part: _Part, reading: SourceFormat, words: Sequence[Any], found: Explanation) -> None:
    before = found.verdict
    was = before.flows[0] if before.flows else None
    is_used = False
    for near, new in _others(part.value, words):
        after = verdict_of(reading, part.put(new))
        if after == before:
            continue
        is_used = True
        if was is None:
            if after.became != before.became or (before.became == NOT_A_FLOW and after.skipped != before.skipped):
                _note(found.decided_by, part.name)
        elif not after.flows:
            if new is _REMOVED:
                found.needed[part.name] = _why_none(after)
        else:
            _compare(was, after.flows[0], part.name, near, found)
    if is_used:
        found.used.append(part.name)


def _compare(was: Flow, now: Flow, name: str, near: bool, found: Explanation) -> None:
    turned = was["src"] != was["dst"] and (now["src"], now["dst"]) == (was["dst"], was["src"])
    if turned:
        _note(found.turned_by, name)
        return  # what else changes follows from that
    for key in FLOW_KEYS:
        if now[key] != was[key]:
            source = found.sources.setdefault(key, Source())
            if near and None not in (now[key], was[key]):
                _note(source.fields, name)
                if name in source.also:
                    source.also.remove(name)
            elif name not in source.fields:
                _note(source.also, name)


def _note(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def _why_none(after: Verdict) -> str:
    if after.dead:
        return f"{DEAD_LETTER}: {after.dead[0][0]}: {after.dead[0][1]}"
    return f"{NOT_A_FLOW}: {', '.join(after.skipped)}" if after.skipped else NOTHING


def _others(value: Any, words: Sequence[Any]) -> Iterator[tuple[bool, Any]]:
    """Yield other values for a field, and whether each is of the same kind: no known word, but one that it could be."""
    for other in _same_kind(value):
        yield True, other
    yield False, _REMOVED
    for other in words:
        if other != value:
            yield False, other
    if isinstance(value, int | float) and not isinstance(value, bool) and value:
        yield False, 0


def _same_kind(value: Any) -> Sequence[Any]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        step = max(1, abs(value) // 4)
        near = (value - _SECOND_NS,) if value > _INSTANTS_NS_FROM else ()  # may have to stay before another instant
        return *near, value + step, value - step
    if isinstance(value, float):
        return (value * 1.25 if value else 1.0,)
    if not isinstance(value, str) or not value or value == _UNSET:
        return ()
    if re.fullmatch(r"\d{1,30}", value, re.ASCII):
        return [str(number) for number in _same_kind(int(value)) if number >= 0]
    if re.fullmatch(r"\d{1,30}\.\d{1,30}", value, re.ASCII):
        return [repr(number) for number in _same_kind(float(value))]
    match = _ISO.fullmatch(value)
    if match is not None:
        return (f"{int(match[1]) - 1:04}{match[2]}",)
    try:
        return ("2001:db8::77:77" if ip_address(value).version == 6 else "198.51.100.77",)
    except ValueError:
        return (f"{value}x",)
