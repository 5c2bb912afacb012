"""What state machines that began with an empty state did in a schedule: as far as they went, they are the replay.

The state machine is a pure function of the log, so the judge need not apply those records a second time: it goes on
from where the furthest of them stopped. In one schedule of `FULL_REPLAY_EVERY` it replays everything none the less.
"""

from dataclasses import dataclass, field
from typing import Any

from models.graph.machine import Machine
from models.graph.output import Output
from streams.graph.partition import GraphPartition

FULL_REPLAY_EVERY = 16


@dataclass(slots=True, eq=False)
class Lineage:
    """A state machine that nobody restored, and what each record of the log brought about, from offset 0 on."""

    machine: Machine
    outputs: list[Output] = field(default_factory=list)
    open_windows: int = 0
    is_broken: bool = False

    @property
    def length(self) -> int:
        """Return how many records of the log this stands for; 0 if it cannot stand for any."""
        return 0 if self.is_broken or self.machine.offset + 1 != len(self.outputs) else len(self.outputs)


def follow(partition: GraphPartition) -> Lineage:
    """Record what a partition's state machine brings about, for as long as it is the one the partition began with."""
    lineage = Lineage(partition.machine)
    perform: Any = partition._perform
    first, outputs = partition.machine, lineage.outputs

    async def note(output: Output) -> None:
        if partition.machine is first:
            lineage.is_broken |= first.offset != len(outputs)
            outputs.append(output)
            for lane in first.lanes.values():
                lineage.open_windows = max(lineage.open_windows, len(lane.windows))
        await perform(output)

    partition._perform = note  # type: ignore[method-assign]
    return lineage
