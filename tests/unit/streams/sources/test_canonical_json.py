"""JSON flows: every spelling is read, every bad record is named, no message changes what becomes of its neighbours."""

import json

import pytest

from schemas.dead_letter import Reason
from streams.result import WHOLE_MESSAGE
from streams.sources.canonical import Canonical
from streams.sources.canonical_json import CanonicalJson
from streams.sources.format import Decoded

GOOD = b'{"time_ms":1,"src":"a","dst":"b"}'


class Anything(dict[str | None, int]):
    def __missing__(self, key: str | None) -> int:
        return 0


def flow(**changes: object) -> bytes:
    return json.dumps({"time_ms": 1, "src": "a", "dst": "b", **changes}).encode()


def rows_of(decoded: Decoded) -> list[tuple[int, int, str, str]]:
    """(message, index, src, dst) of each row."""
    found = []
    for run in decoded.runs:
        grouping = run.group(None, Anything())
        for message, index, edge in zip(run.message, run.index, grouping.edge, strict=True):
            found.append((int(message), int(index), *grouping.edges[edge][1:3]))
    return found


def verdicts_of(decoded: Decoded) -> list[tuple[int, int, Reason]]:
    return sorted((bad.message, bad.index, bad.reason) for bad in decoded.rejected)


@pytest.mark.parametrize(
    "message",
    [
        GOOD + b"\n",
        b"  \r\n" + GOOD,
        b"\xef\xbb\xbf" + GOOD,
        b'{\n  "time_ms": 1,\n  "src": "a",\n  "dst": "b"\n}\n',
        b"[" + GOOD + b"]",
        GOOD[:-1] + b',"something":{"new":[1,2]}}',
    ],
)
def test_one_record_is_read_in_every_spelling(message: bytes) -> None:
    decoded = CanonicalJson().decode([GOOD, message, GOOD])
    assert rows_of(decoded) == [(0, 0, "a", "b"), (1, 0, "a", "b"), (2, 0, "a", "b")]
    assert decoded.rejected == []


@pytest.mark.parametrize(
    "joined", [b"[" + b",".join([GOOD] * 3) + b"]", b"\n".join([GOOD] * 3), GOOD + b"\r\n\n" + GOOD + b"\n" + GOOD]
)
def test_many_records_of_a_message_have_indexes(joined: bytes) -> None:
    decoded = CanonicalJson().decode([joined, GOOD])
    assert [row[:2] for row in rows_of(decoded)] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert [decoded.runs[0].payload(row) for row in range(4)] == [GOOD] * 4


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", Reason.EMPTY),
        (b" \n\t ", Reason.EMPTY),
        (b"[]", Reason.EMPTY),
        (GOOD[:-1], Reason.MALFORMED),
        (GOOD[:20], Reason.MALFORMED),
        (GOOD + GOOD, Reason.MALFORMED),
        (b"null", Reason.MALFORMED),
        (b"7", Reason.MALFORMED),
        (b'"text"', Reason.MALFORMED),
        (bytes(range(256)), Reason.MALFORMED),
        (b"\x8f\xff\x00\x17" * 50, Reason.MALFORMED),
        (b"[" * 100_000, Reason.MALFORMED),
        (b'{"a":' * 100_000, Reason.MALFORMED),
        (flow(src=None), Reason.MALFORMED),
        (flow(time_ms="1"), Reason.MALFORMED),
        (flow(time_ms=1.5), Reason.MALFORMED),
        (flow(time_ms=float("nan")), Reason.MALFORMED),
        (flow(latency_us=float("inf")), Reason.MALFORMED),
        (b'{"time_ms":1,"src":"a"}', Reason.MALFORMED),
        (b'{"time_ms":1,"src":"\xff\xfe","dst":"b"}', Reason.MALFORMED),
        (b'{"time_ms":1,"src":"\\ud800","dst":"b"}', Reason.MALFORMED),
        (flow(time_ms=-1), Reason.INVALID_VALUE),
        (flow(time_ms=10**30), Reason.INVALID_VALUE),
        (flow(src=""), Reason.INVALID_VALUE),
        (flow(dst="x" * 257), Reason.INVALID_VALUE),
        (flow(dst="x" * 1_000_000), Reason.INVALID_VALUE),
        (flow(tenant=""), Reason.INVALID_VALUE),
        (flow(host="h" * 300), Reason.INVALID_VALUE),
        (flow(port=65_536), Reason.INVALID_VALUE),
        (flow(protocol="gre"), Reason.INVALID_VALUE),
        (flow(reporter="nobody"), Reason.INVALID_VALUE),
        (flow(calls=0), Reason.INVALID_VALUE),
        (flow(bytes_out=1 << 60), Reason.INVALID_VALUE),
    ],
)
@pytest.mark.parametrize("form", [CanonicalJson(), Canonical()])
def test_a_bad_message_is_named_and_its_neighbours_are_counted(
    message: bytes, reason: Reason, form: CanonicalJson
) -> None:
    decoded = form.decode([GOOD, message, GOOD])
    assert rows_of(decoded) == [(0, 0, "a", "b"), (2, 0, "a", "b")]
    assert verdicts_of(decoded) == [(1, WHOLE_MESSAGE, reason)]
    assert decoded.rejected[0].payload == message
    assert len(decoded.rejected[0].detail) <= 500


@pytest.mark.parametrize("joiner", ["array", "lines"])
def test_bad_records_of_a_message_do_not_take_the_good_ones_with_them(joiner: str) -> None:
    pieces = [GOOD, b'{"time_ms":-4,"src":"a","dst":"b"}', GOOD, b'{"src":"a"}']
    message = b"[" + b",".join(pieces) + b"]" if joiner == "array" else b"\n".join(pieces)
    decoded = CanonicalJson().decode([message])
    assert [row[:2] for row in rows_of(decoded)] == [(0, 0), (0, 2)]
    assert verdicts_of(decoded) == [(0, 1, Reason.INVALID_VALUE), (0, 3, Reason.MALFORMED)]
    assert [bad.payload for bad in decoded.rejected] == [pieces[1], pieces[3]]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (b"[", b"]"),
        (b'{"a":"', b'"}'),
        (GOOD + b",", b"," + GOOD),
        (b"[" + GOOD, GOOD + b"]"),
        (b"{", b"}"),
        (b"/*", b"*/"),
    ],
)
def test_messages_that_would_merge_if_joined_stay_apart(left: bytes, right: bytes) -> None:
    decoded = CanonicalJson().decode([left, GOOD, right])
    assert rows_of(decoded) == [(1, 0, "a", "b")]
    assert {bad.message for bad in decoded.rejected} == {0, 2}


def test_the_wire_prefix_of_a_schema_registry_is_named() -> None:
    decoded = CanonicalJson().decode([b"\0\0\0\0\x2a" + GOOD])
    assert decoded.rejected[0].reason is Reason.MALFORMED
    assert "Confluent wire prefix (schema id 42)" in decoded.rejected[0].detail


def test_unknown_is_not_none() -> None:
    message = flow(bytes_out=0, errors=None, port=None, protocol=None)
    run = CanonicalJson().decode([message, flow(errors=3, port=80)]).runs[0]
    assert run.columns["bytes_out"].tolist() == [0, -1]
    assert run.columns["errors"].tolist() == [-1, 3]
    assert "denied" not in run.columns
    assert [edge[3:] for edge in run.group(None, Anything()).edges] == [(-1, -1), (80, -1)]
    assert run.columns["calls"].tolist() == [1, 1]


def test_the_same_flow_from_both_sides_keeps_its_sides() -> None:
    run = CanonicalJson().decode([flow(reporter="server"), flow(reporter="client"), flow()]).runs[0]
    assert run.columns["side"].tolist() == [1, 0, 0]
    assert run.hosts([0]) == ["a"]
