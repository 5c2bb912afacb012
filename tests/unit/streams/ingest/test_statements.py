"""What a worker states of its source partitions."""

from dataclasses import replace

import pytest

from schemas.tenant_log import ACTIVE, END_REACHED, ENDED, IDLE, PAUSED, LaneConfig, Progress
from streams.ingest.statements import FRESH_MS, SourceStanding, state_of, statements

LIVE = LaneConfig("live")
REPLAY = LaneConfig("replay:x", mode="replay")
AT_END = SourceStanding(LIVE, "flows#1", 0, 99, (("h", 5),), False, 100, 20_000)


@pytest.mark.parametrize(
    ("changes", "idle_ms", "state"),
    [
        ({}, 10_000, IDLE),
        ({"unmoved_ms": 9_999}, 10_000, END_REACHED),
        ({}, None, END_REACHED),
        ({"has_backlog": True}, 10_000, ACTIVE),
        ({"fetched_ms_ago": None}, 10_000, ACTIVE),
        ({"fetched_ms_ago": FRESH_MS + 1}, 10_000, ACTIVE),
        ({"paused": True, "has_backlog": True}, 10_000, PAUSED),
        ({"ended": True, "has_backlog": True}, None, ENDED),
    ],
)
def test_the_state_follows_from_the_standing(changes: dict[str, object], idle_ms: int | None, state: int) -> None:
    assert state_of(replace(AT_END, **changes), idle_ms) == state  # type: ignore[arg-type]


def test_one_record_a_lane_covers_nothing_and_names_every_partition() -> None:
    standings = [replace(AT_END, partition=1), AT_END, replace(AT_END, lane=REPLAY, source="flows-replay#1")]
    live, replay = statements(standings, {"live": 10_000, "replay:x": 1}, "w", 7)
    assert live.lane == LIVE and live.as_of_ms == 7 and live.rows is None
    assert live.progress == tuple(Progress("flows#1", p, 99, 99, (("h", 5),), IDLE) for p in (0, 1))
    assert replay.progress[0].state == END_REACHED, "a replay waits for its end of input"
