"""Lines that libraries log again and again while a server is away: each is written, and then counted for a while."""

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TextIO

EVERY_S = 30.0
MOST_LINES = 1_000
"""Different lines that are remembered."""
_OURS = ("api", "deploy", "models", "schemas", "streams", "drift")


class FewRepeats(logging.StreamHandler[TextIO]):
    """Writes a library's line once in ``EVERY_S``; the next one then says how many were left out.

    Our own lines are all written: who logs them decides how often.

    Args:
        stream: default: standard error. monotonic_s: a clock that never goes back.
    """

    def __init__(self, stream: TextIO | None = None, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream or sys.stderr)
        self._now_s = monotonic_s
        self._written: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it."""
        if record.name.partition(".")[0] in _OURS:
            super().emit(record)
            return
        line = (record.name, record.levelno, record.getMessage())
        now_s = self._now_s()
        written_s, left_out = self._written.get(line, (-EVERY_S, 0))
        if now_s - written_s < EVERY_S:
            self._written[line] = (written_s, left_out + 1)
            return
        self._written[line] = (now_s, 0)
        self._written.move_to_end(line)
        if len(self._written) > MOST_LINES:
            self._written.popitem(last=False)
        if left_out:
            record = logging.makeLogRecord(record.__dict__)  # other handlers get the line as it is
            record.msg, record.args = f"{line[2]} ({left_out} more like it since the last)", None
        super().emit(record)
