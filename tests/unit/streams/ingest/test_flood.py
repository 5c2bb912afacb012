"""When a source partition is flooded, and what the worker does about it: one is paused, the others go on."""

import logging
from typing import Any

import pytest

from schemas.settings import FlowTopic
from schemas.tenant_log import ACTIVE, END_REACHED, IDLE, PAUSED
from streams.ingest.agent import QUEUED_CHUNKS, IngestWorker
from streams.ingest.flood import Flood, FloodRule, FloodWatch, rule_of
from streams.ingest.ports import SourcePartition
from streams.ingest.readers import Encoded
from tests.unit.streams.ingest.test_agent import Fetched, Simulated, flow, started, state, until
from tests.unit.streams.ingest.test_replayed import letter_of

RULE = FloodRule(share=0.5, span_ms=60_000, min_records=10, pause_ms=30_000)
KEY = ("flows", 0)


def test_a_topic_s_settings_are_its_rule() -> None:
    assert rule_of(FlowTopic()) == FloodRule(0.5, 60_000, 1_000, 60_000)


def test_more_than_the_share_of_enough_records_is_a_flood() -> None:
    assert FloodWatch().note(RULE, 0, 10, 5) is None, "half is not more than half"
    assert FloodWatch().note(RULE, 0, 9, 9) is None, "too few to say anything"
    assert FloodWatch().note(RULE, 0, 10, 6) == Flood(10, 6)
    assert FloodWatch().note(FloodRule(1.0, 60_000, 1, 1), 0, 10, 10) is None, "a share of 1 is never passed"


def test_chunks_of_the_span_count_together_and_older_ones_no_more() -> None:
    watch = FloodWatch()
    assert watch.note(RULE, 0, 8, 8) is None
    assert watch.note(RULE, 59_999, 2, 0) == Flood(10, 8)
    assert watch.note(RULE, 100_000, 8, 8) is None, "a verdict starts the count anew"
    assert watch.note(RULE, 160_000, 8, 8) is None, "the span has passed"
    assert watch.note(RULE, 160_001, 2, 0) == Flood(10, 8)


def test_good_records_dilute_a_flood_and_a_clock_put_back_breaks_nothing() -> None:
    watch = FloodWatch()
    assert watch.note(RULE, 100_000, 1_000, 0) is None
    assert watch.note(RULE, 90_000, 900, 900) is None
    assert watch.note(RULE, 100_000, 101, 101) == Flood(2_001, 1_001)


def test_a_watch_stays_small() -> None:
    watch = FloodWatch()
    for now_ms in range(0, 10_000_000, 997):
        assert watch.note(RULE, now_ms, 3, 1) is None
    assert len(watch._slices) <= 12


# -- the worker --------------------------------------------------------------------------------------------------------


async def flooded(kafka: Simulated, *partitions: int, **options: Any) -> IngestWorker:
    worker = await started(kafka, *partitions, floods={"flows": RULE}, **options)
    worker.submit(Fetched(0, 0, [*[b"junk"] * 9, flow()]))
    await worker.drain()
    return worker


async def test_a_flood_pauses_its_source_partition_alone_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    kafka = Simulated()
    worker = await flooded(kafka, 0, 1)
    (line,) = [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.ERROR and record.name == "streams.ingest.agent"
    ]
    assert line.startswith(
        "flows[0] is paused: 9 of its last 10 records (90.0 %) became dead letters, the last one mal"
    )
    assert "drift dead-letters list --topic flows" in line and line.endswith("tried again in 30 s")
    assert kafka.paused == {KEY} and worker.idle_reasons() == {KEY: "flood"}
    worker.submit(Fetched(0, 10, [flow()]))  # what was fetched before the pause waits, and is not lost
    worker.submit(Fetched(1, 0, [flow()] * 3))
    await until(lambda: kafka.rows() == 4)
    stated = await state(kafka, worker)
    assert (stated[0][1], stated[1][1]) == (PAUSED, ACTIVE)
    assert len(kafka.dead) == 9, "what was read of it is kept"
    await worker.close()


async def test_it_is_tried_again_by_itself_and_paused_again_if_it_still_floods() -> None:
    kafka = Simulated()
    worker = await flooded(kafka, 0)
    worker.submit(Fetched(0, 10, [b"junk"] * 10))
    kafka.now += RULE.pause_ms - 1
    await worker.tick()
    assert kafka.paused == {KEY}
    kafka.now += 1
    await worker.tick()
    assert not kafka.paused
    await worker.drain()
    assert kafka.paused == {KEY} and len(kafka.dead) == 19
    kafka.now += RULE.pause_ms
    await worker.tick()
    worker.submit(Fetched(0, 20, [flow()] * 10, highwater=30))
    await worker.drain()
    assert not kafka.paused and kafka.rows() == 11
    stated = await state(kafka, worker)
    assert stated[0][1] in (END_REACHED, IDLE)
    kafka.replay_log()
    assert kafka.counts["on_time"] + kafka.counts["late"] == 11
    await worker.close()


async def test_a_flood_below_the_share_or_of_a_topic_without_a_rule_pauses_nothing() -> None:
    for floods in ({"flows": RULE}, {}):
        kafka = Simulated()
        worker = await started(kafka, 0, floods=floods)
        worker.submit(Fetched(0, 0, [b"junk", flow()] * 20 if floods else [b"junk"] * 40))
        await worker.drain()
        assert not kafka.paused
        await worker.close()


async def test_a_kept_partition_stays_paused_and_one_that_went_away_is_judged_anew() -> None:
    kafka = Simulated()
    worker = await flooded(kafka, 0)
    kafka.paused.clear()  # as if the transport had forgotten it over the rebalance
    assert await worker.start("flows", 0, 0, 0) == 10
    assert kafka.paused == {KEY}
    kafka.now += RULE.pause_ms
    await worker.tick()
    assert not kafka.paused, "when it is tried again was not put off"
    worker.submit(Fetched(0, 10, [b"junk"] * 10))
    await worker.drain()
    await worker.revoke([KEY])
    kafka.paused.clear()
    await worker.start("flows", 0, 20, 0)
    assert not kafka.paused and not worker.idle_reasons()
    worker.submit(Fetched(0, 20, [flow()]))
    await worker.drain()
    await worker.close()


async def test_the_end_of_a_pause_frees_neither_a_full_queue_nor_a_stopped_partition() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    kafka.gate.clear()
    for at in range(QUEUED_CHUNKS + 1):
        worker.submit(Fetched(0, at, [flow()]))
    worker.pause([KEY])
    worker.resume([KEY])
    assert kafka.paused == {KEY}, "its queue is still full"
    worker.pause([KEY])
    kafka.gate.set()
    for _ in range(50):
        assert kafka.paused == {KEY}, "the queue has room, but it is paused"
        await kafka.sleep(0.1)
    worker.resume([KEY])
    await worker.drain()
    await until(lambda: not kafka.paused)
    worker.submit(Fetched(0, 100, [flow()]))  # a hole: it stops
    await worker.drain()
    worker.pause([KEY])
    worker.resume([KEY])
    assert kafka.paused == {KEY}, "it has stopped"
    await worker.close()


async def test_a_topic_that_a_replayed_record_invents_is_no_label() -> None:
    kafka = Simulated()
    worker = await started(kafka, 0)
    source = worker._sources[KEY]
    letters = [letter_of(topic="flows"), letter_of(topic="made-up")]
    worker._note(source, Encoded([], letters, 0, 0))
    value = worker._metrics.registry.get_sample_value
    assert value("drift_dead_letters_total", {"topic": "flows", "reason": "malformed"}) == 2
    assert value("drift_dead_letters_total", {"topic": "made-up", "reason": "malformed"}) is None
    await worker.close()


class Seeks:
    """Remembers what is to be fetched again."""

    def __init__(self) -> None:
        self.sought: list[tuple[SourcePartition, int]] = []

    async def seek(self, partition: SourcePartition, offset: int) -> None:
        self.sought.append((partition, offset))


async def test_what_waits_of_a_flooded_partition_takes_no_share_of_the_others_budget() -> None:
    kafka, seeks = Simulated(), Seeks()
    worker = await started(kafka, 0, 1, floods={"flows": RULE})
    worker._seeks = seeks
    kafka.gate.clear()
    first, waiting = Fetched(0, 0, [b"junk"] * 10), Fetched(0, 10, [flow()] * 2)
    worker.submit(first)
    await until(lambda: worker._sources[KEY].is_busy)
    worker.submit(waiting)
    kafka.gate.set()
    await worker.drain()
    late = Fetched(0, 12, [flow()])  # was on its way when the partition was paused
    worker.submit(late)
    assert first.is_released and waiting.is_released and late.is_released
    assert kafka.paused == {KEY} and kafka.rows() == 0 and not seeks.sought
    kafka.now += RULE.pause_ms
    await worker.tick()
    assert seeks.sought == [(KEY, 10)] and not kafka.paused
    worker.submit(Fetched(0, 10, [flow()] * 3))
    await worker.drain()
    assert kafka.rows() == 3
    kafka.replay_log()
    await worker.close()


async def test_resuming_by_hand_fetches_again_what_was_dropped_first() -> None:
    kafka, seeks = Simulated(), Seeks()
    worker = await started(kafka, 0, floods={"flows": RULE})
    worker._seeks = seeks
    worker.submit(Fetched(0, 0, [b"junk"] * 10))
    await worker.drain()
    worker.resume([KEY])
    assert kafka.paused == {KEY}, "not before it was sought"
    await worker.tick()
    assert seeks.sought == [(KEY, 10)] and not kafka.paused
    await worker.close()
