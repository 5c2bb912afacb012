"""Whatever is replayed, how often, by whom and with which crashes in between: every record counts exactly once."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from models.graph.machine import Machine
from models.graph.output import Output
from models.graph.snapshot import restore, take
from schemas.dead_letter import DeadLetter, Reason
from schemas.ids import stable_hash64
from schemas.settings import FlowTopic
from schemas.tenant_log import ENDED, LaneConfig, LogRecord, Member, Progress, decode_record
from schemas.topics import HEADER_ORIGIN
from streams.dead_letters import decode_dead_letter, encode_dead_letter, merge
from streams.ingest.chain import position_before
from streams.ingest.chunk import chunk_of
from streams.ingest.readers import Encoded, FlowReader, ReplayReader, SourceReader
from streams.ingest.replayed import OriginHeader, encode_origin, origin_of
from streams.result import WHOLE_MESSAGE

TARGETS, SOURCES, REPLAYS = 3, 2, 2
AS_OF_MS = 1_000_000
LANE = LaneConfig("default", mode="replay", window_ms=10_000, members=(Member("flows#1", SOURCES),))
BAD = b'{"src":1}'


@dataclass
class Pipeline:
    """Topics, readers and state machines, without Kafka. ``committed``: next offset by (topic, partition)."""

    rng: np.random.Generator
    messages: dict[tuple[str, int], list[tuple[bytes, list[tuple[str, bytes]]]]] = field(default_factory=dict)
    committed: Counter[tuple[str, int]] = field(default_factory=Counter)
    machines: list[Machine] = field(default_factory=lambda: [Machine() for _ in range(TARGETS)])
    output: Output = field(default_factory=Output)
    dead: dict[str, DeadLetter] = field(default_factory=dict)
    allowed: tuple[str, ...] = ("t0", "t1")

    def reader(self, topic: str) -> SourceReader:
        flows = FlowReader(FlowTopic(tenants=self.allowed), "flows#1", LANE, TARGETS)
        member = Member("flows-replay#1", REPLAYS)
        if topic == "flows":
            return flows
        return ReplayReader(topic, member, lambda: {"default": LANE}, TARGETS, 1 << 20, {"flows": flows})

    def ingest(self, topic: str, partition: int, stop: int, crashes: bool) -> None:
        """Read messages from the committed offset to ``stop``; a crash lets each target have a part, and no commit."""
        start = self.committed[topic, partition]
        some = self.messages[topic, partition][start:stop]
        chunk = chunk_of(topic, partition, start, [v for v, _ in some], headers=[h for _, h in some])
        encoded: Encoded = self.reader(topic).encode(chunk, position_before(start), "w", AS_OF_MS)
        for letter in encoded.dead_letters:
            message = encode_dead_letter(letter)
            kept = decode_dead_letter(message.value, message.headers)
            self.dead[kept.key] = merge(self.dead[kept.key], kept) if kept.key in self.dead else kept
        for target, records in enumerate(encoded.records):
            reached = int(self.rng.integers(0, len(records) + 1)) if crashes else len(records)
            for data in records[:reached]:
                self.apply(target, decode_record(data))
        if not crashes:
            self.committed[topic, partition] = start + len(some)

    def apply(self, target: int, record: LogRecord) -> None:
        self.output.extend(self.machines[target].apply(self.machines[target].offset + 1, record))

    def replay(self, letter: DeadLetter) -> None:
        """Push a dead letter: its own bytes, or its message from the source topic with the record named."""
        partition = stable_hash64(letter.topic, letter.partition) % REPLAYS
        origin, value = origin_of(letter, "1"), letter.payload
        if self.rng.random() < 0.4:
            value = self.messages["flows", letter.partition][letter.offset][0]
            indexes = () if letter.index == WHOLE_MESSAGE else (letter.index,)
            origin = OriginHeader(
                topic="flows", partition=letter.partition, offset=letter.offset, indexes=indexes, incarnation="1"
            )
        self.messages.setdefault(("flows-replay", partition), []).append(
            (value, [(HEADER_ORIGIN, encode_origin(origin))])
        )

    def restart(self) -> None:
        self.machines = [
            restore({name: chunk for name, chunk in take(machine, everything=True) if chunk is not None})
            for machine in self.machines
        ]

    def run_replays(self) -> None:
        for topic, partition in [key for key in self.messages if key[0] == "flows-replay"]:
            self.ingest(topic, partition, len(self.messages[topic, partition]), crashes=False)

    def end(self) -> None:
        """End the input: all windows close."""
        for target in range(TARGETS):
            for partition in range(SOURCES):
                at = position_before(self.committed["flows", partition])
                progress = Progress("flows#1", partition, at, at, (), ENDED)
                self.apply(target, LogRecord("w", AS_OF_MS, (progress,), lane=LANE))


def draw_sources(rng: np.random.Generator, pipeline: Pipeline) -> tuple[Counter[str], set[str]]:
    """Fill the source topics; return how often each edge (of a name of its own) must count, and what stays dead."""
    expected: Counter[str] = Counter()
    hopeless: set[str] = set()
    for partition in range(SOURCES):
        messages: list[tuple[bytes, list[tuple[str, bytes]]]] = []
        for offset in range(int(rng.integers(1, 12))):
            records = []
            size = int(rng.integers(1, 5))
            for index in range(size):
                name = f"d{partition}-{offset}-{index}"
                if rng.random() < 0.2:
                    records.append(BAD)
                    hopeless.add(f"flows:{partition}:{offset}:{index if size > 1 else WHOLE_MESSAGE}")
                    continue
                expected[name] = 1
                tenant = f"t{rng.integers(4)}"
                flow: dict[str, Any] = {"time_ms": int(rng.integers(0, 90_000)), "src": "a", "dst": name}
                records.append(json.dumps({**flow, "tenant": tenant}).encode())
            messages.append((b"[" + b",".join(records) + b"]", []))
        pipeline.messages["flows", partition] = messages
    return expected, hopeless


@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(0, 25))
@settings(max_examples=120, deadline=None)
def test_any_sequence_of_replays_crashes_and_restarts_takes_each_record_once(seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    pipeline = Pipeline(rng)
    expected, hopeless = draw_sources(rng, pipeline)
    for partition in range(SOURCES):
        for crashes in (True, False):
            stop = len(pipeline.messages["flows", partition])
            pipeline.ingest("flows", partition, stop, crashes=crashes)
    first_dead = dict(pipeline.dead)
    assert {letter.reason for letter in first_dead.values()} <= {Reason.MALFORMED, Reason.TENANT_NOT_ALLOWED}
    for _ in range(steps):
        step = rng.random()
        replays = [key for key in pipeline.messages if key[0] == "flows-replay"]
        if step < 0.4 and pipeline.dead:
            keys = sorted(pipeline.dead)
            for key in rng.choice(keys, int(rng.integers(1, len(keys) + 1))).tolist():
                pipeline.replay(pipeline.dead[key])
        elif step < 0.8 and replays:
            topic, partition = replays[int(rng.integers(len(replays)))]
            start, size = pipeline.committed[topic, partition], len(pipeline.messages[topic, partition])
            pipeline.ingest(topic, partition, int(rng.integers(start, size + 1)), crashes=rng.random() < 0.4)
        elif step < 0.9:
            pipeline.restart()
        else:
            pipeline.allowed = ("*",)
    pipeline.allowed = ("*",)
    for letter in list(pipeline.dead.values()):
        for _ in range(2):
            pipeline.replay(letter)
    pipeline.run_replays()
    before = dict(pipeline.output.counts)
    pipeline.end()
    found: Counter[str] = Counter()
    for window in pipeline.output.windows:
        measures = window.edges.measure("flows") + window.edges.measure("late_flows")
        found.update(dict(zip(window.edges.dst, measures.tolist(), strict=True)))
    assert found == expected
    assert set(pipeline.dead) == set(first_dead), "what is still bad is dead by the coordinate that it had"
    assert hopeless <= set(first_dead)
    taken = sum(before.get(name, 0) for name in ("on_time", "late", "skewed"))
    assert taken == len(expected)
    assert before.get("retaken", 0) == len(set(first_dead) - hopeless)
    assert taken - before.get("retaken", 0) + len(first_dead) == len(expected) + len(hopeless)
