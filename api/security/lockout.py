"""Lock-out after failed logins: longer after each further failure, by account and by where it came from. Pure.

An account is never locked for good: that would let anybody lock anybody out. Known and unknown names are treated alike,
so that a lock-out does not tell which exist (NIST SP 800-63B 3.2.2).
"""

from collections import OrderedDict
from dataclasses import dataclass

FREE_TRIES = 5
FIRST_WAIT_S = 1
MAX_WAIT_S = 900
FORGET_AFTER_S = 3_600
REMEMBERED = 100_000
"""Names that are remembered at once; a flood of made-up ones pushes out the oldest."""


@dataclass(slots=True)
class _Failures:
    count: int
    last_s: float
    until_s: float


class Lockout:
    """Failures by whatever names who is trying."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def wait_s(self, name: str, now_s: float) -> float:
        """Return how long this one has to wait before the next try; 0 if not at all."""
        failures = self._failures.get(name)
        if failures is None or now_s - failures.last_s > FORGET_AFTER_S:
            return 0.0
        return max(0.0, failures.until_s - now_s)

    def note_failure(self, name: str, now_s: float) -> None:
        """Count a failed login; from the sixth on each doubles the wait, up to 15 minutes."""
        failures = self._failures.pop(name, None)
        if failures is None or now_s - failures.last_s > FORGET_AFTER_S:
            failures = _Failures(0, now_s, now_s)
        failures.count += 1
        failures.last_s = now_s
        beyond = failures.count - FREE_TRIES
        if beyond > 0:
            failures.until_s = now_s + min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** min(beyond - 1, 20))
        self._failures[name] = failures
        while len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)

    def take_back(self, name: str) -> None:
        """Take back one failure that was none; those before it stay."""
        failures = self._failures.get(name)
        if failures is not None:
            failures.count -= 1
            if failures.count <= FREE_TRIES:
                failures.until_s = failures.last_s
            if failures.count <= 0:
                del self._failures[name]

    def note_success(self, name: str) -> None:
        """Forget the failures of one who got in."""
        self._failures.pop(name, None)
