"""The watchdog of a stop: when its time begins, how long it is, and how the process ends."""

from typing import Any, ClassVar

import pytest

from deploy import serving
from deploy.serving import EXIT_UNFINISHED, Grace


class FakeTimer:
    """Stands for `threading.Timer`: its time is over when the test says so."""

    made: "ClassVar[list[FakeTimer]]" = []

    def __init__(self, interval_s: float, function: Any) -> None:
        self.interval_s, self.function, self.daemon, self.started = interval_s, function, False, 0
        FakeTimer.made.append(self)

    def start(self) -> None:
        self.started += 1


def test_the_grace_begins_once_lasts_what_the_settings_say_and_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[tuple[int, str]] = []
    monkeypatch.setattr(FakeTimer, "made", [])
    monkeypatch.setattr(serving.threading, "Timer", FakeTimer)
    monkeypatch.setattr(serving, "end_now", lambda code, reason: ended.append((code, reason)))
    grace = Grace(4_000)
    assert FakeTimer.made == []
    grace.begin()
    grace.begin()
    [timer] = FakeTimer.made
    assert (timer.interval_s, timer.daemon, timer.started) == (4.0, True, 1)
    assert ended == []
    timer.function()
    [(code, reason)] = ended
    assert code == EXIT_UNFINISHED
    assert reason.startswith("not finished within 4 s (worker.grace_ms); nothing is lost")
