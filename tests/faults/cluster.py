"""Everything a fault run needs, started together and ended whatever happens: broker, ClickHouse, workers, load."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.brokers.kafka import KafkaBroker
from schemas.settings import ClickHouseSettings, Settings
from streams.clickhouse import connect
from streams.migrate import migrate
from tests.faults.clickhouse_front import ClickHouseFront
from tests.faults.observer import Observer
from tests.faults.processes import LoadProcess, Supervisor, WorkerProcess, make_topics, settings_of

LOOK_S = 0.1
HEAP_MB = 768


@dataclass
class Cluster:
    """A running system under test.

    Attributes:
        began_s: when the load began (Unix time).
        tasks: what runs beside the choreography; the first that fails ends the run.
    """

    folder: Path
    settings: Settings
    broker: "KafkaBroker | ForeignBroker"
    front: ClickHouseFront
    workers: list[WorkerProcess]
    supervisor: Supervisor
    observer: Observer
    load: LoadProcess
    environment: Mapping[str, str]
    began_s: float = field(default_factory=time.time)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def until(self, condition: Callable[[], Any], what: str, deadline_s: float) -> float:
        """Poll until ``condition`` holds and return the seconds it took.

        Raises:
            AssertionError: it did not in time, or something beside the choreography failed.
        """
        began = time.monotonic()
        while True:
            met = condition()
            if asyncio.iscoroutine(met):
                met = await met
            if met:
                return time.monotonic() - began
            for task in self.tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    raise AssertionError(f"failed while waiting until {what}") from task.exception()
            if time.monotonic() - began > deadline_s:
                raise AssertionError(f"after {deadline_s:g} s still not: {what}")
            await asyncio.sleep(LOOK_S)

    def new_worker(self) -> WorkerProcess:
        """Add a worker to the group; not started yet."""
        worker = WorkerProcess(f"worker-{len(self.workers)}", self.settings, self.folder, self.environment)
        self.workers.append(worker)
        return worker


@dataclass(frozen=True)
class Size:
    """How large a run is. ``name``: of its group, and prefix of its topics. ``grace_ms``: of workers that stop."""

    workers: int = 3
    partitions: int = 12
    rate: float = 20_000
    edges: int = 50_000
    tenants: int = 40
    seed: int = 1
    name: str = "drift-faults"
    grace_ms: int = 30_000


@dataclass(frozen=True)
class ForeignBroker:
    """A broker that others run: it can be used, not stopped."""

    address: str

    def start(self) -> None:
        """Leave it as it is."""

    def stop(self) -> None:
        """Leave it as it is."""


@asynccontextmanager
async def running_cluster(
    folder: Path,
    size: Size,
    front: ClickHouseFront,
    broker: "KafkaBroker | ForeignBroker",
    environment: Mapping[str, str],
) -> AsyncIterator[Cluster]:
    """Start a cluster under load; it is ready when every partition has reported a new edge.

    Args:
        front, broker: started here, ended here. environment: added to that of workers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers: list[WorkerProcess] = []
    tasks: list[asyncio.Task[None]] = []
    load: LoadProcess | None = None
    try:
        await asyncio.gather(asyncio.to_thread(broker.start), asyncio.to_thread(front.start))
        settings = settings_of(size.name, broker.address, size.partitions, front.settings(), size.grace_ms)
        await asyncio.to_thread(_migrate, settings.clickhouse)
        counts = await make_topics(settings)
        workers += [WorkerProcess(f"worker-{n}", settings, folder, environment) for n in range(size.workers)]
        supervisor, observer = Supervisor(workers), Observer(settings, size.seed, counts)
        options = {"rate": size.rate, "edges": size.edges, "tenants": size.tenants, "seed": size.seed}
        load = LoadProcess(settings, folder, **options)
        cluster = Cluster(
            folder, settings, broker, front, workers, supervisor, observer, load, environment, tasks=tasks
        )
        for worker in workers:
            worker.start()
        tasks += [
            asyncio.create_task(supervisor.watch()),
            asyncio.create_task(observer.follow()),
            asyncio.create_task(observer.sample(workers)),
            asyncio.create_task(load.listen()),
        ]
        yield cluster
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
        for worker in workers:
            worker.thaw()
            worker.kill()
        if load is not None:
            load.kill()
        await asyncio.to_thread(broker.stop)
        await asyncio.to_thread(front.stop)


def _migrate(settings: ClickHouseSettings) -> None:
    client = connect(settings)
    try:
        migrate(client, settings.database, settings.retention_days)
    finally:
        client.close()
