"""Taking the state machine apart and putting it together again, in the middle of everything."""

import msgspec
import pytest

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import mark_clean, restore, take
from schemas.detection import DetectionConfig
from schemas.drift import DriftKind
from schemas.errors import CheckpointError
from schemas.flow import Flow
from schemas.tenant_log import IDLE, PAUSED, LogRecord
from tests.builders import make_flow, make_lane, record_of
from tests.unit.models.graph.driving import Feed, in_window, usual

CAP = 8


def copy_of(machine: Machine) -> Machine:
    chunks = {name: chunk for name, chunk in take(machine, everything=True) if chunk is not None}
    return restore(chunks)


def whole(machine: Machine) -> dict[str, bytes | None]:
    return dict(take(machine, everything=True))


def eventful() -> list[LogRecord]:
    """A live log with all there is: settings, overflow, early and settled findings, a pause, a loss, silence."""
    detection = DetectionConfig(
        learning_windows=3, max_edges_per_tenant=CAP, fan_out_min=3, fan_out_ratio=2.0, denied_min=5
    )
    feed = Feed(make_lane(2, mode="live", lateness_ms=12_000, max_wait_ms=30_000, detection=detection))
    feed.control(b'{"min_calls": 5}', tenant="globex")
    for index in range(60):
        now = (index + 1) * 10_000
        flows: list[Flow] = []
        for tenant in ("acme", "globex"):
            flows += usual([index], tenant=tenant) + usual([index], tenant=tenant, reporter="server")
            if index < 35:
                flows += usual([index], tenant=tenant, dst="shop/halted")
            if index < 9:
                flows += usual([index], tenant=tenant, dst="shop/quiet")
        if index % 5 == 4:
            # The second copy lies in the next window: the overflow of two open windows at once.
            flows += [
                make_flow(index * 10_000 + ahead + n, dst=f"shop/{index}-{n}", denied=2, latency_us=1_000 + n)
                for ahead in (0, 9_990)
                for n in range(9)
            ]
        flows.sort(key=lambda flow: flow.time_ms)
        feed.send(flows, as_of_ms=now)
        if index < 24:
            feed.send(in_window(index, tenant="globex"), partition=1, as_of_ms=now)
        if index == 24:
            feed.state(partition=1, state=PAUSED, as_of_ms=now)
        if index == 30:
            feed.next_offset[0] += 1
            record = record_of(feed.lane, 0, feed.next_offset[0], in_window(index), as_of_ms=now)
            feed.append(msgspec.structs.replace(record, loss=True))
            feed.next_offset[0] += 1
        if index == 33:
            feed.state(partition=1, state=IDLE, as_of_ms=now)
        if index > 40:
            feed.state(partition=1, as_of_ms=now, clocks=(("other", now - 1),))
    return feed.log


def said(output: Output) -> object:
    windows = [
        (w.tenant, w.start_ms, w.incomplete, w.edges.measures.tolist(), w.overflow.tolist()) for w in output.windows
    ]
    quantiles = [(w.edges.p50_us.tolist(), w.edges.p99_us.tolist()) for w in output.windows]
    return windows, quantiles, output.events, output.dead, output.counts


def test_a_machine_restored_at_any_record_goes_on_as_if_it_had_never_stopped() -> None:
    log = eventful()
    straight, restored = Machine(), Machine()
    kinds, reasons = set(), set()
    for offset, record in enumerate(log):
        expected = straight.apply(offset, record)
        assert said(restored.apply(offset, record)) == said(expected)
        kinds |= {event.kind for event in expected.events}
        reasons |= {reason for window in expected.windows for reason in window.incomplete}
        restored = copy_of(restored)
        assert whole(restored) == whole(straight)
    # The log is worth its name only if all of this has happened in it.
    assert reasons == {"paused", "silent", "loss"}
    assert kinds >= {DriftKind.NEW_SERVICE, DriftKind.FAN_OUT_BURST, DriftKind.DENIED_BURST, DriftKind.REMOVED_EDGE}


def test_the_eventful_log_restores_overflow_and_quarantine_too() -> None:
    machine = Machine()
    seen = 0
    for offset, record in enumerate(eventful()):
        machine.apply(offset, record)
        seen = max(
            seen, *(len(s.edges.quarantine) for lane in machine.lanes.values() for s in lane.tenants.values()), 0
        )
    assert seen > 0
    assert any(state.edges.overflow is not None for state in machine.lanes["test"].tenants.values())


def test_chunks_that_did_not_change_are_named_without_bytes() -> None:
    feed = Feed()
    feed.send(in_window(0))
    assert all(chunk is not None for _, chunk in take(feed.machine))
    mark_clean(feed.machine)
    feed.state()
    unchanged = {name for name, chunk in take(feed.machine) if chunk is None}
    assert unchanged == {"test/edges/0", "test/services/0"}


def test_chunks_taken_step_by_step_are_the_same_as_all_at_once() -> None:
    machine = Machine()
    stored: dict[str, bytes] = {}
    for offset, record in enumerate(eventful()):
        machine.apply(offset, record)
        if offset % 3 == 0:
            live = dict(take(machine))
            stored = {name: stored[name] if chunk is None else chunk for name, chunk in live.items()}
            mark_clean(machine)
            assert stored == whole(machine)


def test_lanes_whose_names_contain_each_other_do_not_mix() -> None:
    feed = Feed(make_lane(name="a"))
    feed.send(in_window(0))
    feed.lane = make_lane(name="a/tenant/0")
    feed.send(in_window(0))
    assert whole(copy_of(feed.machine)) == whole(feed.machine)


def test_a_missing_chunk_is_named() -> None:
    feed = Feed()
    feed.send(in_window(0))
    chunks = {name: chunk for name, chunk in take(feed.machine) if chunk is not None}
    del chunks["test/edges/0"]
    with pytest.raises(CheckpointError, match="test/edges/0"):
        restore(chunks)


def test_a_damaged_chunk_and_one_of_another_version_are_refused() -> None:
    feed = Feed()
    feed.send(in_window(0))
    chunks = {name: chunk for name, chunk in take(feed.machine) if chunk is not None}
    with pytest.raises(CheckpointError, match="cannot be read"):
        restore({**chunks, "test/edges/0": b"\xc1"})
    meta = {**msgspec.msgpack.decode(chunks["meta"]), "version": 99}
    with pytest.raises(CheckpointError, match="version 99"):
        restore({**chunks, "meta": msgspec.msgpack.encode(meta)})
