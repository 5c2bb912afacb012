"""The watchdog of a stop: when its time begins, how long it is, and how the process ends."""

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from deploy import serving
from deploy.serving import EXIT_UNFINISHED, Grace


class FakeTimer:
    """Stands for `threading.Timer`: its time is over when the test says so."""

    def __init__(self, interval_s: float, function: Callable[[], None]) -> None:
        self.interval_s, self.function, self.daemon, self.started = interval_s, function, False, 0

    def start(self) -> None:
        self.started += 1


def test_the_grace_begins_once_lasts_what_the_settings_say_and_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timers: list[FakeTimer] = []
    ended: list[tuple[int, str]] = []

    def make(interval_s: float, function: Callable[[], None]) -> FakeTimer:
        timers.append(FakeTimer(interval_s, function))
        return timers[-1]

    monkeypatch.setattr(threading, "Timer", make)
    monkeypatch.setattr(serving, "end_now", lambda code, reason: ended.append((code, reason)))
    grace = Grace(4_000)
    assert timers == []
    grace.begin()
    grace.begin()
    [timer] = timers
    assert (timer.interval_s, timer.daemon, timer.started) == (4.0, True, 1)
    assert ended == []
    timer.function()
    [(code, reason)] = ended
    assert code == EXIT_UNFINISHED
    assert reason.startswith("not finished within 4 s (worker.grace_ms); nothing is lost")


def test_a_stop_knows_that_its_time_is_over_although_the_timer_has_not_fired(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(serving, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(threading, "Timer", FakeTimer)
    grace = Grace(4_000)
    assert not grace.is_over
    grace.begin()
    now_s = 103.9
    assert not grace.is_over
    now_s = 104.0
    assert grace.is_over


def test_the_end_is_said_once_by_whoever_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(serving, "end_now", lambda _, reason: ended.append(reason))
    grace = Grace(4_000)
    grace.end()
    second = threading.Thread(target=grace.end, daemon=True)
    second.start()
    second.join(0.2)
    assert second.is_alive() and len(ended) == 1
