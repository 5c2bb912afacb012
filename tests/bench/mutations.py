"""Mutated records by the million: JSON is laid out once, then mutated by splicing bytes where its values are.

Values are replaced by what breaks decoders or by another record's, members are doubled and renamed away, cells and
fields of protobuf replaced; bytes are flipped, cut, doubled and spliced; records are joined into arrays and lines, and
wrapped as log shippers do. The same seed gives the same messages.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.protobuf_mutations import mutate_protobuf

_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 65_535, 65_536, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63) - 1),
    *(0.5, -0.0, 1e308, 1e-308, 1.5e18, 1_713_484_795.943239),
    *("", "-", " ", "0", "-1", "1e9", "nan", "inf", "\x00", "\ud7ff", "ä" * 300, "x" * 5_000, "\u202e"),
    *("::ffff:1.2.3.4", "999.1.1.1", "fe80::1%eth0", "10.0.0.1", "a.b.example.co.uk.", ".", "..", "ext:", "/"),
    *("2024-02-30T00:00:00Z", "9999-12-31T23:59:59.999999999+14:00", "1970-01-01T00:00:00Z", "#fields", "#path\tdns"),
    *(
        "flow",
        "conn",
        "tcp",
        "ICMP",
        "FORWARDED",
        "DROPPED",
        "TO_ENDPOINT",
        "k8s:a=b",
        "reserved:world",
        "inbound|80||",
    ),
    *([], {}, [[]], {"": {}}, ["a", 1, None], {"a": [1]}, [{"name": "x"}], {"flow": {}}, {"message": "x"}),
)
_ODD = (
    *(json.dumps(value).encode() for value in _ODD_VALUES),
    *(json.dumps(value, ensure_ascii=False).encode() for value in ("ä" * 300, "\u202e", "\ud7ff")),
    *(b"1e400", b"-1e400", b"NaN", b"Infinity", b'"\\ud800"', b"01", b"+1", b"1.", b"'x'", b'"\n"', b"[" * 600),
)
_BYTES = (
    *(bytes([byte]) for byte in b'\x00\n\t {}[]"\\,-:#'),
    *(b"\xff\xff\xff\xff", b"\xef\xbb\xbf", b"\r\n", b"\xc3", b"\xed\xa0\x80"),
)
_TINY = (b"", b" ", b"\n", b"[]", b"{}", b"null", b"7", b'""', b"\x00\x00\x00\x00\x07{}", b"\xef\xbb\xbf", b"\xff")


@dataclass(frozen=True, slots=True)
class Laid:
    """A message, and where its members are.

    Attributes:
        spans: (start of the key, start of the value, end of the value) of every member of an object, and (start, start,
            end) of every element of an array; in order of their ends, inner before outer.
        is_text: it is no protobuf.
    """

    value: bytes
    spans: tuple[tuple[int, int, int], ...]
    is_text: bool = True


def lay_out(value: bytes) -> list[Laid]:
    """Return a message as it is and, if it is JSON, compact with its places, in both ways to write what is no ASCII."""
    try:
        record = json.loads(value)
    except (ValueError, RecursionError):
        return [Laid(value, (), not any(byte < 9 for byte in value))]
    found = [Laid(value, ())]
    for is_ascii in (True, False):
        out, spans = bytearray(), list[tuple[int, int, int]]()
        _lay(record, out, spans, is_ascii)
        found.append(Laid(bytes(out), tuple(spans)))
    return found


def _lay(value: Any, out: bytearray, spans: list[tuple[int, int, int]], is_ascii: bool) -> None:
    if isinstance(value, dict):
        out += b"{"
        for number, (key, inner) in enumerate(value.items()):
            out += b"," if number else b""
            start = len(out)
            out += json.dumps(key, ensure_ascii=is_ascii).encode() + b":"
            middle = len(out)
            _lay(inner, out, spans, is_ascii)
            spans.append((start, middle, len(out)))
        out += b"}"
    elif isinstance(value, list):
        out += b"["
        for number, inner in enumerate(value):
            out += b"," if number else b""
            start = len(out)
            _lay(inner, out, spans, is_ascii)
            spans.append((start, start, len(out)))
        out += b"]"
    else:
        out += json.dumps(value, ensure_ascii=is_ascii).encode(errors="surrogatepass")


Bits = Callable[[int], int]
"""Returns a random number of so many bits."""


class _Alternatives(dict[bytes, tuple[bytes, ...]]):
    """What members of a name hold in the pool: a mutation that leaves a record sound."""

    def __init__(self, pool: Sequence[Laid]) -> None:
        found: dict[bytes, dict[bytes, None]] = {}
        for laid in pool:
            for start, middle, end in laid.spans:
                found.setdefault(laid.value[start:middle], {})[laid.value[middle:end]] = None
        super().__init__((key, tuple(values)) for key, values in found.items())


def _mutate_members(rng: random.Random, laid: Laid, alternatives: _Alternatives) -> bytes:
    """Replace, double or rename away one to three members; of what is no JSON, cells or fields."""
    bits = rng.getrandbits
    value, spans = laid.value, laid.spans
    if not spans:
        return _mutate_cells(bits, laid) if laid.is_text else mutate_protobuf(rng, value)
    cut = len(value)
    for _ in range(1 + bits(8) % 3):
        start, middle, end = spans[bits(16) % len(spans)]
        if end > cut:  # an earlier mutation is in or behind it: the place has moved
            continue
        action = bits(8)
        if action < 80:
            value = value[:middle] + _ODD[bits(16) % len(_ODD)] + value[end:]
        elif action < 160:
            others = alternatives[value[start:middle]]
            value = value[:middle] + others[bits(16) % len(others)] + value[end:]
        elif action < 200:
            value = value[: start + 1] + b"~" + value[start + 1 :]
        elif action < 225:
            value = value[:start] + value[start:middle] + _ODD[bits(16) % len(_ODD)] + b"," + value[start:]
        else:  # a number as text, and the other way round
            text = value[middle:end]
            value = value[:middle] + (text[1:-1] if text[:1] == b'"' else b'"' + text + b'"') + value[end:]
        cut = start
    return value


def _mutate_bytes(bits: Bits, laid: Laid) -> bytes:
    data = bytearray(laid.value)
    for _ in range(1 + bits(8) % 4):
        at = bits(30) % (len(data) + 1)
        action = bits(8) % 16
        if action < 5 and data:
            data[at % len(data)] = bits(8)
        elif action < 9:
            data[at:at] = _BYTES[bits(8) % len(_BYTES)]
        elif action < 12:
            del data[at : at + 1 + bits(8) % 40]
        elif action < 15:
            data[at:at] = data[at : at + 1 + bits(8) % 60]
        else:
            del data[at:]
    return bytes(data)


def _mutate_cells(bits: Bits, laid: Laid) -> bytes:
    """Replace cells of a line of text."""
    separator = b"\t" if b"\t" in laid.value else b" "
    cells = laid.value.split(separator)
    for _ in range(1 + bits(8) % 3):
        odd = _ODD_CELLS[bits(16) % len(_ODD_CELLS)]
        action = bits(8)
        where = bits(16) % len(cells)
        if action < 110:
            cells[where] = odd
        elif action < 200:
            cells[where] = cells[bits(16) % len(cells)]
        elif action < 240:
            cells.append(odd)
        elif len(cells) > 1:
            del cells[where]
    return separator.join(cells)


_ODD_CELLS = tuple(
    dict.fromkeys(
        (
            *(text.strip(b'"') for text in _ODD if b"\n" not in text and text[:1] not in (b"[", b"{")),
            *(
                b"-",
                b"-2",
                b"007",
                b"1.5",
                b"1e3",
                b"99999999999999999999",
                "٣".encode(),
                b"ACCEPT",
                b"NODATA",
                b"SKIPDATA",
            ),
        )
    )
)


def messages(seed: str, pool: Sequence[bytes]) -> Iterator[bytes]:
    """Return mutated messages of a pool for ever."""
    rng = random.Random(seed)
    bits = rng.getrandbits
    laid = [each for value in pool for each in lay_out(value)]
    alternatives = _Alternatives(laid)
    size = len(laid)
    while True:
        origin = laid[bits(30) % size]
        action = bits(8)
        if action < 140:
            value = _mutate_members(rng, origin, alternatives)
        elif action < 170:
            value = _mutate_bytes(bits, origin)
        elif action < 180:
            other = laid[bits(30) % size].value
            value = origin.value[: bits(30) % (len(origin.value) + 1)] + other[bits(30) % (len(other) + 1) :]
        elif action < 182:
            value = _TINY[bits(8) % len(_TINY)]
        else:
            value = origin.value
        shape = bits(8)
        if shape < 26:
            beside = laid[bits(30) % size].value
            value = _shaped(bits, shape, value, beside, _mutate_members(rng, laid[bits(30) % size], alternatives))
        yield value


def _shaped(bits: Bits, shape: int, value: bytes, other: bytes, third: bytes) -> bytes:
    """Return a message of several records, or of one in a log shipper's."""
    if shape < 8:
        return b"[" + b",".join([value, other, third]) + b"]"
    if shape < 16:
        return b"\n".join([value, other, b"", _mutate_bytes(bits, Laid(third, ()))])
    return wrapped(value, "message" if shape & 1 else "log")


def wrapped(value: bytes, key: str = "message") -> bytes:
    """Return a message as a log shipper wraps it."""
    return json.dumps({key: value.decode(errors="replace"), "@timestamp": "x"}).encode()
