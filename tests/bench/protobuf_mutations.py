"""Mutations of protobuf messages that keep their lengths right: damage that gets past the parser. Pure."""

import random
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEPTH = 8
_ODD_INTEGERS = (0, 1, 2, 5, 6, 127, 128, 65_536, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_ODD_BYTES = (
    *(b"", b"\0", b"-", b" ", b"\xff\xfe", b"1e9", b"999.1.1.1", b"\0" * 8, b"\0" * 16, b"x" * 5_000),
    *("ä".encode() * 300, b"localhost", b"http://:99999/", b"ot=th:ffffffffffffff", b"ot=p:62", b"unknown_service"),
)

Field = tuple[int, int, int | bytes]
"""Number, wire type, value."""


def mutate_protobuf(rng: random.Random, value: bytes) -> bytes:
    """Change some fields of a message, or of messages within it; return it as it is if it is none."""
    for _ in range(rng.randint(1, 3)):
        value = _mutated(rng, value, _DEPTH)
    return value


def _mutated(rng: random.Random, value: bytes, depth: int) -> bytes:
    fields = _fields(value)
    if not fields:
        return value
    at = rng.randrange(len(fields))
    number, wire, content = fields[at]
    if isinstance(content, bytes) and depth and rng.random() < 0.85 and _fields(content):
        fields[at] = (number, wire, _mutated(rng, content, depth - 1))
        return _encoded(fields)
    action = rng.random()
    if action < 0.6:
        odd: tuple[int | bytes, ...] = _ODD_BYTES if isinstance(content, bytes) else _ODD_INTEGERS
        fields[at] = (number, wire, rng.choice(odd))
    elif action < 0.75:
        del fields[at]
    elif action < 0.85:
        fields.insert(rng.randrange(len(fields) + 1), fields[at])
    elif action < 0.95:
        fields[at] = (rng.randint(1, 20), wire, content)
    else:
        others: tuple[Field, ...] = ((number, _VARINT, 7), (number, _BYTES, b"x"), (number, _FIXED64, 1 << 60))
        fields[at] = rng.choice(others)
    return _encoded(fields)


def _fields(data: bytes) -> list[Field]:
    """Return the fields of a message; none if it is no message."""
    try:
        return list(_parsed(data))
    except (ValueError, IndexError):
        return []


def _parsed(data: bytes) -> Iterator[Field]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if not number or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
            raise ValueError("no field")
        if wire == _VARINT:
            content, at = _varint(data, at)
            yield number, wire, content
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
        if size is None:
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("cut off")
        piece, at = data[at : at + size], at + size
        yield number, wire, piece if wire == _BYTES else int.from_bytes(piece, "little")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")


def _encoded(fields: list[Field]) -> bytes:
    made = bytearray()
    for number, wire, content in fields:
        made += _as_varint(number << 3 | wire)
        if isinstance(content, bytes):
            made += _as_varint(len(content)) + content
        elif wire == _VARINT:
            made += _as_varint(content & (1 << 64) - 1)
        else:
            size = 8 if wire == _FIXED64 else 4
            made += (content & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(made)


def _as_varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
