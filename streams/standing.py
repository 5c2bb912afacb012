"""How a worker stands, for those who look from outside: lag, states, readiness. Only reads; any thread may ask."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import faust
from faust.types import TP

from streams.clock import Clock
from streams.graph.faust_agent import GraphAgent
from streams.graph.partition import GraphPartition
from streams.graph_scores.status import ModelStatus
from streams.health import Readiness, State
from streams.ingest.faust_agent import IngestAgents
from streams.ingest.ports import SourcePartition
from streams.lag import GroupLag, LagWatch
from streams.sinks.agents import SinkAgent

if TYPE_CHECKING:  # it needs scipy, which a worker without models need not load
    from streams.graph_scores.agent import GraphScores

CATCHING_UP_MS = 10_000
"""Records that have waited for longer are a backlog, not the traffic of the moment."""


@dataclass(slots=True, eq=False)
class Standing:
    """The live parts of a worker, as far as there are any yet; `streams.observe.Observed`.

    Attributes:
        state: as the worker itself knows it; `readiness` looks closer. failure: why it failed.
    """

    clock: Clock
    state: State = State.STARTING
    failure: str | None = None
    app: faust.App | None = None
    graph: GraphAgent | None = None
    ingest: IngestAgents | None = None
    lag: LagWatch | None = None
    sinks: list[SinkAgent] = field(default_factory=list)
    scores: "GraphScores | None" = None

    def graph_partitions(self) -> Mapping[int, GraphPartition]:
        """Return the partitions of `tenant-log` that are ours."""
        return {} if self.graph is None else self.graph.partitions.copy()

    def source_lags(self) -> Mapping[SourcePartition, int]:
        """Return messages behind by source partition of ours."""
        if self.ingest is None or not self._is_assigned():
            return {}
        ends = {} if self.lag is None else self.lag.last.ends
        return self.ingest.worker.lags({(tp.topic, tp.partition): end for tp, end in ends.items()})

    def idle_sources(self) -> Mapping[SourcePartition, str]:
        """Return source partitions of which nothing is read, and why."""
        return {} if self.ingest is None else self.ingest.worker.idle_reasons()

    def sink_lags(self) -> Mapping[TP, int]:
        """Return messages behind by partition of our sinks; before the first measurement there are none."""
        if self.lag is None or not self._is_assigned():
            return {}
        assert self.app is not None
        assigned, last = self.app.consumer.assignment(), self.lag.last
        return {
            tp: max(0, last.ends[tp] - max(last.committed.get(tp, 0), sink.stored.get(tp.partition, 0)))
            for sink in self.sinks
            for tp in assigned
            if tp.topic == sink.topic and tp in last.ends
        }

    def log_lag(self, partition: int) -> tuple[int, int | None]:
        """Return how many records of a partition of `tenant-log` are not applied, and since when at the longest."""
        assert self.graph is not None and self.lag is not None
        owner = self.graph.partitions.get(partition)
        end = self.lag.last.ends.get(TP(self.graph.topic, partition), 0)
        following = 0 if owner is None else owner.performed_offset + 1
        if owner is None or following >= end:
            return 0, None
        return end - following, self.lag.appended[partition].not_before_ms(following)

    def group_lag(self) -> GroupLag | None:
        """Return the last measurement, if there was one."""
        return None if self.lag is None else self.lag.last

    def graph_models(self) -> tuple[ModelStatus, Mapping[int, int]] | None:
        """Return how the graph model stands and messages behind by partition; ``None`` where it is off."""
        return None if self.scores is None else (self.scores.status(), self.scores.lags())

    @property
    def is_held(self) -> bool:
        """Say whether ingest waits for the graph side."""
        return self.lag is not None and self.lag.brake.is_held

    def _is_assigned(self) -> bool:
        return self.app is not None and self.state not in (State.STARTING, State.FAILED)

    def readiness(self) -> Readiness:
        """Say what the worker is doing. Any thread."""
        if self.failure is not None or (self.app is not None and self.app.crashed):
            reason = self.failure or (str(self.app.crash_reason) if self.app is not None else "")
            return Readiness(State.FAILED, (" ".join(reason.split()),))
        if self.state is State.DRAINING:
            return Readiness(State.DRAINING, ("the worker finishes what is under way and leaves the group",))
        mine = self.graph_partitions()
        recovering = sorted(number for number, partition in mine.items() if not partition.is_recovered)
        if recovering:
            done = f"{len(mine) - len(recovering)} of {len(mine)} partitions are restored"
            return Readiness(State.RECOVERING, (f"reading the saved state of partitions {_listed(recovering)}", done))
        if self.state is State.STARTING:
            return Readiness(State.STARTING, ("no partitions are assigned yet",))
        assert self.app is not None
        if self.app.rebalancing:
            return Readiness(State.REBALANCING, ("the group is handing out partitions",))
        return self._readiness_of_work(sorted(mine))

    def _readiness_of_work(self, mine: list[int]) -> Readiness:
        reasons = []
        now_ms, late = self.clock.now_ms(), []
        for number in mine:
            behind, since_ms = self.log_lag(number)
            if behind and since_ms is not None and now_ms - since_ms > CATCHING_UP_MS:
                late.append(number)
                reasons.append(f"partition {number}: {behind} records behind, {(now_ms - since_ms) / 1000:.0f} s")
        if self.is_held:
            reasons.append("ingest is held: the graph side is too far behind")
        for (topic, number), reason in sorted(self.idle_sources().items()):
            reasons.append(f"{topic}[{number}] is not read: {reason}")
        if self.scores is not None:
            reasons += self.scores.status().reasons
        return Readiness(State.CATCHING_UP if late else State.READY, tuple(reasons))


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
