"""Two versions of the worker side by side in one group, under load: nothing lost, nothing doubled, totals equal.

    python -m tests.faults.versions [--older COMMIT] [--seconds N] [--partitions N] [--rate N] [--json]

The older version runs from a copy of its tree (`git archive`), in the same virtual environment. Workers of both are
added, stopped and killed, so that partitions and their states go back and forth. Then `tenant-log` is replayed through
this tree's state machine: what stands on `drift-events` and `graph-windows` must be just what it says.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from deploy.brokers.kafka import KafkaBroker
from deploy.brokers.process import last_lines
from models.graph.machine import Machine
from schemas.drift import DriftEvent
from schemas.graph import GraphChunk, chunk_window, decode_chunk
from schemas.ocsf import decode_event
from schemas.settings import FlowTopic, KafkaSettings, LaneSettings, Settings, TopicSettings, WorkerSettings
from schemas.tenant_log import decode_record
from streams.kafka_clients import make_consumer
from tests.e2e.pipeline import GRACE_MS, write_config
from tests.faults.load import read_ledger
from tests.faults.observer import Observer
from tests.faults.processes import LoadProcess, make_topics

OLDER = "3db5176"
"""What version N is today: the last commit before the fault tests."""
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "deploy", "models", "schemas", "streams")
LOOK_S = 0.2
STEP_DEADLINE_S = 900.0
WINDOW_MS, LATENESS_MS, LEARNING_WINDOWS = 5_000, 2_000, 2
CHECKPOINT_MS = 1_500


class NoOlderVersion(Exception):
    """The older tree cannot be had here; the text says why."""


def older_tree(commit: str, folder: Path) -> Path:
    """Write the tree of a commit into a folder and return it.

    Raises:
        NoOlderVersion: no git, no repository, or not that commit.
    """
    try:
        command = ["git", "-C", str(ROOT), "archive", commit, "--", *PACKAGES]
        done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise NoOlderVersion("git is not on the PATH") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise NoOlderVersion(f"commit {commit} is not in this checkout: {''.join(said)}") from error
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    _check_imports(folder)
    return folder


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def _check_imports(tree: Path) -> None:
    """Make sure that a process started there runs the code that lies there, not the installed one."""
    script = f"import {', '.join(PACKAGES)}; print(*(m.__file__ for m in ({', '.join(PACKAGES)})), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tree, env=_environment(tree), capture_output=True, text=True, check=True
    )
    for line in done.stdout.split():
        if not Path(line).is_relative_to(tree):
            raise NoOlderVersion(f"the older worker would import {line}, not its own tree")


class Worker:
    """A `drift worker` of one of the versions."""

    def __init__(self, name: str, tree: Path, settings: Settings, folder: Path) -> None:
        self.name = name
        self.tree = tree
        self.log = folder / f"{name}.log"
        kafka = settings.kafka.model_copy(update={"client_id": name})
        self._config = write_config(settings.model_copy(update={"kafka": kafka}), folder / f"{name}.yaml")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Say whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; does not wait until it is ready."""
        command = [sys.executable, "-m", "deploy.cli", "--config", str(self._config), "--log-level", "INFO"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "worker", "--no-sinks"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.tree,
                env=_environment(self.tree),
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def stop(self) -> int:
        """End it in order and return its exit code; by force after some minutes."""
        process = self._process
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STEP_DEADLINE_S
        while process.poll() is None and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
        self.kill()
        return int(process.returncode)


@dataclass
class Verdict:
    """What was found; all but ``raw_duplicates`` of the first block must be 0.

    Attributes:
        lost: expected up to the committed offsets and on no topic (events, window chunks). unexpected: the other way
            round. duplicated: ids that stand for two contents. wrong_totals: flows that no state has counted, or twice.
        handovers: partitions whose owner after a step was of the other version than before.
    """

    lost: int = 0
    unexpected: int = 0
    duplicated: int = 0
    wrong_totals: int = 0
    raw_duplicates: int = 0
    events: int = 0
    chunks: int = 0
    flows: int = 0
    log_records: int = 0
    handovers: int = 0
    kills: int = 0
    steps: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Say whether all that must be 0 is."""
        return not (self.lost or self.unexpected or self.duplicated or self.wrong_totals)

    @property
    def line(self) -> str:
        """Return it as one line."""
        return (
            f"lost {self.lost}, duplicated by id {self.duplicated}, unexpected {self.unexpected}, "
            f"wrong totals {self.wrong_totals}, raw duplicates {self.raw_duplicates}; {self.events} events, "
            f"{self.chunks} window chunks, {self.flows} flows, {self.log_records} log records; "
            f"{self.handovers} handovers between versions, {self.kills} kills"
        )


def settings_of(bootstrap: str, name: str, partitions: int) -> Settings:
    """Return settings that both versions understand."""
    lane = LaneSettings(
        name="default",
        window_ms=WINDOW_MS,
        lateness_ms=LATENESS_MS,
        idle_ms=3_000,
        detection={"learning_windows": LEARNING_WINDOWS},
    )
    names = {role: f"{name}-{role}" for role in ("tenant_log", "graph_windows", "drift_events", "drift_controls")}
    names |= {role: f"{name}-{role}" for role in ("state", "dead_letter", "replay")}
    return Settings(
        kafka=KafkaSettings(bootstrap=bootstrap, session_timeout_ms=6_000, rebalance_timeout_ms=6_000),
        topics=TopicSettings(partitions=partitions, names=names),
        lanes=(lane,),
        flows=(FlowTopic(topic=f"{name}-flows"),),
        worker=WorkerSettings(group=name, checkpoint_every_ms=CHECKPOINT_MS, grace_ms=GRACE_MS),
    )


class Choreography:
    """Adds, stops and kills workers of both versions, and waits each time until the group has settled.

    A step is over when the workers that should run own all partitions of `tenant-log`, and each partition's committed
    offset has moved since: so every new owner has restored a state and stored one.
    """

    def __init__(self, settings: Settings, counts: dict[str, int], workers: Sequence[Worker], verdict: Verdict) -> None:
        self._settings = settings
        self._observer = Observer(settings, 1, counts)
        self._workers = workers
        self._verdict = verdict
        self._owners: dict[int, str] = {}

    async def settle(self, step: str) -> None:
        """Wait until the group has settled after a step.

        Raises:
            AssertionError: it did not, or a worker that should run has ended.
        """
        running = {worker.name for worker in self._workers if worker.is_running}
        topic = self._settings.topics.name("tenant_log")
        places = [TopicPartition(topic, number) for number in range(self._settings.topics.partitions)]
        began_s = time.monotonic()
        committed: dict[TopicPartition, int] | None = None
        owners: dict[int, str] = {}
        while time.monotonic() - began_s < STEP_DEADLINE_S:
            await asyncio.sleep(LOOK_S)
            for worker in self._workers:
                if worker.name in running and not worker.is_running:
                    raise AssertionError(f"after {step!r} {worker.name} ended: {last_lines(worker.log, 4)}")
            try:
                found = await self._observer.owners()
                offsets = await self._observer.committed()
            except KafkaError:
                continue  # there is no group before its first member
            now = {number: name for name, numbers in found.items() for number in numbers}
            if set(found) != running or set(now) != set(range(len(places))) or now != owners:
                owners, committed = now, None
                continue
            if committed is None:
                committed = offsets
            if all(offsets.get(tp, 0) > committed.get(tp, 0) for tp in places):
                break
        else:
            raise AssertionError(f"after {step!r} the group has not settled in {STEP_DEADLINE_S:g} s: {owners}")
        versions = {worker.name: worker.tree for worker in self._workers}
        before = {number: versions[name] for number, name in self._owners.items()}
        self._verdict.handovers += sum(before.get(n, versions[name]) != versions[name] for n, name in owners.items())
        self._owners = owners
        self._verdict.steps.append(f"{step}: {time.monotonic() - began_s:.1f} s")

    async def run(self, seconds: float, seed: int) -> None:
        """Go through all handovers once, then at random until the time is over; the newer version alone remains."""
        older, newer, third = self._workers
        began_s = time.monotonic()
        older.start()
        await self.settle("older alone")
        newer.start()
        await self.settle("newer added")
        self._kill(older)
        await self.settle("older killed: newer reads its states")
        older.start()
        await self.settle("older back")
        await self._stop(newer)
        await self.settle("newer stopped: older reads its states")
        newer.start()
        await self.settle("newer back")
        rng = random.Random(seed)
        while time.monotonic() - began_s < seconds:
            worker = rng.choice(self._workers)
            if not worker.is_running:
                worker.start()
                step = f"{worker.name} added"
            elif sum(other.is_running for other in self._workers) < 2:
                continue
            elif rng.random() < 0.6:
                self._kill(worker)
                step = f"{worker.name} killed"
            else:
                await self._stop(worker)
                step = f"{worker.name} stopped"
            await self.settle(step)
        for worker in (newer, third):
            if not worker.is_running:
                worker.start()
        if older.is_running:
            await self._stop(older)
        await self.settle("newer alone")

    def _kill(self, worker: Worker) -> None:
        worker.kill()
        self._verdict.kills += 1

    async def _stop(self, worker: Worker) -> None:
        code = await worker.stop()
        if code != 0:
            raise AssertionError(f"{worker.name} ended with {code} when asked to stop: {last_lines(worker.log, 4)}")

    async def drain(self) -> None:
        """Wait until the source topic is read to its end, and everything it brought about is applied."""
        source, log = self._settings.flows[0].topic, self._settings.topics.name("tenant_log")
        began_s = time.monotonic()
        ends: dict[TopicPartition, int] | None = None
        while time.monotonic() - began_s < STEP_DEADLINE_S:
            await asyncio.sleep(LOOK_S)
            committed = await self._observer.committed()
            if ends is None:
                lag = await self._observer.measure_lag()
                if lag[source] == 0:
                    ends = await ends_of(self._settings, log)
            elif all(committed.get(tp, 0) >= end for tp, end in ends.items()):
                return
        raise AssertionError("the workers have not come to the end of the input")

    async def committed(self) -> dict[int, int]:
        """Return the committed offset of each partition of `tenant-log`."""
        topic = self._settings.topics.name("tenant_log")
        return {tp.partition: offset for tp, offset in (await self._observer.committed()).items() if tp.topic == topic}


async def ends_of(settings: Settings, topic: str) -> dict[TopicPartition, int]:
    """Return the ends of a topic that has our partition count."""
    consumer = make_consumer(settings.kafka)
    await consumer.start()
    try:
        return dict(await consumer.end_offsets([TopicPartition(topic, n) for n in range(settings.topics.partitions)]))
    finally:
        await consumer.stop()


async def read_topic(settings: Settings, role: str) -> AsyncIterator[Any]:
    """Yield every record of one of our topics, each partition in order."""
    topic = settings.topics.name(role)
    ends = {tp: end for tp, end in (await ends_of(settings, topic)).items() if end}
    consumer = make_consumer(settings.kafka)
    await consumer.start()
    try:
        for where, end in sorted(ends.items()):
            consumer.assign([where])
            consumer.seek(where, 0)
            while await consumer.position(where) < end:
                for record in (await consumer.getmany(where, timeout_ms=200)).get(where, []):
                    if record.offset < end:
                        yield record
    finally:
        await consumer.stop()


ChunkId = tuple[str, str, int, int, int]


def _id_of(chunk: GraphChunk) -> ChunkId:
    return chunk.tenant, chunk.lane, chunk.generation, chunk.start_ms, chunk.shard


async def judge(settings: Settings, committed: dict[int, int], acknowledged: int, verdict: Verdict) -> None:
    """Replay `tenant-log` through this tree's state machine and compare; no worker may run any more."""
    machines: dict[int, Machine] = {}
    must: tuple[dict[str, DriftEvent], dict[ChunkId, GraphChunk]] = ({}, {})
    may: tuple[dict[str, DriftEvent], dict[ChunkId, GraphChunk]] = ({}, {})
    counts: Counter[str] = Counter()
    async for record in read_topic(settings, "tenant_log"):
        machine = machines.setdefault(record.partition, Machine())
        output = machine.apply(record.offset, decode_record(record.value))
        verdict.log_records += 1
        counts.update(output.counts)
        events, chunks = must if record.offset < committed.get(record.partition, 0) else may
        events.update((event.event_id, event) for event in output.events)
        chunks.update((_id_of(chunk), chunk) for window in output.windows for chunk in chunk_window(window))
    found_events: dict[str, DriftEvent] = {}
    async for record in read_topic(settings, "drift_events"):
        event = decode_event(record.value)
        verdict.raw_duplicates += event.event_id in found_events
        if found_events.setdefault(event.event_id, event) != event:
            _note(verdict, "duplicated", f"two contents of event {event.event_id}")
    found_chunks: dict[ChunkId, GraphChunk] = {}
    async for record in read_topic(settings, "graph_windows"):
        chunk = decode_chunk(record.value)
        if found_chunks.setdefault(_id_of(chunk), chunk) != chunk:
            _note(verdict, "duplicated", f"two contents of chunk {_id_of(chunk)}")
    _compare(verdict, "event", must[0], may[0], found_events)
    _compare(verdict, "chunk", must[1], may[1], found_chunks)
    verdict.events, verdict.chunks = len(found_events), len(found_chunks)
    verdict.flows = sum(counts[outcome] for outcome in ("on_time", "late", "skewed"))
    if verdict.flows != acknowledged:
        _note(verdict, "wrong_totals", f"{acknowledged} flows were acknowledged, {verdict.flows} counted", 1)


def _compare(verdict: Verdict, what: str, must: dict[Any, Any], may: dict[Any, Any], found: dict[Any, Any]) -> None:
    for key in must.keys() - found.keys():
        _note(verdict, "lost", f"{what} {key} is expected and was not published: {must[key]}")
    for key, value in found.items():
        if key not in must and key not in may:
            _note(verdict, "unexpected", f"{what} {key} follows from no record: {value}")
        elif value != must.get(key, may.get(key)):
            _note(verdict, "unexpected", f"{what} {key} has another content: {value}, not {must.get(key)}")


def _note(verdict: Verdict, name: str, text: str, count: int = 1) -> None:
    setattr(verdict, name, getattr(verdict, name) + count)
    if len(verdict.details) < 20:
        verdict.details.append(text[:600])


@asynccontextmanager
async def _loaded(settings: Settings, folder: Path, rate: float, seed: int) -> AsyncIterator[LoadProcess]:
    load = LoadProcess(settings, folder, rate=rate, edges=4_000, tenants=12, seed=seed)
    listening = asyncio.create_task(load.listen())
    try:
        yield load
        await listening
    finally:
        listening.cancel()
        load.kill()


async def run(
    bootstrap: str,
    older: Path,
    folder: Path,
    *,
    seconds: float,
    partitions: int = 6,
    rate: float = 3_000,
    seed: int = 1,
) -> Verdict:
    """Run one older and two newer workers side by side for a while, and judge.

    Raises:
        AssertionError: the group did not settle, or a worker ended by itself.
    """
    verdict = Verdict()
    settings = settings_of(bootstrap, f"versions-{os.getpid()}-{seed}", partitions)
    counts = await make_topics(settings)
    workers = [
        Worker("older", older, settings, folder),
        Worker("newer", ROOT, settings, folder),
        Worker("newer-2", ROOT, settings, folder),
    ]
    choreography = Choreography(settings, counts, workers, verdict)
    try:
        async with _loaded(settings, folder, rate, seed) as load:
            await choreography.run(seconds, seed)
            load.tell(do="stop")
        await choreography.drain()
        for worker in workers:
            if worker.is_running and await worker.stop() != 0:
                raise AssertionError(f"{worker.name} did not stop in order: {last_lines(worker.log, 4)}")
        acknowledged = sum(read_ledger(load.ledger).flows)
        await judge(settings, await choreography.committed(), acknowledged, verdict)
        return verdict
    finally:
        for worker in workers:
            worker.kill()


def main(arguments: Sequence[str] | None = None) -> Verdict:
    """Read the command line, run on an Apache Kafka of our own, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.versions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--older", default=OLDER, help="commit of the older version (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--partitions", type=int, default=6)
    parser.add_argument("--rate", type=float, default=3_000, help="flows a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    cache = Path(tempfile.gettempdir()) / "drift-kafka-classpath"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            older = older_tree(options.older, folder / "older")
        except NoOlderVersion as reason:
            raise SystemExit(f"nothing to compare with: {reason}") from None
        with KafkaBroker(folder / "kafka", cache=cache) as broker:
            verdict = asyncio.run(
                run(
                    broker.address,
                    older,
                    folder,
                    seconds=options.seconds,
                    partitions=options.partitions,
                    rate=options.rate,
                    seed=options.seed,
                )
            )
    if options.json:
        print(json.dumps({name: getattr(verdict, name) for name in Verdict.__dataclass_fields__}))
    else:
        print(*verdict.steps, verdict.line, *verdict.details, sep="\n")
    return verdict


if __name__ == "__main__":
    sys.exit(0 if main().is_clean else 1)
