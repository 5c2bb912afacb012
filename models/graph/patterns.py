"""Texts with ``*`` in them: which match, and which of many is the most exact. Pure.

``*`` stands for any text, an empty one too. No pattern and no text make matching slow: rules come from outside.
"""

from collections.abc import Mapping
from typing import Generic, TypeVar

from schemas.inventory import ANY

Value = TypeVar("Value")


def matches(pattern: str, text: str) -> bool:
    """Say whether a text is one of those that a pattern stands for.

    >>> matches("prod/cart-*", "prod/cart-7x"), matches("*cart*", "prod/cart"), matches("a*b*c", "acb")
    (True, True, False)
    """
    first, *middle = pattern.split(ANY)
    if not middle:
        return pattern == text
    last = middle.pop()
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    # The leftmost place for each part leaves most for those behind it.
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def exactness(pattern: str) -> int:
    """Return how many characters a pattern fixes."""
    return len(pattern) - pattern.count(ANY)


class PatternTable(Generic[Value]):
    """Values by pattern; the most exact pattern that matches is found, of two alike the first in order of text.

    Args:
        patterns: each pattern's value. The table does not change.
    """

    def __init__(self, patterns: Mapping[str, Value]) -> None:
        self._exact = {pattern: value for pattern, value in patterns.items() if ANY not in pattern}
        by_start: dict[str, list[str]] = {}
        for pattern in patterns.keys() - self._exact.keys():
            by_start.setdefault(pattern[: pattern.index(ANY)], []).append(pattern)
        self._by_start = by_start
        self._lengths = sorted(set(map(len, by_start)))
        self._values = dict(patterns)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, pattern: str) -> Value | None:
        """Return the value of exactly this pattern."""
        return self._values.get(pattern)

    def items(self) -> list[tuple[str, Value]]:
        """Return all patterns with their values."""
        return list(self._values.items())

    def find(self, text: str) -> tuple[str, Value] | None:
        """Return the most exact pattern that a text matches, with its value."""
        if text in self._exact:
            return text, self._exact[text]
        best: str | None = None
        for length in self._lengths:
            for pattern in self._by_start.get(text[:length], ()) if length <= len(text) else ():
                if (best is None or _order(pattern) < _order(best)) and matches(pattern, text):
                    best = pattern
        return None if best is None else (best, self._values[best])


def _order(pattern: str) -> tuple[int, str]:
    return -exactness(pattern), pattern
