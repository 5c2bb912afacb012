"""An event loop in virtual time: nothing waits, order follows from the seed alone."""

import asyncio
import contextvars
import heapq
from asyncio import events, tasks
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast


class _Timer:
    """A callback to come; cancelling leaves it in the heap."""

    __slots__ = ("args", "callback", "is_cancelled")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


def _forget(_: Any) -> None:
    """Do not list a task for `asyncio.all_tasks`: nobody asks, and a weak set costs more than our tasks do."""


class VirtualLoop:
    """The part of an event loop that our code and asyncio's own use; it runs callbacks in order, then jumps to a timer.

    Blocking work (`asyncio.to_thread`) runs on the spot. Context variables are not kept apart: nothing here uses them.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._ready: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = 0
        self.errors: list[BaseException] = []

    # -- what asyncio asks of a loop

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> None:
        """Run it next. There is no handle: whatever asyncio itself schedules it never cancels."""
        self._ready.append((callback, args))

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> _Timer:
        timer = _Timer(callback, args)
        self._numbers += 1
        heapq.heappush(self._timers, (self.now_s + delay, self._numbers, timer))
        return timer

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> _Timer:
        return self.call_later(when - self.now_s, callback, *args)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=cast(Any, self))

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=cast(Any, self), **options)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Run it now; `Died` leaves the caller waiting for ever, as it is no more."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Died:
            pass
        except Exception as error:
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None:
            self.errors.append(error)

    # -- driving

    def run_until(self, end_s: float) -> None:
        """Run everything that is due until then."""
        running = events._get_running_loop()
        events._set_running_loop(cast(Any, self))
        known: Any = vars(tasks)["_all_tasks"]
        known.add = _forget
        ready, timers = self._ready, self._timers
        try:
            while True:
                while ready:
                    callback, args = ready.popleft()
                    callback(*args)
                if not timers or timers[0][0] > end_s:
                    break
                when, _, timer = heapq.heappop(timers)
                if not timer.is_cancelled:
                    if when > self.now_s:
                        self.now_s = when
                    timer.callback(*timer.args)
        finally:
            events._set_running_loop(running)
            del known.add
        if end_s != float("inf"):
            self.now_s = max(self.now_s, end_s)

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task from outside the loop."""
        return asyncio.Task(coro, loop=cast(Any, self))


class Died(BaseException):
    """The process that makes this call has been killed."""
