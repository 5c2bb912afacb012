"""The watch over the group's lag, in virtual time against brokers that are numbers."""

from collections.abc import Iterable, Mapping

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from schemas.settings import Settings, WorkerSettings
from streams.lag import GroupQuestions, LagWatch

LOG, LIMIT_MS = "tenant-log", 10_000


class Group:
    """A log of two partitions, its committed offsets, and a clock."""

    def __init__(self) -> None:
        self.now = 1_000_000
        self.ends = {TP(LOG, 0): 0, TP(LOG, 1): 0, TP("flows", 0): 0}
        self.committed: dict[TP, int | None] = dict.fromkeys(self.ends, 0)
        self.is_away = False
        self.held: list[bool] = []
        settings = Settings(worker=WorkerSettings(hold_above_ms=LIMIT_MS))
        ask = GroupQuestions(self.ask_ends, self.ask_firsts, self.ask_committed, lambda: [TP("flows", 0)])
        self.watch = LagWatch(settings, 2, ask, self, self.held.append, lambda counts: None)

    def now_ms(self) -> int:
        return self.now

    async def ask_ends(self, wanted: Iterable[TP]) -> Mapping[TP, int]:
        if self.is_away:
            raise KafkaConnectionError
        return {tp: self.ends[tp] for tp in wanted}

    async def ask_firsts(self, wanted: Iterable[TP]) -> Mapping[TP, int]:
        return {tp: self.ends[tp] for tp in wanted}

    async def ask_committed(self, wanted: Iterable[TP]) -> Mapping[TP, int | None]:
        return {tp: self.committed[tp] for tp in wanted}

    async def step(self, seconds: float, **ends: int) -> None:
        """Let time pass, then measure; ``p0``, ``p1``: new ends of the log."""
        self.now += int(seconds * 1000)
        for name, end in ends.items():
            self.ends[TP(LOG, int(name[1:]))] = end
        await self.watch.measure()


@pytest.fixture
async def group() -> Group:
    made = Group()
    await made.watch.measure()
    return made


async def test_ingest_is_held_for_the_one_partition_that_is_furthest_behind_and_released_below_half(
    group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    await group.step(1, p0=10, p1=10)
    group.committed[TP(LOG, 0)] = 10
    await group.step(9.5, p0=50)
    assert group.held == [True], "11 s and a half: partition 1 stands since the look before its records came"
    group.committed[TP(LOG, 1)] = 4
    await group.step(1)
    assert group.held == [True], "some records are not enough"
    group.committed |= {TP(LOG, 0): 50, TP(LOG, 1): 10}
    await group.step(1)
    assert group.held == [True, False]
    lines = [record.getMessage() for record in caplog.records if record.name == "streams.lag"]
    assert len(lines) == 2 and "worker.hold_above_ms" in lines[0] and "goes on" in lines[1]


async def test_a_group_that_keeps_up_is_never_held(group: Group) -> None:
    for second in range(1, 100):
        await group.step(1, p0=second * 10, p1=second * 10)
        group.committed |= {TP(LOG, 0): second * 10, TP(LOG, 1): second * 10}
    assert group.held == []
    assert group.watch.last.age_ms(group.now) <= 2_000


async def test_lag_of_sources_holds_nothing(group: Group) -> None:
    group.ends[TP("flows", 0)] = 1_000_000
    await group.step(1_000)
    assert group.held == [] and group.watch.last.ends[TP("flows", 0)] == 1_000_000


async def test_the_age_grows_while_brokers_are_away_and_the_decision_stands(group: Group) -> None:
    await group.step(1, p0=10)
    await group.step(20)
    assert group.held == [True]
    group.is_away = True
    with pytest.raises(KafkaConnectionError):
        await group.step(30)
    assert group.watch.brake.is_held
    assert group.watch.last.age_ms(group.now) == 51_000


async def test_a_partition_without_a_commit_is_read_from_the_start_of_its_log(group: Group) -> None:
    group.committed[TP(LOG, 0)] = None
    await group.step(1)
    assert group.watch.last.committed[TP(LOG, 0)] == group.ends[TP(LOG, 0)]
