"""One schedule from its seed to its end: producers, faults and two workers in virtual time; then heal, drain, judge."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import cramjam
import pyarrow as pa

from models.graph.machine import Machine
from schemas.detection import DetectionConfig
from schemas.graph import ClosedWindow, GraphChunk, chunk_window, decode_chunk
from schemas.ids import end_position
from schemas.settings import FlowTopic
from schemas.tables import DRIFT_EVENTS, EDGES_1M, WINDOWS, TableDeclaration
from schemas.tenant_log import LaneConfig, Member
from streams.graph import checkpoints
from streams.graph import sink as publishing
from streams.ingest.chain import encode_segments
from streams.sinks.rows import Rows, RowsOf, drift_rows, graph_rows
from tests.simulation import process as shell
from tests.simulation.broker import Broker, Headers, Log, TopicPartition
from tests.simulation.clickhouse import Store, fault
from tests.simulation.lineage import FULL_REPLAY_EVERY, Lineage
from tests.simulation.loop import VirtualLoop
from tests.simulation.process import Process
from tests.simulation.scenario import (
    EPOCH_MS,
    LATENESS_MS,
    MAIN,
    MAX_WAIT_MS,
    PARTITIONS,
    SECOND,
    SETTLE_S,
    SKEW_MS,
    SOURCES,
    WINDOW_MS,
    Message,
    Scenario,
)
from tests.simulation.variants import SOUND, Variant

MAX_STARTS = 14
CLOSING_S = 400.0
"""How much longer what is under way may take once nothing new happens."""
BATCHED = ((shell.FLOWS, SOURCES), (shell.LOG, PARTITIONS), (shell.EVENTS, PARTITIONS), (shell.WINDOWS, PARTITIONS))
_PLAIN = SimpleNamespace(
    zstd=SimpleNamespace(compress=lambda content, level: content, decompress=bytes),
    DecompressionError=cramjam.DecompressionError,
)
_BINARY = pa.schema([("value", pa.binary())])


def lane_of(source: str, learning_windows: int, name: str = MAIN) -> LaneConfig:
    """Return a lane of a simulation."""
    return LaneConfig(
        name,
        window_ms=WINDOW_MS,
        lateness_ms=LATENESS_MS,
        max_wait_ms=MAX_WAIT_MS,
        skew_ms=SKEW_MS,
        members=(Member(source, SOURCES if name == MAIN else 1),),
        detection=DetectionConfig(learning_windows=learning_windows),
    )


FLOW_TOPIC = FlowTopic(topic=shell.FLOWS, tenants=("acme", "globex", "initech", "hooli"))
SECOND_TOPIC = FLOW_TOPIC.model_copy(update={"topic": shell.MORE, "lane": SECOND})


@dataclass(slots=True)
class Era:
    """One incarnation of the log: all that stood on the topics when it ended.

    Attributes:
        applied: offset of `tenant-log` up to which each partition's state was stored at the stop, by partition.
    """

    incarnation: str
    logs: dict[TopicPartition, Log]
    applied: dict[int, int] = field(default_factory=dict)


class Deleted(NamedTuple):
    """Messages of the first lane's topic that retention deleted unread: ``[start, end)`` of a partition.

    ``was_known``: the group had committed an offset there before. A partition where none was ever committed is to its
    next owner as an old topic is to a new group: where its log begins says nothing of what should have been read.
    """

    partition: int
    start: int
    end: int
    was_known: bool

    def holds(self, partition: int, offset: int) -> bool:
        """Say whether a message is among them."""
        return partition == self.partition and self.start <= offset < self.end


class Simulator:
    """Runs one schedule. ``trace`` collects its history as lines."""

    def __init__(self, scenario: Scenario, variant: Variant = SOUND, trace: list[str] | None = None) -> None:
        self.scenario = scenario
        self.variant = variant
        self.trace = trace
        self.partitions = PARTITIONS
        self.loop = VirtualLoop()
        self.rng = random.Random(scenario.seed ^ 0x5EED)
        self.broker = Broker()
        self.store = Store()
        self.files: dict[int, dict[str, bytes]] = {}
        self.incarnation = "1"
        self.eras: list[Era] = []
        self.cut: dict[int, tuple[ClosedWindow, list[GraphChunk]]] = {}
        self.lineages: dict[int, list[Lineage]] = {}
        self.processes: dict[int, Process] = {}
        self.starts = 0
        self.effects = 0
        self.effect_names: list[str] = []
        self.is_healed = False
        self.is_settled = False
        self.stops: list[tuple[str, Exception]] = []
        self.truncated: list[Deleted] = []
        self.raw_causes = 0
        self.pushed: list[tuple[int, int, int, Message]] = []
        self._since_restart = 0
        self._recrashes = list(scenario.recrash)
        self._zombies: set[int] = set()
        self.is_stopping = False
        self._accept_loss = scenario.accept_loss
        self._make_topics()

    @property
    def _batched(self) -> tuple[tuple[str, int], ...]:
        return (*BATCHED, (shell.MORE, 1)) if self.scenario.has_second_lane else BATCHED

    def _make_topics(self) -> None:
        self.broker = Broker()
        for topic, count in self._batched:
            self.broker.make(topic, count)
        self.broker.make(shell.CONTROLS, 1)
        self.broker.make(shell.STATE, PARTITIONS)
        self.broker.make(shell.DEAD_LETTERS, 1)
        self.broker.on_append = self._on_append

    # -- what processes ask ----------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """Return true time."""
        return EPOCH_MS + int(self.loop.now_s * 1000)

    def source(self, era: int) -> str:
        """Return the name of the source in coordinates."""
        return self.variant.source(shell.FLOWS, str(era + 1))

    def note(self, text: str) -> None:
        """Add a line to the history."""
        if self.trace is not None:
            self.trace.append(f"{self.loop.now_s:8.3f} s  {text}")

    def report(self, process: Process, what: str, error: Exception) -> None:
        """Take note of an error that an operator would see."""
        self.stops.append((what, error))
        self.note(f"{process.name} {what}: {type(error).__name__}: {error}")

    def next_effect(self, process: Process, kind: str, where: TopicPartition) -> str:
        """Count an effect; return ``before``, ``after`` or ``wire`` if the process dies at it."""
        self.effects += 1
        if self.trace is not None:
            self.note(f"#{self.effects} {process.name} {kind} {where[0]}[{where[1]}]")
            self.effect_names.append(f"{kind} {where[0]}")
        if self.is_settled or self.is_stopping:
            return ""
        side = self.scenario.crashes.get(self.effects, "")
        if self._recrashes and self._since_restart:
            self._since_restart += 1
            if self._since_restart > self._recrashes[0][0]:
                self._since_restart = 0
                side = self._recrashes.pop(0)[1]
        return side

    def produce_outcome(self, tp: TopicPartition) -> tuple[str, float]:
        """Return how a produce request ends and after how many seconds."""
        draw = self.rng.random()
        delay_s = 0.002 + 0.05 * draw * draw
        if self.is_healed:
            return "ok", delay_s
        now_s = self.loop.now_s
        for from_s, until_s in self.scenario.outages:
            if from_s <= now_s < until_s:
                return "fail", delay_s
        failed, timed_out, late = self.scenario.produce_faults
        chance = self.rng.random()
        if chance < failed:
            return "fail", delay_s
        if chance < failed + timed_out:
            self.raw_causes += 1
            return "timeout", delay_s
        if chance < failed + timed_out + late:
            self.raw_causes += 1
            return "late", delay_s
        if chance > 0.97:
            return "ok", delay_s + 6.0 * draw
        return "ok", delay_s

    def land(self, tp: TopicPartition, key: bytes | None, value: bytes | None, headers: Headers) -> int:
        """Append a record that a process sent."""
        if tp not in self.broker.logs:
            return -1
        return self.broker.append(tp, key, value, headers, self.now_ms())

    def insert(self, table: str, arrow: Any, token: str, after: Callable[[], None]) -> None:
        """Insert a block, or raise as ClickHouse and the network do, before or after it took hold."""
        chance = self.rng.random()
        from_s, until_s = self.scenario.down
        if not self.is_healed and from_s <= self.loop.now_s < until_s:
            raise fault("down")
        faulty = not self.is_healed and chance < self.scenario.insert_faults
        if faulty and chance < self.scenario.insert_faults / 2:
            raise fault("full" if self.rng.random() < 0.5 else "busy")
        column = arrow.column(0) if arrow.column_names == ["value"] else None
        values = arrow.to_pylist() if column is None else column.to_pylist()
        self.store.insert(table, values, token)
        after()
        if faulty:
            raise fault("reset")

    def rows_of(self, topic: str) -> RowsOf:
        """Return how a sink reads messages: as in production, or (cheaper) as they are, to be compared as bytes."""
        if self.scenario.real_rows:
            return drift_rows if topic == shell.EVENTS else graph_rows
        return _event_row if topic == shell.EVENTS else _window_row

    def fetch_delay_s(self, tp: TopicPartition) -> float:
        """Return how long a fetch takes."""
        draw = self.rng.random()
        if tp[0] in shell.SOURCES_OF_ROWS:
            return 0.05 + draw * self.scenario.fetch_s
        if tp[0] == shell.LOG:
            return 0.02 + draw * 0.4
        return 0.1 + draw * (2.0 if self.is_healed else 4.0)

    def chunk_size(self, tp: TopicPartition) -> int:
        """Return where a fetch is cut."""
        return self.rng.randrange(1, 7) if tp[0] in (*shell.SOURCES_OF_ROWS, shell.LOG) else self.rng.randrange(1, 25)

    def is_stalled(self, tp: TopicPartition) -> bool:
        """Say whether fetching a source partition is stuck."""
        if self.is_healed or tp[0] != shell.FLOWS:
            return False
        now_s = self.loop.now_s
        return any(p == tp[1] and from_s <= now_s < until_s for from_s, until_s, p in self.scenario.stalls)

    def _on_append(self, tp: TopicPartition) -> None:
        for process in self.processes.values():
            process.fetch_soon(tp)

    # -- the group -------------------------------------------------------------------------------------------------

    def start_process(self, number: int) -> None:
        """Start a worker and have it join."""
        old = self.processes.get(number)
        if self.is_stopping or (old is not None and old.alive) or self.starts >= MAX_STARTS:
            return
        self.starts += 1
        skew_ms = self.scenario.skews_ms[number]
        process = self.processes[number] = Process(self, number, skew_ms, accept_loss=self._accept_loss)
        self.note(f"{process.name} starts")
        process.start()
        if self._recrashes and self.starts > 2:
            self._since_restart = 1
        self.rebalance()

    def rebalance(self) -> None:
        """Deal all partitions to the members that are there; each learns of it a little later."""
        members = [n for n, process in sorted(self.processes.items()) if process.alive and n not in self._zombies]
        if not members or self.is_stopping:
            return
        tps = [(topic, partition) for topic, count in self._batched for partition in range(count)]
        if self.scenario.controls:
            tps.append((shell.CONTROLS, 0))
        shares: dict[int, list[TopicPartition]] = {member: [] for member in members}
        if len(members) == 1:
            shares[members[0]] = tps
        else:
            for tp in tps:
                shares[members[self.rng.random() < 0.5]].append(tp)
        generation = self.broker.assign({str(member): frozenset(share) for member, share in shares.items()})
        self.raw_causes += self.loop.now_s > 2.0  # until it has heard of it, a former owner goes on
        self.note(f"generation {generation}: " + "; ".join(f"{n}: {_names(share)}" for n, share in shares.items()))
        for member in members:
            self.loop.call_later(0.05 + self.rng.random(), self._notify, self.processes[member], generation)

    def _notify(self, process: Process, generation: int) -> None:
        if process.alive and generation == self.broker.generation:
            share = self.broker.assignment.get(str(process.number), frozenset())
            self.loop.spawn(process.assign(generation, share))

    def on_death(self, process: Process) -> None:
        """Have the group find out, and the worker started again."""
        self.note(f"{process.name} dies")
        self.raw_causes += 1
        draw = self.rng.random()
        if self.processes.get(process.number) is process and not self.is_settled:
            shortest_s, longest_s = self.scenario.takeover_s
            self.loop.call_later(shortest_s + (longest_s - shortest_s) * draw, self.rebalance)
            restart_s = shortest_s - 0.5 + (longest_s + 2.0) * self.rng.random()
            self.loop.call_later(restart_s, self.start_process, process.number)

    # -- the schedule ----------------------------------------------------------------------------------------------

    def _push(self, message: Message) -> None:
        topic = shell.FLOWS if message.lane == MAIN else shell.MORE
        offset = self.broker.append((topic, message.partition), None, message.value, (), self.now_ms())
        self.pushed.append((len(self.eras), message.partition, offset, message))

    def _control(self, key: bytes, value: bytes) -> None:
        self.broker.append((shell.CONTROLS, 0), key, value, (), self.now_ms())

    def _is_alive(self, number: int) -> bool:
        process = self.processes.get(number)  # none yet right after a new incarnation of the broker
        return process is not None and process.alive

    def _isolate(self, number: int, until_s: float) -> None:
        """Give a worker's partitions away without its knowledge."""
        if self.is_healed or not all(self._is_alive(one) for one in (0, 1)):
            return
        self.note(f"worker {number} is a zombie until {until_s:.1f} s")
        self.raw_causes += 1
        self._zombies.add(number)
        self.rebalance()
        self.loop.call_later(until_s - self.loop.now_s, self._rejoin, number)

    def _rejoin(self, number: int) -> None:
        if number in self._zombies:
            self._zombies.discard(number)
            self.rebalance()

    def _flood(self, partition: int, paused: bool) -> None:
        key = (shell.FLOWS, partition)
        for process in self.processes.values():
            if process.alive:
                (process.ingest.pause if paused else process.ingest.resume)([key])

    def _truncate(self, partition: int, share: float) -> None:
        log = self.broker.logs[shell.FLOWS, partition]
        key = (shell.FLOWS, partition)
        committed = self.broker.committed.get(key, 0)
        start = committed + int((log.end - committed) * share)
        if start > max(log.start, committed):
            self.truncated.append(Deleted(partition, max(log.start, committed), start, key in self.broker.committed))
            log.truncate(start)
            self.note(f"retention deletes {shell.FLOWS}[{partition}] up to {start}, committed {committed}")

    def _heal(self) -> None:
        """End all faults. An operator who did not accept a loss does so now."""
        self.note("heals")
        self.is_healed = True
        is_whole = not self._zombies and not self.truncated
        self._zombies.clear()
        if self.truncated and not self._accept_loss:
            self._accept_loss = True
            for process in list(self.processes.values()):
                if process.alive:
                    process.kill()
        for number in (0, 1):
            if not self._is_alive(number):
                self.start_process(number)
                is_whole = False
        if not is_whole or len(self.broker.assignment) < 2:
            self.rebalance()

    def run(self) -> None:
        """Run the schedule to its end; judge it with `verdict.judge`."""
        scenario, loop = self.scenario, self.loop
        with small_records(scenario.max_record_bytes), self._encoders(), self.variant.applied():
            at = loop.call_later
            for message in scenario.messages:
                at(message.at_s, self._push, message)
            for at_s, key, value in scenario.controls:
                at(at_s, self._control, key, value)
            for from_s, until_s, number in scenario.zombies:
                at(from_s, self._isolate, number, until_s)
            for at_s in scenario.rebalances:
                at(at_s, self.rebalance)
            for from_s, until_s, partition in scenario.pauses:
                at(from_s, self._flood, partition, True)
                at(until_s, self._flood, partition, False)
            for at_s, partition, share in scenario.truncations:
                at(at_s, self._truncate, partition, share)
            at(0.0, self.start_process, 0)
            at(0.01, self.start_process, 1)
            if scenario.incarnation_s is not None:
                self._change_incarnation(scenario.incarnation_s)
            loop.run_until(scenario.heal_s)
            self._heal()
            until_s = scenario.heal_s + SETTLE_S
            while loop.now_s < until_s and not self._is_drained():
                loop.run_until(loop.now_s + 3.0)
            self.is_settled = True
            loop.run_until(loop.now_s + CLOSING_S)
            self.eras.append(Era(self.incarnation, self.broker.logs))

    @contextmanager
    def _encoders(self) -> Iterator[None]:
        """Keep what windows are cut into for the judge; leave checkpoints as they are, but for a sample."""
        cut = self.cut

        def remember(window: ClosedWindow) -> list[GraphChunk]:
            chunks = chunk_window(window)
            cut[id(window)] = window, chunks
            return chunks

        packer = cramjam if self.scenario.real_rows else _PLAIN
        with patch.object(publishing, "chunk_window", remember), patch.object(checkpoints, "cramjam", packer):
            yield

    def machines(self) -> dict[int, Machine]:
        """Return the state machines of the partitions of `tenant-log` that have an owner."""
        return {
            number: partition.machine
            for process in self.processes.values()
            if process.alive
            for number, partition in process.graph.items()
            if (shell.LOG, number) in process.fetches
        }

    @property
    def is_replayed_in_full(self) -> bool:
        """Say whether the judge applies every record itself: in a sample, and where a machine may not be sound."""
        is_plain = self.variant.applied is nullcontext and len(self.eras) == 1 and not self.stops
        return not is_plain or self.scenario.seed % FULL_REPLAY_EVERY == 0

    def _has_caught_up(self) -> bool:
        """Say whether every owner has applied its log to the end: nobody has published what is beyond it.

        And whether it knows what it owns: what is published in a rebalance reaches the sinks after it alone.
        """
        is_dealt = len(self.broker.assignment) == sum(process.alive for process in self.processes.values())
        for process in self.processes.values():
            is_dealt &= process.generation == self.broker.generation or not process.alive
        if not is_dealt:
            return False
        machines = self.machines()
        ends = {number: self.broker.logs[shell.LOG, number].end for number in range(PARTITIONS)}
        return all(number in machines and machines[number].offset == end - 1 for number, end in ends.items())

    def _is_drained(self) -> bool:
        """Say whether all that was pushed is folded into windows that have closed."""
        machines = self.machines()
        name = self.source(len(self.eras))
        for partition in range(PARTITIONS):
            machine = machines.get(partition)
            if machine is None or any(lane.windows for lane in machine.lanes.values()):
                return False
            for source in range(SOURCES):
                end = self.broker.logs[shell.FLOWS, source].end
                if end and machine.applied.get((name, source), -1) < end_position(end - 1):
                    return False
            if self.scenario.has_second_lane:
                end = self.broker.logs[shell.MORE, 0].end
                second = self.variant.source(shell.MORE, self.incarnation)
                if end and machine.applied.get((second, 0), -1) < end_position(end - 1):
                    return False
        return True

    def _change_incarnation(self, at_s: float) -> None:
        """Stop everything in order, lose the broker, start again."""
        loop = self.loop
        loop.run_until(at_s)
        self._heal()
        loop.run_until(loop.now_s + 12.0)
        until_s = loop.now_s + SETTLE_S
        while loop.now_s < until_s and not self._has_caught_up():
            loop.run_until(loop.now_s + 0.5)
        self.is_stopping = True
        for process in self.processes.values():
            if process.alive:
                loop.spawn(process.checkpoint_all())
        loop.run_until(loop.now_s + 6.0)
        applied = {number: machine.offset for number, machine in self.machines().items()}
        for process in self.processes.values():
            process.alive = False
        self.eras.append(Era(self.incarnation, self.broker.logs, applied))
        self.processes = {}
        self.is_stopping = False
        self._make_topics()
        self.incarnation = "2"
        self.is_healed = False
        self.note("stopped; the broker's memory is gone: incarnation 2")
        self.start_process(0)
        self.start_process(1)


def _names(share: list[TopicPartition]) -> str:
    return " ".join(f"{topic}[{partition}]" for topic, partition in sorted(share))


@contextmanager
def small_records(max_bytes: int) -> Iterator[None]:
    """Have ingest cut records at that size, so that few rows already make several records."""
    if max_bytes >= 512 * 1024:
        yield
        return
    with patch("streams.ingest.readers.encode_segments", partial(encode_segments, max_bytes=max_bytes)):
        yield


def _raw(table: TableDeclaration, value: bytes) -> Rows:
    return Rows(table, "", pa.RecordBatch.from_arrays([pa.array([value], pa.binary())], schema=_BINARY))


def _event_row(value: bytes) -> Rows:
    return _raw(DRIFT_EVENTS, value)


def _window_row(value: bytes) -> Rows:
    return _raw(WINDOWS if decode_chunk(value).is_marker else EDGES_1M, value)


def quiet() -> None:
    """Silence our logs: thousands of schedules fail on purpose."""
    logging.disable(logging.CRITICAL)
