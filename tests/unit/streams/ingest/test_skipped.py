"""Sound records that are no flows: counted by kind wherever a chunk goes, so that the input balances."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from schemas.dead_letter import Reason
from schemas.settings import FlowTopic
from schemas.tenant_log import LaneConfig, Member, decode_record
from schemas.topics import HEADER_ORIGIN
from streams.ingest.chain import Origin, Segment, encode_segment, position_before
from streams.ingest.chunk import Headers, chunk_of, cut
from streams.ingest.flood import FloodRule
from streams.ingest.owned import MAX_KINDS, OwnedPartition
from streams.ingest.readers import Encoded, FlowReader, ReplayReader, _positions, _read
from streams.ingest.replayed import OriginHeader, encode_origin
from streams.sources.format import Decoded, SourceFormat
from tests.unit.streams.ingest.test_agent import Fetched, Simulated
from tests.unit.streams.ingest.test_agent import flow as canonical

TARGETS = 3
LANE = LaneConfig("hubble", members=(Member("flows#1", 1),))
LOST = b'{"lost_events":{"source":"HUBBLE_RING_BUFFER","num_events_lost":"7"},"node_name":"n1"}'
AGENT = b'{"agent_event":{"type":"POLICY_UPDATED"}}'
JUNK = b"junk"


def flow(src: str = "web") -> bytes:
    record = {
        "time": "2026-11-22T07:00:00Z",
        "verdict": "FORWARDED",
        "IP": {"source": "10.0.0.1", "destination": "10.0.0.2"},
        "source": {"namespace": "shop", "pod_name": src},
        "destination": {"namespace": "shop", "pod_name": "cart"},
    }
    return json.dumps({"flow": record, "node_name": "n1"}).encode()


def reader_of(**topic: object) -> FlowReader:
    values: dict[str, object] = {"format": "hubble", "tenant_from": "key", **topic}
    return FlowReader(FlowTopic(**values), "flows#1", LANE, TARGETS)


def skipped_by_target(encoded: Encoded) -> list[int]:
    return [sum(decode_record(data).progress[0].skipped for data in mine) for mine in encoded.records]


def rows_in(encoded: Encoded) -> int:
    records = [decode_record(data) for mine in encoded.records for data in mine]
    return sum(record.rows.count for record in records if record.rows is not None)


def test_a_chunk_says_how_many_records_of_which_kind_were_no_flows_and_each_target_hears_of_all() -> None:
    values = [flow(), LOST, AGENT, b"[" + flow() + b"," + LOST + b"]", JUNK]
    encoded = reader_of().encode(chunk_of("flows", 0, 0, values, keys=[b"acme"] * 5), position_before(0), "w", 77)
    assert encoded.skipped == Counter(lost_events=2, agent_event=1)
    assert skipped_by_target(encoded) == [3] * TARGETS
    assert (encoded.rows, len(encoded.dead_letters)) == (2, 1)


def test_a_chunk_without_a_flow_says_so_too() -> None:
    encoded = reader_of().encode(chunk_of("flows", 0, 0, [LOST, LOST], keys=[b"acme"] * 2), position_before(0), "w", 77)
    assert (encoded.rows, encoded.skipped, skipped_by_target(encoded)) == (0, Counter(lost_events=2), [2] * TARGETS)


def test_records_cut_for_their_size_count_them_once() -> None:
    reader = reader_of(tenant_from="fixed:acme")
    values = [value for number in range(200) for value in (flow("s" * (1 + number)), LOST)]
    table = _read(chunk_of("flows", 0, 0, values), reader.rules)
    segment = Segment(LANE, table, (len(values) << 20) - 1, _positions([]))
    records = encode_segment(segment, Origin("flows#1", 0, "w", 1), position_before(0), TARGETS, 2_000)
    assert max(map(len, records)) > 3
    assert skipped_by_target(Encoded(records, [], segment.upto, len(table))) == [200] * TARGETS


class Failing:
    """A format with a mistake: a chunk with a certain message raises."""

    name = "failing"

    def __init__(self, inner: SourceFormat) -> None:
        self._inner = inner

    def decode(self, values: Sequence[bytes]) -> Decoded:
        if b"trap" in values:
            raise RuntimeError("a mistake")
        return self._inner.decode(values)


def test_a_chunk_read_in_halves_counts_both() -> None:
    reader = reader_of(tenant_from="fixed:acme")
    reader.rules = replace(reader.rules, format=Failing(reader.rules.format))
    values = [LOST, flow(), AGENT, b"trap", LOST, LOST, flow()]
    encoded = reader.encode(chunk_of("flows", 0, 0, values), position_before(0), "w", 77)
    assert encoded.skipped == Counter(lost_events=3, agent_event=1)
    assert (encoded.rows, [letter.offset for letter in encoded.dead_letters]) == (2, [3])


_messages = st.lists(
    st.sampled_from(
        [
            (flow(), 1),
            (LOST, 1),
            (AGENT, 1),
            (JUNK, 1),
            (b"[" + flow() + b"," + AGENT + b"," + flow() + b"]", 3),
            (flow() + b"\n" + LOST + b"\n" + JUNK + b"\n" + AGENT, 4),
            (LOST + b"\n" + AGENT, 2),
        ]
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(
    messages=_messages,
    tenants=st.lists(st.sampled_from([b"acme", b"globex", b"t3", None]), min_size=30),
    data=st.data(),
)
def test_rows_dead_letters_and_skipped_records_are_the_input_of_every_stretch(
    messages: list[tuple[bytes, int]], tenants: list[bytes | None], data: st.DataObject
) -> None:
    """For any cut, what the log says of a stretch is what its messages hold: rows of all targets, dead, skipped."""
    reader = reader_of()
    values: list[bytes | None] = [value for value, _ in messages]
    whole = chunk_of("flows", 0, 5, values, keys=tenants[: len(values)])
    at, after = 0, position_before(5)
    while at < len(values):
        stop = data.draw(st.integers(at + 1, len(values)))
        encoded = reader.encode(cut(whole, at, stop, 5 + at, 5 + stop), after, "w", 77)
        records = sum(count for _, count in messages[at:stop])
        for mine in encoded.records:
            progress = [decode_record(data).progress[0] for data in mine]
            assert (progress[0].after, progress[-1].upto) == (after, encoded.upto)
            assert rows_in(encoded) + sum(p.dead + p.skipped for p in progress) == records
        assert encoded.rows + len(encoded.dead_letters) + encoded.skipped.total() == records
        at, after = stop, encoded.upto


# -- dead letters that are replayed ------------------------------------------------------------------------------------


def origin(offset: int, *indexes: int, alone: bool = False) -> Headers:
    header = OriginHeader(topic="flows", partition=0, offset=offset, indexes=indexes, incarnation="1", alone=alone)
    return [(HEADER_ORIGIN, encode_origin(header))]


def replay(messages: list[tuple[Headers, bytes]]) -> Encoded:
    flows = reader_of(tenant_from="fixed:acme")
    member = Member("flows-replay#1", 1)
    reader = ReplayReader("flows-replay", member, lambda: {"hubble": LANE}, TARGETS, 1 << 20, {"flows": flows})
    chunk = chunk_of("flows-replay", 0, 10, [value for _, value in messages], headers=[h for h, _ in messages])
    return reader.encode(chunk, position_before(10), "w", 77)


def test_a_dead_letter_that_turns_out_to_be_no_flow_record_is_settled() -> None:
    """Read by another format than the one that refused it; it was counted where it became a dead letter."""
    encoded = replay([(origin(7, 3, alone=True), LOST), (origin(8, 0, 1), b"[" + LOST + b"," + flow() + b"]")])
    assert (encoded.rows, encoded.dead_letters, encoded.skipped.total()) == (1, [], 0)
    assert skipped_by_target(encoded) == [0] * TARGETS


@pytest.mark.parametrize("indexes", [(1,), (0, 1)])
def test_a_record_that_is_not_there_is_still_said_to_be_missing(indexes: tuple[int, ...]) -> None:
    encoded = replay([(origin(7, *indexes), flow() if 0 not in indexes else LOST), (origin(8, 0, alone=True), AGENT)])
    assert {letter.reason for letter in encoded.dead_letters} == {Reason.MALFORMED}
    assert [letter.index for letter in encoded.dead_letters] == list(indexes)


# -- the worker --------------------------------------------------------------------------------------------------------


def skipping(kafka: Simulated) -> FlowReader:
    return FlowReader(FlowTopic(format="hubble", tenant_from="fixed:acme"), "flows#1", LANE, len(kafka.log))


async def test_the_worker_counts_them_by_topic_and_kind_and_they_are_records_to_a_flood() -> None:
    kafka = Simulated()
    rule = FloodRule(share=0.5, span_ms=60_000, min_records=10, pause_ms=30_000)
    worker = kafka.worker(floods={"flows": rule})
    worker._readers = {"flows": skipping(kafka)}
    await worker.start("flows", 0, 0, 0)
    worker.submit(Fetched(0, 0, [*[LOST] * 9, *[JUNK] * 9, flow()]))
    await worker.drain()
    assert not kafka.paused, "9 of 19 records are dead letters: not more than half"
    value = worker._metrics.registry.get_sample_value
    labels = {"topic": "flows", "kind": "lost_events"}
    assert value("drift_records_skipped_total", labels) == 9
    labels = {"topic": "flows", "kind": "lost_events:HUBBLE_RING_BUFFER"}
    assert value("drift_loss_reports_total", labels) == 9
    worker.submit(Fetched(0, 19, [JUNK] * 2))
    await worker.drain()
    assert kafka.paused == {("flows", 0)}, "11 of 21"
    await worker.close()


def test_a_format_that_invents_kinds_does_not_flood_the_metrics() -> None:
    source = OwnedPartition("flows", 0, skipping(Simulated()), -1, 0, 0, 0, 0)
    labels = {source.label_of(f"kind-{number}") for number in range(3 * MAX_KINDS)}
    assert labels == {f"kind-{number}" for number in range(MAX_KINDS)} | {"other"}
    assert source.label_of("kind-3") == "kind-3"


async def test_canonical_flows_skip_nothing() -> None:
    kafka = Simulated()
    worker = kafka.worker()
    await worker.start("flows", 0, 0, 0)
    worker.submit(Fetched(0, 0, [canonical()]))
    await worker.drain()
    assert all(record.progress[0].skipped == 0 for records in kafka.log for record in records)
    await worker.close()
