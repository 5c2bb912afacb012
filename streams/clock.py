"""The wall clock: the one place where processing time enters. It triggers work and is stated in the log; no more."""

import time
from typing import Protocol


class Clock(Protocol):
    """Processing time."""

    def now_ms(self) -> int:
        """Return Unix epoch UTC in ms."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """Return Unix epoch UTC in ms."""
        return time.time_ns() // 1_000_000
