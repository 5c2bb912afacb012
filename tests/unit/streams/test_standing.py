"""What /readyz says of a worker in each of its states."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.types import TP

from streams.backpressure import AppendTimes, Brake
from streams.graph_scores.status import ModelStatus
from streams.health import State
from streams.lag import GroupLag
from streams.standing import Standing

NOW_MS = 1_000_000


class Clock:
    """A clock that stands."""

    def now_ms(self) -> int:
        return NOW_MS


class Parts:
    """As much of a worker's parts as is looked at."""

    def __init__(self) -> None:
        self.app = SimpleNamespace(
            crashed=False,
            crash_reason=None,
            rebalancing=False,
            consumer=SimpleNamespace(assignment=lambda: {TP("events", 0), TP("events", 1), TP("log", 0)}),
        )
        self.partitions = {
            n: SimpleNamespace(partition=n, is_recovered=True, performed_offset=99, machine=SimpleNamespace(offset=99))
            for n in range(3)
        }
        self.idle: dict[tuple[str, int], str] = {}
        self.asked_ends: dict[tuple[str, int], int] = {}
        worker = SimpleNamespace(idle_reasons=lambda: self.idle, lags=self.lags)
        self.lag = SimpleNamespace(
            last=GroupLag(ends={TP("log", n): 100 for n in range(3)} | {TP("events", 0): 50, TP("events", 1): 60}),
            appended={n: AppendTimes() for n in range(3)},
            brake=Brake(None),
        )
        self.standing = Standing(Clock(), State.READY)
        self.standing.app = cast(Any, self.app)
        self.standing.graph = cast(Any, SimpleNamespace(topic="log", partitions=self.partitions))
        self.standing.ingest = cast(Any, SimpleNamespace(worker=worker))
        self.standing.lag = cast(Any, self.lag)
        sink = SimpleNamespace(topic="events", stored={1: 58}, is_busy=False)
        self.standing.sinks = [cast(Any, sink)]

    def lags(self, ends: dict[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        self.asked_ends = ends
        return {("flows", 0): 3}

    def fall_behind(self, number: int, records: int, since_ms: int) -> None:
        self.partitions[number].performed_offset -= records
        self.lag.appended[number].see(since_ms, 100 - records)


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_a_worker_without_parts_is_starting_and_shows_nothing() -> None:
    standing = Standing(Clock())
    assert standing.readiness().state is State.STARTING
    assert (standing.graph_partitions(), standing.source_lags(), standing.sink_lags()) == ({}, {}, {})
    assert (standing.idle_sources(), standing.group_lag(), standing.is_held) == ({}, None, False)


def test_a_worker_that_works_is_ready_without_reasons(parts: Parts) -> None:
    readiness = parts.standing.readiness()
    assert (readiness.state, readiness.reasons, readiness.is_ready) == (State.READY, (), True)


@pytest.mark.parametrize("state", [State.STARTING, State.READY])
def test_reading_saved_state_says_which_partitions_and_how_many_are_done(parts: Parts, state: State) -> None:
    parts.standing.state = state
    parts.partitions[0].is_recovered = parts.partitions[2].is_recovered = False
    parts.app.rebalancing = True
    readiness = parts.standing.readiness()
    assert readiness.state is State.RECOVERING and not readiness.is_ready
    assert readiness.reasons == ("reading the saved state of partitions 0, 2", "1 of 3 partitions are restored")


def test_handing_out_partitions_is_rebalancing(parts: Parts) -> None:
    parts.app.rebalancing = True
    assert parts.standing.readiness().state is State.REBALANCING


def test_a_backlog_is_catching_up_and_the_traffic_of_the_moment_is_not(parts: Parts) -> None:
    parts.fall_behind(1, 20, NOW_MS - 500)
    assert parts.standing.readiness().state is State.READY
    parts.fall_behind(2, 30, NOW_MS - 70_000)
    readiness = parts.standing.readiness()
    assert (readiness.state, readiness.is_ready) == (State.CATCHING_UP, True)
    assert readiness.reasons == ("partition 2: 30 records behind, 70 s",)
    assert parts.standing.log_lag(2) == (30, NOW_MS - 70_000)


def test_what_is_not_read_is_named_though_the_worker_is_ready(parts: Parts) -> None:
    parts.idle = {("flows", 1): "flood", ("flows", 0): "stopped"}
    parts.lag.brake.is_held = True
    readiness = parts.standing.readiness()
    assert readiness.is_ready
    assert readiness.reasons == (
        "ingest is held: the graph side is too far behind",
        "flows[0] is not read: stopped",
        "flows[1] is not read: flood",
    )


def test_draining_and_failing_go_before_all_else(parts: Parts) -> None:
    parts.partitions[0].is_recovered = False
    parts.standing.state = State.DRAINING
    assert parts.standing.readiness().state is State.DRAINING
    parts.app.crashed, parts.app.crash_reason = True, ValueError("a hole\nin the log")
    readiness = parts.standing.readiness()
    assert (readiness.state, readiness.reasons) == (State.FAILED, ("a hole in the log",))


def test_the_lag_of_sinks_counts_what_they_stored_since_the_measurement(parts: Parts) -> None:
    parts.lag.last.committed = {TP("events", 0): 20, TP("events", 1): 10}
    assert parts.standing.sink_lags() == {TP("events", 0): 30, TP("events", 1): 2}


def test_the_lag_of_sources_knows_the_ends_that_were_asked_for(parts: Parts) -> None:
    assert parts.standing.source_lags() == {("flows", 0): 3}
    assert parts.asked_ends["events", 1] == 60


def test_lanes_without_a_model_are_named_and_leave_the_worker_ready(parts: Parts) -> None:
    status = ModelStatus(scored=1, missing=2, problems=("graph model: no model for tenant acme",), unnamed=1)
    parts.standing.scores = cast(Any, SimpleNamespace(status=lambda: status, lags=lambda: {0: 3}))
    readiness = parts.standing.readiness()
    assert readiness.state is State.READY and readiness.reasons == status.reasons
    assert len(status.reasons) == 2 and parts.standing.graph_models() == (status, {0: 3})
