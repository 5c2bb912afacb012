"""A library's line that repeats is written once in a while, with how often it was left out; ours always."""

import io
import logging

import pytest

from deploy import log_repeats
from deploy.log_repeats import EVERY_S, FewRepeats


class Lines:
    """A handler, what it has written, and its clock."""

    def __init__(self) -> None:
        self.now_s = 5.0
        self._out = io.StringIO()
        self.handler = FewRepeats(self._out, lambda: self.now_s)

    @property
    def told(self) -> list[str]:
        """Return the lines that were written."""
        return self._out.getvalue().splitlines()

    def say(self, name: str, text: str, *arguments: object, level: int = logging.ERROR) -> None:
        """Have a logger of this name say it."""
        self.handler.handle(logging.LogRecord(name, level, __file__, 1, text, arguments, None))


def test_the_same_line_of_a_library_is_told_once_in_a_while_with_how_many_were_left_out() -> None:
    lines = Lines()
    for _ in range(40):
        lines.say("aiokafka", "Unable connect to node with id %s", 1)
    lines.say("aiokafka", "Unable connect to node with id %s", 2)
    lines.now_s += EVERY_S
    for _ in range(3):
        lines.say("aiokafka", "Unable connect to node with id %s", 1)
    lines.now_s += EVERY_S
    lines.say("aiokafka", "Unable connect to node with id %s", 2)
    assert lines.told == [
        "Unable connect to node with id 1",
        "Unable connect to node with id 2",
        "Unable connect to node with id 1 (39 more like it since the last)",
        "Unable connect to node with id 2",
    ]


def test_our_own_lines_and_lines_of_another_level_or_logger_all_pass() -> None:
    lines = Lines()
    for name in ("streams.sinks.writer", "streams.sinks.writer", "aiokafka.conn", "aiokafka.consumer"):
        lines.say(name, "no answer")
    lines.say("aiokafka.conn", "no answer", level=logging.WARNING)
    assert lines.told == ["no answer"] * 5


def test_other_handlers_get_the_line_as_it_is() -> None:
    lines = Lines()
    record = logging.LogRecord("aiokafka", logging.ERROR, __file__, 1, "node %s", (7,), None)
    lines.handler.handle(record)
    lines.handler.handle(record)
    lines.now_s += EVERY_S
    lines.handler.handle(record)
    assert lines.told[-1] == "node 7 (1 more like it since the last)"
    assert (record.msg, record.args) == ("node %s", (7,))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_repeats, "MOST_LINES", 2)
    lines = Lines()
    for number in (1, 2, 3, 1, 3):
        lines.say("aiokafka", "node %s", number)
    assert lines.told == ["node 1", "node 2", "node 3", "node 1"]
