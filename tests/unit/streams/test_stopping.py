"""How a worker stops: each step within what is left of the grace, one that fails holding up no other."""

import asyncio

from schemas.settings import Settings, WorkerSettings
from streams.app import Worker
from streams.health import State


class Stopping:
    """Stands for the Faust app, or the producer, of a worker that stops."""

    def __init__(self, error: Exception | None = None, hangs: bool = False) -> None:
        self.error, self.hangs, self.calls = error, hangs, 0

    async def stop(self) -> None:
        self.calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


async def make(app: Stopping, producer: Stopping) -> Worker:
    worker = Worker(Settings(worker=WorkerSettings(grace_ms=1_000)), None)
    await worker._producer.stop()
    worker.standing.app, worker._producer = app, producer  # type: ignore[assignment]
    return worker


async def test_a_worker_that_never_started_stops_at_once() -> None:
    app, producer = Stopping(), Stopping()
    worker = await make(app, producer)
    assert await worker.stop()
    assert (app.calls, producer.calls, worker.standing.state) == (1, 1, State.DRAINING)


async def test_a_step_that_hangs_ends_with_the_grace_and_is_told() -> None:
    app, producer = Stopping(hangs=True), Stopping()
    worker = await make(app, producer)
    async with asyncio.timeout(60):
        assert not await worker.stop()


async def test_a_step_that_fails_holds_up_no_other() -> None:
    app, producer = Stopping(error=RuntimeError("refused")), Stopping()
    worker = await make(app, producer)
    assert not await worker.stop()
    assert producer.calls == 1
