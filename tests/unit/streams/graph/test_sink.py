"""What the graph agent publishes: side by side where order does not matter, in order where it does."""

import asyncio
import random
from typing import Any

import pytest

from schemas.drift import Activity
from schemas.graph import decode_chunk
from schemas.ocsf import decode_event
from streams.graph.sink import KafkaGraphSink
from tests.builders_clickhouse import HOUR_MS, MINUTE_MS, make_event, make_window


class Refused(Exception):
    """What the broker says to one record."""


class SlowProducer:
    """Acknowledges after a few turns of the loop, each record after others than it came with."""

    def __init__(self, refused: bytes = b"") -> None:
        self.random = random.Random(1)
        self.refused = refused
        self.acknowledged: list[bytes] = []
        self.under_way = self.most_under_way = 0

    async def send(self, topic: str, partition: int, value: bytes, *_: Any) -> int:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        for _turn in range(self.random.randrange(1, 20)):
            await asyncio.sleep(0)
        self.under_way -= 1
        if self.refused and self.refused in value:
            raise Refused
        self.acknowledged.append(value)
        return len(self.acknowledged) + 99


def sink_of(producer: SlowProducer) -> KafkaGraphSink:
    names = {"drift_events": "events", "graph_windows": "windows", "dead_letter": "dead"}
    return KafkaGraphSink(producer, lambda: None, **names, dead_letter_partitions=1)  # type: ignore[arg-type]


async def test_findings_go_side_by_side_and_each_ones_events_in_order() -> None:
    producer = SlowProducer()
    events = [
        make_event(activity, dst=f"svc-{number}")
        for activity in (Activity.CREATE, Activity.UPDATE, Activity.CLOSE)
        for number in range(300)
    ]
    after = await sink_of(producer).publish_events(3, events)
    assert after == len(events) + 100
    published = [decode_event(value) for value in producer.acknowledged]
    assert sorted(event.event_id for event in published) == sorted(event.event_id for event in events)
    for finding in {event.finding_id for event in events}:
        assert [event.activity for event in published if event.finding_id == finding] == list(Activity)
    assert producer.most_under_way > 100


async def test_windows_go_side_by_side_and_each_marker_after_its_shards() -> None:
    producer = SlowProducer()
    edges = [{"src": f"a-{number}", "dst": "b"} for number in range(4_000)]
    windows = [make_window(HOUR_MS + number * MINUTE_MS, edges) for number in range(4)]
    await sink_of(producer).publish_windows(3, windows)
    chunks = [decode_chunk(value) for value in producer.acknowledged]
    for window in windows:
        mine = [chunk for chunk in chunks if chunk.start_ms == window.start_ms]
        assert [chunk.is_marker for chunk in mine] == [False, False, False, True]
    assert producer.most_under_way > len(windows)


async def test_a_refused_record_is_raised_when_the_others_are_through() -> None:
    producer = SlowProducer(refused=b"svc-3")
    events = [make_event(dst=f"svc-{number}") for number in range(9)]
    with pytest.raises(Refused):
        await sink_of(producer).publish_events(0, events)
    assert producer.under_way == 0
    assert len(producer.acknowledged) == len(events) - 1
