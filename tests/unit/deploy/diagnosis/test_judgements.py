"""Each judgement of `drift doctor`: one case where it complains, one where it does not."""

from pathlib import Path
from typing import Any

import pytest

from deploy.diagnosis.clickhouse import judge_settings, judge_tables, judge_version
from deploy.diagnosis.finding import Finding, Level, span
from deploy.diagnosis.machine import FULL_BYTES, LOW_BYTES, diagnose_machine, judge_choices
from deploy.diagnosis.offsets import LogRange, judge_clock, judge_group, judge_sources, judge_state
from deploy.diagnosis.state import Stored, judge_saved
from deploy.diagnosis.topics import judge_topics
from schemas.settings import LaneSettings, Settings, TopicSettings, WorkerSettings
from streams.topics import PlannedTopic, TopicFacts, planned_topics

NOW_MS = 1_800_000_000_000
SETTINGS = Settings()
DAY = "86400000"


def facts_of(topic: PlannedTopic, **changes: Any) -> TopicFacts:
    """Return a topic as it has to be, stamped by the broker and kept for a week."""
    config = {"cleanup.policy": "delete", "retention.ms": "604800000", "retention.bytes": "-1", **topic.config}
    config.setdefault("message.timestamp.type", "LogAppendTime")
    values: dict[str, Any] = {"partitions": topic.partitions, "replicas": 1, "leaderless": (), "config": config}
    config.update(changes.pop("config", {}))
    return TopicFacts(**(values | changes))


def judged(name: str, settings: Settings = SETTINGS, **changes: Any) -> list[Finding]:
    """Judge all topics where one is changed, and return what is not well."""
    planned = planned_topics(settings)
    found = {topic.name: facts_of(topic, **(changes if topic.name == name else {})) for topic in planned}
    findings = judge_topics(settings, planned, found)
    assert {f.check for f in findings} >= {f"topic {topic.name}" for topic in planned}
    return [finding for finding in findings if finding.level is not Level.OK]


def test_topics_as_they_have_to_be_are_well() -> None:
    assert judged("") == []


@pytest.mark.parametrize(
    ("topic", "changes", "level", "says"),
    [
        ("tenant-log", {"partitions": 6}, Level.PROBLEM, "has 6 partitions, the settings ask for 12"),
        ("tenant-log", {"leaderless": (3, 4)}, Level.PROBLEM, "partitions 3, 4 have no leader"),
        ("tenant-log", {"config": {"cleanup.policy": "compact"}}, Level.PROBLEM, "cleanup.policy is compact"),
        ("tenant-state", {"config": {"cleanup.policy": "delete"}}, Level.PROBLEM, "cleanup.policy is delete"),
        ("drift-controls", {"config": {"cleanup.policy": "delete"}}, Level.PROBLEM, "records would be deleted"),
        ("flows", {"config": {"cleanup.policy": "compact,delete"}}, Level.PROBLEM, "cleanup.policy is compact,delete"),
        ("tenant-log", {"config": {"max.message.bytes": "1000"}}, Level.PROBLEM, "max.message.bytes is 1000"),
        ("tenant-log", {"config": {"retention.ms": "60000"}}, Level.PROBLEM, "windows and checkpoints alone need"),
        ("tenant-log", {"config": {"retention.ms": "36000000"}}, Level.WARNING, "lags by half of it"),
        ("tenant-log", {"config": {"retention.bytes": "1000"}}, Level.WARNING, "retention.bytes is 1000"),
        ("tenant-log", {"config": {"message.timestamp.type": "CreateTime"}}, Level.WARNING, "type is CreateTime"),
        ("tenant-state", {"config": {"segment.bytes": "1073741824"}}, Level.WARNING, "segment.bytes is 1073741824"),
        ("flows", {"config": {"retention.ms": "600000"}}, Level.PROBLEM, "lane default may wait for"),
        ("flows", {"config": {"retention.ms": "36000000"}}, Level.WARNING, "a longer outage loses flows"),
        ("flows", {"config": {"message.timestamp.type": "CreateTime"}}, Level.WARNING, "the producers' timestamps"),
        ("flows", {"config": {"max.message.bytes": "99000000"}}, Level.WARNING, "larger are dead letters"),
        ("drift-events", {"config": {"retention.ms": DAY}}, Level.WARNING, "retention.ms is 86400000"),
    ],
)
def test_a_topic_that_is_not_as_it_has_to_be_is_told(
    topic: str, changes: dict[str, Any], level: Level, says: str
) -> None:
    found = judged(topic, **changes)
    assert any(f.level is level and says in f.text and f.check == f"topic {topic}" and f.advice for f in found), found


@pytest.mark.parametrize(
    ("topic", "changes"),
    [
        ("flows", {"partitions": 99}),
        ("tenant-log", {"config": {"retention.ms": "-1"}}),
        ("tenant-log", {"config": {"retention.ms": "999999999"}}),
        ("tenant-log", {"config": {"max.message.bytes": "9999999"}}),
        ("flows", {"config": {"max.message.bytes": "1048588"}}),
        ("flows", {"config": {"retention.ms": "-1"}}),
    ],
)
def test_more_than_is_asked_for_is_well(topic: str, changes: dict[str, Any]) -> None:
    assert judged(topic, **changes) == []


def test_a_missing_topic_is_told_and_how_to_make_it() -> None:
    planned = planned_topics(SETTINGS)
    found = {topic.name: facts_of(topic) for topic in planned if topic.name != "flows"}
    missing = [f for f in judge_topics(SETTINGS, planned, found) if f.level is Level.PROBLEM]
    assert [(f.check, f.advice) for f in missing] == [("topic flows", "`drift topics` creates it")]


def test_fewer_replicas_than_asked_for_are_told() -> None:
    settings = Settings(topics=TopicSettings(replication=3))
    assert {f.text for f in judged("", settings)} == {"has 1 replicas, topics.replication asks for 3"}
    planned = planned_topics(settings)
    found = {topic.name: facts_of(topic, replicas=3) for topic in planned}
    assert all(f.level is Level.OK for f in judge_topics(settings, planned, found))


def test_a_hold_above_the_retention_never_holds() -> None:
    settings = Settings(worker=WorkerSettings(hold_above_ms=700_000_000))
    assert [f.level for f in judged("tenant-log", settings)] == [Level.PROBLEM]
    assert judged("tenant-log", Settings(worker=WorkerSettings(hold_above_ms=1_000_000))) == []


# -- offsets, group, clocks --------------------------------------------------------------------------------------------

LOGS = {("flows", 0): LogRange(100, 200), ("flows", 1): LogRange(0, 50), ("tenant-log", 0): LogRange(10, 30)}


def test_offsets_inside_the_logs_are_well_and_their_lag_is_said() -> None:
    found = judge_sources({"flows": "earliest"}, LOGS, {("flows", 0): 150, ("flows", 1): 50}, accept_loss=False)
    assert [(f.level, f.text) for f in found] == [(Level.OK, "50 messages behind")]


def test_partitions_without_an_offset_say_where_they_start() -> None:
    found = judge_sources({"flows": "latest"}, LOGS, {("flows", 0): 200, ("flows", 1): None}, accept_loss=False)
    assert [f.text for f in found] == ["0 messages behind, 1 of 2 partitions start at the latest record"]


@pytest.mark.parametrize(("accept_loss", "level"), [(False, Level.PROBLEM), (True, Level.WARNING)])
def test_records_deleted_unread_are_told_before_the_start(accept_loss: bool, level: Level) -> None:
    found = judge_sources({"flows": "earliest"}, LOGS, {("flows", 0): 70, ("flows", 1): 0}, accept_loss)
    assert [(f.level, f.check) for f in found] == [(level, "offsets flows[0]")]
    assert found[0].text == "30 records from offset 70 on were deleted unread"
    assert ("--accept-loss" in found[0].advice) is not accept_loss


def test_an_offset_beyond_the_end_is_another_topic() -> None:
    found = judge_sources({"flows": "earliest"}, LOGS, {("flows", 0): 201, ("flows", 1): 0}, accept_loss=True)
    assert [f.level for f in found] == [Level.PROBLEM] and "incarnation" in found[0].advice


@pytest.mark.parametrize(
    ("following", "level", "says"),
    [
        (30, Level.OK, "0 records"),
        (10, Level.OK, "20 records"),
        (9, Level.PROBLEM, "records are lost"),
        (31, Level.PROBLEM, "created anew"),
        (None, Level.WARNING, "there is no saved state"),
    ],
)
def test_the_log_must_hold_what_follows_the_checkpoint(following: int | None, level: Level, says: str) -> None:
    [found] = judge_state("tenant-log", LOGS, {} if following is None else {0: following})
    assert found.level is level and says in found.text


def test_no_saved_state_for_a_log_from_its_start_is_well() -> None:
    [found] = judge_state("tenant-log", {("tenant-log", 0): LogRange(0, 7)}, {})
    assert (found.level, found.text) == (Level.OK, "7 records after the checkpoints are replayed at a start")


@pytest.mark.parametrize(
    ("state", "members", "level"),
    [
        ("Stable", 3, Level.OK),
        ("Empty", 0, Level.WARNING),
        ("Dead", 0, Level.WARNING),
        ("PreparingRebalance", 2, Level.WARNING),
    ],
)
def test_a_group_that_works_is_stable(state: str, members: int, level: Level) -> None:
    assert judge_group("drift", state, members).level is level


@pytest.mark.parametrize(
    ("ahead_ms", "level"),
    [([0], Level.OK), ([-1_900, 70_000], Level.OK), ([2_500, 9_000], Level.WARNING), ([-61_000], Level.PROBLEM)],
)
def test_the_least_difference_of_clocks_counts(ahead_ms: list[int], level: Level) -> None:
    found = judge_clock("clock", ahead_ms)
    assert found is not None and found.level is level


def test_clocks_nobody_could_compare_are_no_finding() -> None:
    assert judge_clock("clock", []) is None


# -- state -------------------------------------------------------------------------------------------------------------


def stored(**changes: Any) -> Stored:
    values: dict[str, Any] = {
        "offset": 5,
        "incarnation": "1",
        "edges": 1_000,
        "size_bytes": 2_000_000,
        "written_ms": NOW_MS - 5_000,
        "read_s": 0.1,
    }
    return Stored(**(values | changes))


@pytest.mark.parametrize(
    ("saved", "levels"),
    [
        ({0: stored(), 1: stored()}, [Level.OK]),
        ({0: None}, [Level.OK]),
        ({0: stored(), 1: "is of manifest version 9"}, [Level.PROBLEM]),
        ({0: stored(incarnation="7")}, [Level.OK, Level.WARNING]),
        ({0: stored(), 1: stored(written_ms=NOW_MS - 3_600_000)}, [Level.OK, Level.WARNING]),
        ({0: stored(written_ms=None)}, [Level.OK]),
    ],
)
def test_saved_state_is_readable_recent_and_of_this_incarnation(saved: dict[int, Any], levels: list[Level]) -> None:
    assert [f.level for f in judge_saved(saved, SETTINGS, NOW_MS)] == levels


def test_the_size_of_the_state_is_said() -> None:
    [found] = judge_saved({0: stored(), 1: stored()}, SETTINGS, NOW_MS)
    assert found.text == "2 partitions, 2,000 edges, 4.0 MB, read in 0.2 s"


# -- ClickHouse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "level"), [("25.8.1.5101", Level.OK), ("26.1.2.3", Level.OK), ("24.3.1.1", Level.WARNING)]
)
def test_a_version_that_is_not_tested_is_told(version: str, level: Level) -> None:
    assert judge_version(version).level is level


@pytest.mark.parametrize(
    ("definition", "level"),
    [
        ("ENGINE = ReplacingMergeTree SETTINGS non_replicated_deduplication_window = 10000", Level.OK),
        ("ENGINE = ReplacingMergeTree SETTINGS index_granularity = 8192", Level.WARNING),
        ("ENGINE = ReplacingMergeTree SETTINGS non_replicated_deduplication_window = 0", Level.WARNING),
        ("ENGINE = ReplicatedReplacingMergeTree('/x', 'y')", Level.OK),
        (
            "ENGINE = ReplicatedReplacingMergeTree('/x', 'y') SETTINGS replicated_deduplication_window = 0",
            Level.WARNING,
        ),
    ],
)
def test_tables_must_recognise_repeated_inserts(definition: str, level: Level) -> None:
    assert [f.level for f in judge_tables({"edges_1m": definition})] == [level]


def test_what_every_insert_sets_must_be_allowed() -> None:
    assert [f.level for f in judge_settings({"async_insert": "0", "insert_deduplicate": "0"})] == [Level.OK]
    [found] = judge_settings({"async_insert": "1", "insert_deduplicate": "0"})
    assert found.level is Level.PROBLEM and "async_insert" in found.text


# -- machine and settings ----------------------------------------------------------------------------------------------


def choose(**worker: Any) -> Settings:
    values = {"metrics_port": 9_100, **worker}
    return Settings(topics=TopicSettings(replication=3), worker=WorkerSettings(**values))


def test_good_choices_are_well() -> None:
    assert [f.level for f in judge_choices(choose())] == [Level.OK]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (choose(accept_loss=True), "accept_loss is set"),
        (choose(metrics_port=None), "no HTTP endpoint"),
        (choose(metrics_host="0.0.0.0"), "anybody who reaches it"),
        (choose().model_copy(update={"topics": TopicSettings(replication=1)}), "replication is 1"),
        (choose().model_copy(update={"lanes": (LaneSettings(name="default", max_wait_ms=0),)}), "waits for ever"),
    ],
)
def test_choices_that_will_hurt_are_told(settings: Settings, says: str) -> None:
    [found] = judge_choices(settings)
    assert found.level is Level.WARNING and says in found.text and found.advice


@pytest.mark.parametrize(
    ("free", "level"), [(FULL_BYTES - 1, Level.PROBLEM), (LOW_BYTES - 1, Level.WARNING), (LOW_BYTES, Level.OK)]
)
def test_a_disk_that_fills_is_told(tmp_path: Path, free: int, level: Level) -> None:
    settings = choose(state_directory=tmp_path / "not" / "made")
    by_check = {f.check: f for f in diagnose_machine(settings, lambda _: free)}
    assert by_check[f"folder {tmp_path / 'not' / 'made'}"].level is level


@pytest.mark.parametrize(
    ("ms", "text"), [(500, "500 ms"), (1_500, "1.5 s"), (90_000, "90 s"), (9_000_000, "2.5 h"), (604_800_000, "7 d")]
)
def test_times_are_written_for_people(ms: float, text: str) -> None:
    assert span(ms) == text


def test_a_finding_is_one_line() -> None:
    line = Finding(Level.PROBLEM, "topic flows", "does not exist", "`drift topics` creates it").line
    assert line == "problem topic flows: does not exist: `drift topics` creates it"
