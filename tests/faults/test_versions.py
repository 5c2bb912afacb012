"""Workers of the version before this one and of this one share a group: partitions and states go back and forth."""

from pathlib import Path

import pytest

from tests.faults.versions import OLDER, NoOlderVersion, Verdict, _compare, older_tree, run


@pytest.mark.kafka
@pytest.mark.timeout(7200)
async def test_a_roll_between_versions_loses_and_doubles_nothing(apache_kafka: str, tmp_path: Path) -> None:
    try:
        older = older_tree(OLDER, tmp_path / "older")
    except NoOlderVersion as reason:
        pytest.skip(str(reason))
    verdict = await run(apache_kafka, older, tmp_path, seconds=0, partitions=4, rate=2_000)
    print(*verdict.steps, verdict.line, sep="\n")
    assert verdict.is_clean, verdict.details
    assert verdict.events > 100 and verdict.chunks > 20 and verdict.flows > 10_000
    assert verdict.kills >= 1 and verdict.handovers >= 8


def test_a_commit_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoOlderVersion, match="commit 00badc0ffee is not in this checkout"):
        older_tree("00badc0ffee", tmp_path)


def test_the_judge_tells_what_is_lost_invented_and_changed() -> None:
    verdict = Verdict()
    must, may = {"a": 1, "b": 2, "c": 3}, {"d": 4}
    _compare(verdict, "event", must, may, {"a": 1, "b": 5, "d": 4, "e": 6})
    assert (verdict.lost, verdict.unexpected, verdict.is_clean) == (1, 2, False)
    assert "event c is expected" in verdict.details[0]
