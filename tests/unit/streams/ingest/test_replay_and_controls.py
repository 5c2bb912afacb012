"""Replayed records name their lane; controls go to their tenant; dead letters travel to their topic and back."""

import itertools
import json
from typing import Any

import pytest

from schemas.dead_letter import KEPT_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, DeadLetter, Reason
from schemas.errors import WireFormatError
from schemas.ids import end_position, partition_of, position_of
from schemas.settings import FlowTopic, LaneSettings
from schemas.tenant_log import ACTIVE, ENDED, MAX_RECORD_BYTES, LaneConfig, LogRecord, Member, decode_record
from schemas.topics import HEADER_END, HEADER_LANE
from streams.batching import CorruptBatch
from streams.dead_letters import decode_dead_letter, encode_dead_letter
from streams.ingest.chain import position_before
from streams.ingest.chunk import Headers, MessageChunk, chunk_of
from streams.ingest.lanes import LaneHeader, declare_lane, encode_header
from streams.ingest.readers import ControlReader, Encoded, ReplayReader

DECLARED = LaneConfig("default", version=3, members=(Member("flows#1", 2),))
MEMBER = Member("flows-replay#1", 6)
TARGETS = 3


def flow(**changes: object) -> bytes:
    return json.dumps({"time_ms": 5, "src": "a", "dst": "b", "tenant": "acme", **changes}).encode()


def lane_header(**fields: Any) -> Headers:
    return [(HEADER_LANE, encode_header(LaneHeader(**{"name": "replay:x", **fields})))]


def end_header(**fields: Any) -> Headers:
    return [*lane_header(**fields), (HEADER_END, b"1")]


def encode(messages: list[tuple[Headers, bytes]], first: int = 10) -> Encoded:
    reader = ReplayReader("flows-replay", MEMBER, lambda: {"default": DECLARED}, TARGETS, 1 << 20)
    chunk = chunk_of("flows-replay", 0, first, [v for _, v in messages], headers=[h for h, _ in messages])
    return reader.encode(chunk, position_before(first), "w", 1)


def records_of(encoded: Encoded) -> list[list[LogRecord]]:
    found = [[decode_record(data) for data in mine] for mine in encoded.records]
    for records in found:
        for before, record in itertools.pairwise(records):
            assert record.progress[0].after == before.progress[0].upto
        assert records[-1].progress[0].upto == encoded.upto
    return found


def stretches_of(encoded: Encoded) -> list[tuple[str | None, int, int]]:
    """(lane, state, dead) of each record of the first target."""
    return [
        (record.lane.name if record.lane else None, record.progress[0].state, record.progress[0].dead)
        for record in records_of(encoded)[0]
    ]


def test_a_replay_has_the_lane_that_its_header_declares() -> None:
    header = lane_header(
        generation=7, window_ms=10_000, lateness_ms=5_000, detection={"learning_windows": 3, "z_threshold": 4}
    )
    encoded = encode([(header, flow())] * 3)
    lane = records_of(encoded)[0][0].lane
    assert lane is not None
    assert (lane.name, lane.mode, lane.generation, lane.window_ms, lane.lateness_ms) == (
        "replay:x",
        "replay",
        7,
        10_000,
        5_000,
    )
    assert (lane.max_wait_ms, lane.members) == (0, (MEMBER,))
    assert (lane.detection.learning_windows, lane.detection.z_threshold) == (3, 4.0)
    assert isinstance(lane.detection.z_threshold, float)
    assert encoded.rows == 3 and not encoded.dead_letters


def test_a_declared_lane_is_taken_as_it_is_declared() -> None:
    assert records_of(encode([(lane_header(name="default", window_ms=1_000), flow())]))[0][0].lane == DECLARED


def test_a_chunk_is_cut_where_the_lane_changes() -> None:
    x, y = lane_header(), lane_header(name="replay:y")
    encoded = encode([(x, flow()), (x, flow()), (y, flow()), (x, flow())])
    assert stretches_of(encoded) == [("replay:x", ACTIVE, 0), ("replay:y", ACTIVE, 0), ("replay:x", ACTIVE, 0)]
    assert [progress.lane.name for progress in encoded.lanes] == ["replay:x", "replay:y", "replay:x"]


def test_the_end_of_input_ends_its_lane_and_no_other() -> None:
    x, y = lane_header(), lane_header(name="replay:y")
    encoded = encode([(x, flow()), (end_header(), b""), (y, flow()), (end_header(name="replay:y"), b""), (y, flow())])
    assert stretches_of(encoded) == [("replay:x", ENDED, 0), ("replay:y", ENDED, 0), ("replay:y", ACTIVE, 0)]
    assert encoded.rows == 3 and not encoded.dead_letters


def test_an_end_of_input_alone_is_told_to_every_target() -> None:
    encoded = encode([(end_header(), b"")])
    assert [[r.progress[0].state for r in records] for records in records_of(encoded)] == [[ENDED]] * TARGETS
    assert not encoded.dead_letters


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("other", b"x")],
        [(HEADER_LANE, None)],
        [(HEADER_LANE, b"not json")],
        [(HEADER_LANE, b"[" * 10_000)],
        [(HEADER_LANE, b'{"name":""}')],
        [(HEADER_LANE, b'{"name":"replay:x","window_ms":0}')],
        [(HEADER_LANE, b'{"name":"replay:x","format":"csv"}')],
        [(HEADER_LANE, b'{"name":"replay:x","detection":{"nothing":1}}')],
        [(HEADER_LANE, b'{"name":"undeclared"}')],
    ],
)
def test_a_record_of_no_lane_is_a_dead_letter(headers: Headers) -> None:
    encoded = encode(
        [(lane_header(), flow()), (headers, flow()), ([*headers, (HEADER_END, b"1")], b""), (lane_header(), flow())]
    )
    assert [(letter.offset, letter.reason) for letter in encoded.dead_letters] == [
        (11, Reason.LANE_UNDECLARED),
        (12, Reason.LANE_UNDECLARED),
    ]
    assert stretches_of(encoded) == [("replay:x", ACTIVE, 0), (None, ACTIVE, 2), ("replay:x", ACTIVE, 0)]
    assert encoded.rows == 2


def test_a_replay_may_name_one_tenant_for_all() -> None:
    encoded = encode([(lane_header(tenant="globex"), flow())])
    (with_rows,) = [r for records in records_of(encoded) for r in records if r.rows]
    assert with_rows.rows is not None and with_rows.rows.edges[0][0] == "globex"


def test_an_empty_chunk_moves_the_coordinates() -> None:
    reader = ReplayReader("flows-replay", MEMBER, dict, TARGETS, 1 << 20)
    empty = chunk_of("flows-replay", 0, 4, [])
    chunk = MessageChunk("flows-replay", 0, 4, 8, empty.offsets, [], [], [], [])
    encoded = reader.encode(chunk, position_before(4), "w", 1)
    assert [r.progress[0].upto for r in records_of(encoded)[0]] == [end_position(7)]


def test_a_lane_counts_the_real_partitions_of_all_its_topics() -> None:
    flows = [FlowTopic(topic="b", lane="x"), FlowTopic(topic="a", lane="x"), FlowTopic(topic="c", lane="y")]
    lane = declare_lane(
        LaneSettings(name="x", version=2, detection={"min_calls": 3.0, "z_threshold": 4}),
        flows,
        {"a": 3, "b": 5, "c": 7},
        "9",
    )
    assert lane.members == (Member("a#9", 3), Member("b#9", 5))
    assert (lane.version, lane.detection.min_calls, lane.mode) == (2, 3, "live")
    assert isinstance(lane.detection.min_calls, int) and isinstance(lane.detection.z_threshold, float)


# -- controls ----------------------------------------------------------------------------------------------------------


def controls(messages: list[tuple[bytes | None, bytes | None]]) -> Encoded:
    chunk = chunk_of("drift-controls", 2, 0, [v for _, v in messages], keys=[k for k, _ in messages])
    return ControlReader("drift-controls#1", TARGETS).encode(chunk, -1, "w", 1)


def test_controls_go_to_their_tenants_partition() -> None:
    encoded = controls(
        [(b"acme:whitelist:1", b'{"src":"a"}'), (b"globex:policy:x:y", b"{}"), (b"acme:whitelist:1", None)]
    )
    records = records_of(encoded)
    found = [
        (target, c.tenant, c.kind, c.id, c.value, c.position)
        for target, mine in enumerate(records)
        for r in mine
        for c in r.controls
    ]
    assert sorted(found, key=lambda control: control[5]) == [
        (partition_of("acme", TARGETS), "acme", "whitelist", "1", b'{"src":"a"}', position_of(0, 0)),
        (partition_of("globex", TARGETS), "globex", "policy", "x:y", b"{}", position_of(1, 0)),
        (partition_of("acme", TARGETS), "acme", "whitelist", "1", b"", position_of(2, 0)),
    ]
    assert all(record.lane is None for mine in records for record in mine)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, b"{}"),
        (b"acme", b"{}"),
        (b":kind:id", b"{}"),
        (b"\xff:kind:id", b"{}"),
        (b"acme:whitelist:1", b"{"),
        (b"acme:tenant-settings:x", b'{"learning_windows":"many"}'),
        (b"acme:inventory:x", b'{"addresses":[{"cidr":"10.0.0.1/8","name":"corp"}]}'),
        (b"acme:inventory:x", b'{"adresses":[]}'),
        (b"acme:inventory:x", b"[" * 200_000),
        (b"acme:whitelist:1", b'"' + b"x" * MAX_PAYLOAD_BYTES + b'"'),
    ],
)
def test_a_bad_control_is_a_dead_letter(key: bytes | None, value: bytes) -> None:
    encoded = controls([(b"acme:whitelist:1", b"{}"), (key, value), (b"acme:whitelist:2", b"{}")])
    assert encoded.rows == 2
    assert [(letter.offset, letter.format) for letter in encoded.dead_letters] == [(1, "control")]
    assert [sum(r.progress[0].dead for r in mine) for mine in records_of(encoded)] == [1] * TARGETS


def test_a_sound_inventory_passes_and_so_does_its_removal() -> None:
    value = b'{"addresses":[{"cidr":"10.0.0.0/8","name":"corp"}]}'
    encoded = controls([(b"acme:inventory:main", value), (b"acme:inventory:main", None), (b"acme:inventory:b", b"{}")])
    assert (encoded.rows, encoded.dead_letters) == (3, [])


HASH = b"$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"acme:account:ann", b'{"password_hash":"' + HASH + b'"}'),
        (b"acme:api-key:0123456789abcdef", b'{"secret_sha256":"' + HASH + b'"}'),
        (b"acme:revocation:family:x", b'{"until_s":1}'),
        (b"acme:account:ann", None),
        (b"acme:account", HASH),  # damaged: no dead letter either
        (b":account:ann", HASH),
        (b"acme:account:ann", HASH + b"x" * (MAX_PAYLOAD_BYTES + 1)),
    ],
)
def test_records_of_accounts_and_keys_never_leave_their_topic(key: bytes, value: bytes | None) -> None:
    encoded = controls([(b"acme:whitelist:1", b"{}"), (key, value), (b"acme:whitelist:2", b"{}")])
    assert (encoded.rows, encoded.skipped.total(), encoded.dead_letters) == (2, 1, [])
    assert all(HASH not in data and b"ann" not in data for mine in encoded.records for data in mine)
    assert encoded.upto == end_position(2)
    records_of(encoded)


def test_a_batch_of_controls_that_cannot_be_read_is_said_and_its_bytes_are_not_kept() -> None:
    empty, corrupt = chunk_of("drift-controls", 2, 0, []), CorruptBatch(0, 3, "checksum", HASH, 4)
    chunk = MessageChunk("drift-controls", 2, 0, 4, empty.offsets, [], [], [], [], corrupt=corrupt)
    encoded = ControlReader("drift-controls#1", TARGETS).encode(chunk, -1, "w", 1)
    (one,) = encoded.dead_letters
    assert (one.reason, one.payload, one.offset) == (Reason.CORRUPT_BATCH, b"", 0)
    assert "checksum" in one.detail


def test_many_controls_are_cut_into_small_records() -> None:
    value = b'"' + b"x" * 50_000 + b'"'
    encoded = controls([(f"acme:policy:{i}".encode(), value) for i in range(40)])
    mine = encoded.records[partition_of("acme", TARGETS)]
    assert len(mine) > 1 and max(map(len, mine)) <= MAX_RECORD_BYTES
    assert sum(len(decode_record(data).controls) for data in mine) == 40
    records_of(encoded)


# -- dead letters as messages ------------------------------------------------------------------------------------------


def letter(payload: bytes, detail: str = "why") -> DeadLetter:
    return DeadLetter("flows", 3, 42, 7, Reason.MALFORMED, detail, payload, "canonical")


def test_a_dead_letter_comes_back_as_it_was() -> None:
    message = encode_dead_letter(letter(b"\0bytes"))
    assert message.key == b"flows:3:42:7"
    assert decode_dead_letter(message.value, message.headers) == letter(b"\0bytes")


def test_of_a_huge_payload_the_beginning_length_and_hash_are_kept() -> None:
    payload = b"ab" * MAX_PAYLOAD_BYTES
    message = encode_dead_letter(letter(payload))
    headers = dict(message.headers)
    assert message.value == payload[:KEPT_PAYLOAD_BYTES]
    assert headers["length"] == str(len(payload)).encode()
    assert len(headers["sha256"]) == 64
    assert encode_dead_letter(letter(payload)) == message


def test_details_are_short_and_on_one_line() -> None:
    detail = dict(encode_dead_letter(letter(b"", "a\nb " * 1_000)).headers)["detail"].decode()
    assert len(detail) <= 500 and "\n" not in detail


def test_a_message_that_is_no_dead_letter_is_refused() -> None:
    with pytest.raises(WireFormatError, match="not a dead letter"):
        decode_dead_letter(b"", [("reason", b"malformed")])
