"""Deliberately broken variants: each takes one promise out of the production code. The simulator must find them all."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streams.graph.checkpoints import Checkpoints
from streams.graph.partition import GraphPartition
from streams.ingest.agent import IngestWorker
from streams.ingest.lanes import source_name
from streams.ingest.readers import ControlReader, FlowReader, SourceReader
from streams.sinks.writer import PartitionWriter

if TYPE_CHECKING:
    from tests.simulation.simulator import Simulator


def sound_readers(sim: "Simulator") -> dict[str, SourceReader]:
    """Return readers as streams/ingest/faust_agent.py makes them."""
    from tests.simulation.simulator import FLOW_TOPIC, lane_of

    source = sim.variant.source("flows", sim.incarnation)
    return {
        "flows": FlowReader(FLOW_TOPIC, source, lane_of(source, sim.scenario.learning_windows), sim.partitions),
        "drift-controls": ControlReader(sim.variant.source("drift-controls", sim.incarnation), sim.partitions),
    }


@dataclass(frozen=True)
class Variant:
    """Which pieces a simulated worker is made of. ``applied`` holds while a schedule runs."""

    name: str = "sound"
    ingest: Callable[..., IngestWorker] = IngestWorker
    readers: "Callable[[Simulator], Mapping[str, SourceReader]]" = sound_readers
    checkpoints: Callable[..., Checkpoints] = Checkpoints
    partition: Callable[..., GraphPartition] = GraphPartition
    writer: Callable[..., PartitionWriter] = PartitionWriter
    source: Callable[[str, str], str] = source_name
    applied: Callable[[], AbstractContextManager[Any]] = nullcontext


SOUND = Variant()
