"""Quantities and names as people read them: exact, deterministic, harmless. Pure."""

import math
import re
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal

from schemas.drift import EdgeRef
from schemas.flow import PROTOCOL_NAMES

SHOWN_DIGITS = 4
"""Significant digits of a number with a fraction; evidence itself carries six."""
MAX_NAME_CHARS = 80
_HEAD_CHARS, _TAIL_CHARS = 60, 16
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@*+-]*")

_PLURALS = {
    "calls": "call",
    "peers": "peer",
    "windows": "window",
    "edges": "edge",
    "records": "record",
    "reports": "report",
    "hosts": "host",
    "contacts": "contact",
    "restarts": "restart",
    "ports": "port",
    "targets": "target",
}
_US_STEPS = ((1_000_000, "s"), (1_000, "ms"), (1, "µs"))
_MS_STEPS = ((172_800_000, 86_400_000, "d"), (3_600_000, 3_600_000, "h"), (60_000, 60_000, "min"), (1_000, 1_000, "s"))
_BYTE_STEPS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def number(value: float | int | Decimal) -> str:
    """Write a number without exponent: whole numbers in full, others to ``SHOWN_DIGITS`` significant digits."""
    if not math.isfinite(value):
        return "unknown"
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    if exact == exact.to_integral_value():
        return f"{exact:,.0f}" if exact else "0"
    places = max(0, SHOWN_DIGITS - 1 - exact.adjusted())
    rounded = exact.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_EVEN)
    text = f"{rounded:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value: float | int, unit: str) -> str:
    """Write a value of evidence with a unit people read.

    ``us`` becomes µs, ms or s; ``bytes`` B to TiB; ``ratio`` %; counts get their singular. Other units stay.
    """
    if not math.isfinite(value):
        return "unknown"
    exact = Decimal(repr(value))
    if unit == "us":
        factor, name = next((step for step in _US_STEPS if abs(exact) >= step[0]), _US_STEPS[-1])
        return f"{number(exact / factor)} {name}"
    if unit == "bytes":
        factor, name = next((step for step in _BYTE_STEPS if abs(exact) >= step[0]), _BYTE_STEPS[-1])
        return f"{number(exact / factor)} {name}"
    if unit == "ratio":
        return f"{number(exact * 100)} %"
    if unit in _PLURALS:
        return f"{number(exact)} {_PLURALS[unit] if exact == 1 else unit}"
    return f"{number(exact)} {name_of(unit)}" if unit else number(exact)


def duration(length_ms: int) -> str:
    """Write a length of time: ``10 s``, ``4 min``, ``1.5 h``, ``14 d``."""
    for least, factor, name in _MS_STEPS:
        if length_ms >= least:
            return f"{number(Decimal(length_ms) / factor)} {name}"
    return f"{length_ms} ms"


def weekday_of(time_ms: float) -> str:
    """Write Unix epoch ms as people recall a time: ``Tuesday 2024-06-04 02:00 UTC``."""
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    try:
        when = datetime.fromtimestamp(time_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{number(time_ms)} ms"
    return f"{days[when.weekday()]} {when:%Y-%m-%d %H:%M} UTC"


def instant(time_ms: int) -> str:
    """Write Unix epoch ms as ISO 8601 UTC; a time no calendar holds stays a number."""
    try:
        whole = datetime.fromtimestamp(time_ms // 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"


def _escaped(character: str) -> str:
    if character.isprintable() and character not in '"\\':
        return character
    code = ord(character)
    if character in '"\\':
        return f"\\{character}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def name_of(name: str) -> str:
    """Show a name that came from outside: it cannot break the line, colour a terminal or pass for a sentence.

    Plain names stay; anything else stands in double quotes with control, invisible and direction characters escaped.
    Names of over ``MAX_NAME_CHARS`` characters lose their middle.
    """
    short = name if len(name) <= MAX_NAME_CHARS else f"{name[:_HEAD_CHARS]}...{name[-_TAIL_CHARS:]}"
    if _PLAIN_NAME.fullmatch(short):
        return short
    return '"' + "".join(_escaped(character) for character in short) + '"'


def port_of(port: int, protocol: int) -> str:
    """Show a port and protocol, ``443/tcp``; empty where both are unknown (-1)."""
    transport = PROTOCOL_NAMES.get(protocol, f"protocol {protocol}") if protocol >= 0 else ""
    if port < 0:
        return transport
    return f"{port}/{transport}" if transport else f"port {port}"


def edge_of(ref: EdgeRef) -> str:
    """Show an edge with what is known of its port."""
    where = port_of(ref.port, ref.protocol)
    return f"{name_of(ref.src)} -> {name_of(ref.dst)}" + (f" ({where})" if where else "")
