"""What each source format carries and which options it takes, from its shipped example records. Reads package data.

The examples are records with what the format makes of them; tests hold the decoders, and docs/sources, to them.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from schemas.ids import is_external
from streams.sources.orientation import EPHEMERAL_FROM
from streams.sources.registry import ARGUMENTS, AUTO, FORMATS

IS_CARRIED: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "workload names": lambda flow: any("/" in flow[end] for end in ("src", "dst")),
    "names outside": lambda flow: any(is_external(flow[end]) for end in ("src", "dst")),
    # An ephemeral port is a server's only where the record itself says who called; halves of calls are a side's own.
    "direction": lambda flow: flow["port"] >= EPHEMERAL_FROM or "pair" in flow,
    "bytes, packets": lambda flow: "bytes_out" in flow or "bytes_in" in flow,
    "both ways in one": lambda flow: "bytes_out" in flow and "bytes_in" in flow,
    "replies folded": lambda flow: flow.get("continued") == 1,
    "sampling": lambda flow: flow.get("sampling", 1) > 1,
    "verdict": lambda flow: "denied" in flow,
    "errors": lambda flow: "errors" in flow,
    "latency": lambda flow: "latency_us" in flow,
    "reporting side": lambda flow: flow["side"] == 1,
}
LOSS_REPORTS = "loss reports"
CARRIES = (*IS_CARRIED, LOSS_REPORTS)
"""Columns of the table in docs/sources/README.md."""

OPTIONS = {
    "fields": "columns of text without a header, by the tool's names (docs/sources/FORMAT.md)",
    "cluster": "the cluster's name, instead of the record's; - leaves clusters out of names",
    "time": "event time: end or start of a connection; of suricata-eve logged, too; default: end, or logged",
    "calls": "which events count as calls: traces and drops (traces, default) or policy verdicts (verdicts)",
    "encoding": "of messages: auto (default: told by each message), json or proto",
}

_NOTES = {
    "canonical": "flows of our own: JSON or Arrow; carries what you write",
    "canonical-json": "the same, JSON alone",
    "canonical-arrow": "the same, Arrow alone",
    AUTO: "takes the first format that knows a record, and keeps to it",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A source format.

    Attributes:
        carries: names among ``CARRIES``; empty where ``note`` says what there is to say.
        options: meaning of each option by name, the main one first.
    """

    name: str
    carries: tuple[str, ...]
    options: Mapping[str, str]
    note: str = ""


def catalogue() -> list[Entry]:
    """Return all formats, producers' first."""
    found = [
        Entry(
            name, _carried(name), {key: OPTIONS.get(key, "") for key in ARGUMENTS.get(name, ())}, _NOTES.get(name, "")
        )
        for name in FORMATS
    ]
    return sorted(found, key=lambda entry: bool(entry.note))


def _carried(name: str) -> tuple[str, ...]:
    examples = examples_of(name)
    flows = [flow for example in examples for flow in example["flows"]]
    carried = [what for what, has in IS_CARRIED.items() if any(map(has, flows))]
    return (*carried, *([LOSS_REPORTS] if any(example["signals"] for example in examples) else []))


@lru_cache
def examples_of(name: str) -> tuple[Mapping[str, Any], ...]:
    """Return the shipped example records of a format; none for those that have no file."""
    path = files("schemas") / "examples" / "sources" / f"{name}.jsonl"
    return tuple(json.loads(line) for line in _lines(path))


def message_of(example: Mapping[str, Any]) -> bytes:
    """Return the message of an example: text, or base64 of what is none."""
    return base64.b64decode(example["base64"]) if "base64" in example else str(example["value"]).encode()


def _lines(path: Any) -> Iterable[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()
