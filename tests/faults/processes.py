"""The processes of the fault tests: workers and the load, started, killed, frozen and brought back by their own pid."""

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

from aiokafka.admin import NewTopic

from deploy.brokers.process import last_lines
from schemas.settings import (
    ClickHouseSettings,
    FlowTopic,
    KafkaSettings,
    LaneSettings,
    Settings,
    TopicSettings,
    WorkerSettings,
)
from schemas.topics import INTERNAL_AND_PUBLIC
from streams.kafka_clients import make_admin
from streams.topics import ensure_topics
from tests.e2e.pipeline import write_config

ROOT = Path(__file__).resolve().parents[2]
WINDOW_MS, LATENESS_MS, LEARNING_WINDOWS = 10_000, 5_000, 2
SESSION_MS = 6_000
"""The least that a broker allows: how long the partitions of a killed worker stay with the dead."""
LOOK_S = 0.1
_PR_SET_PDEATHSIG = 1
_NO_KAFKA = "drift: no Kafka at "
_READY = b"drift worker: ready\n"
STOP_S = 600.0
"""Ends what hangs: a worker has a grace of its own (``worker.grace_ms``), and says so with its exit code."""


def settings_of(name: str, bootstrap: str, partitions: int, clickhouse: ClickHouseSettings, grace_ms: int) -> Settings:
    """Return the settings that all workers of a run share: short windows, short timeouts, state in Kafka.

    Args:
        name: prefix of topics, and name of the group. grace_ms: of a worker that is told to stop.
    """
    names = {topic.role: f"{name}-{topic.default_name}" for topic in INTERNAL_AND_PUBLIC}
    lane = LaneSettings(
        name="default",
        window_ms=WINDOW_MS,
        lateness_ms=LATENESS_MS,
        idle_ms=3_000,
        detection={"learning_windows": LEARNING_WINDOWS},
    )
    return Settings(
        kafka=KafkaSettings(bootstrap=bootstrap, session_timeout_ms=SESSION_MS, rebalance_timeout_ms=SESSION_MS),
        topics=TopicSettings(names=names, partitions=partitions),
        lanes=(lane,),
        flows=(FlowTopic(topic=f"{name}-flows"),),
        clickhouse=clickhouse,
        worker=WorkerSettings(group=name, checkpoint_every_ms=5_000, grace_ms=grace_ms),
    )


async def make_topics(settings: Settings) -> dict[str, int]:
    """Make the source topic, whose broker says when a record arrived, then ours."""
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        config = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(8 << 20)}
        flows = NewTopic(settings.flows[0].topic, settings.topics.partitions, 1, topic_configs=config)
        await admin.create_topics([flows], timeout_ms=30_000)
    finally:
        await admin.close()
    return await ensure_topics(settings)


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 once it has gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def _end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it has ended, however it did (Linux)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class WorkerProcess:
    """One `drift worker`, known to the brokers by its name.

    Attributes:
        wanted: it should be running; the supervisor starts it again when it has ended.
        killed: we ended it, so that it has ended is no news. starts: how often it was started.
    """

    def __init__(self, name: str, settings: Settings, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.wanted = self.killed = False
        self.starts = 0
        self._said_before = 0
        self.log = folder / f"{name}.log"
        kafka = settings.kafka.model_copy(update={"client_id": name})
        self._config = write_config(settings.model_copy(update={"kafka": kafka}), folder / f"{name}.yaml")
        self._environment = os.environ | {"PYTHONFAULTHANDLER": "1"} | dict(environment)
        self._process: Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Return the pid while it runs, frozen or not."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def code(self) -> int | None:
        """Return how the last process ended; ``None`` while it runs."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start it; does not wait until it is ready."""
        self.wanted, self.killed = True, False
        self.starts += 1
        self._said_before = self.log.stat().st_size if self.log.is_file() else 0
        command = [sys.executable, "-m", "deploy.cli", "--config", str(self._config), "--log-level", "INFO", "worker"]
        with self.log.open("ab") as log:
            self._process = Popen(
                command,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.killed = True
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def freeze(self) -> None:
        """Stop it without a word (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on as if nothing had happened."""
        self._signal(signal.SIGCONT)

    @property
    def is_ready(self) -> bool:
        """Say whether the process that runs has said that it is ready."""
        if self.pid is None:
            return False
        with self.log.open("rb") as log:
            log.seek(self._said_before)
            return _READY in log.read()

    async def until_ready(self, deadline_s: float) -> None:
        """Wait until it is ready, if it is to run: one that is still being started knows of no orderly end."""
        end = time.monotonic() + deadline_s
        while self.wanted and not self.is_ready and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)

    async def stop(self, deadline_s: float = STOP_S) -> int:
        """End it in order, once it is ready, and return its exit code; by force after the deadline (-9)."""
        await self.until_ready(deadline_s)
        self.wanted = False
        self._signal(signal.SIGTERM)
        process = self._process
        if process is None:
            return 0
        end = time.monotonic() + deadline_s
        while process.poll() is None and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
        self.kill()
        return int(process.returncode)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None and self._process is not None:
            self._process.send_signal(number)


@dataclass
class Supervisor:
    """Starts workers again that ended by themselves, as an operator's would, and keeps why they did.

    Attributes:
        ended: why, where they should not have. without_kafka: how often one that was just started found no broker.
    """

    workers: list[WorkerProcess]
    ended: list[str] = field(default_factory=list)
    without_kafka: int = 0

    async def watch(self) -> None:
        """Watch until cancelled."""
        while True:
            for worker in self.workers:
                if worker.wanted and worker.starts and worker.pid is None:
                    self._note(worker)
                    worker.start()
            await asyncio.sleep(LOOK_S)

    def _note(self, worker: WorkerProcess) -> None:
        if worker.killed:
            return
        if last_lines(worker.log, 1).startswith(_NO_KAFKA):
            self.without_kafka += 1  # as it should: it says so in one line and ends
        else:
            self.ended.append(f"{worker.name} ended by itself ({worker.code}): {last_lines(worker.log, 2)}")


class LoadProcess:
    """The generator (tests/faults/load.py) as a process.

    Attributes:
        acknowledged: flows the brokers have acknowledged so far, as it said last.
    """

    def __init__(self, settings: Settings, folder: Path, **options: Any) -> None:
        self.ledger = folder / "ledger.json"
        self.acknowledged = 0
        self.log = folder / "load.log"
        command = [sys.executable, "-m", "tests.faults.load", "--bootstrap", settings.kafka.bootstrap]
        command += ["--topic", settings.flows[0].topic, "--ledger", str(self.ledger)]
        command += ["--log-partitions", str(settings.topics.partitions)]
        for name, value in {"partitions": settings.topics.partitions, **options}.items():
            command += [f"--{name}", str(value)]
        with self.log.open("ab") as log:
            self._process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=log, cwd=ROOT, start_new_session=True)

    def tell(self, **command: Any) -> None:
        """Send it a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    async def listen(self) -> None:
        """Take in what it says until it ends.

        Raises:
            RuntimeError: it ended without having been told to.
        """
        assert self._process.stdout is not None
        while line := await asyncio.to_thread(self._process.stdout.readline):
            self.acknowledged = json.loads(line)["flows"]
        if await asyncio.to_thread(self._process.wait) != 0:
            raise RuntimeError(f"the load ended early: {last_lines(self.log)}")

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
