"""What a function says of values that come again and again. Pure: it never says anything else."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_REMEMBERED = 200_000
"""Values kept; more distinct ones only make us ask again."""


class Remembered(dict[Key, Value], Generic[Key, Value]):
    """A function as a dictionary that fills itself, and forgets when large."""

    def __init__(self, function: Callable[[Key], Value]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, key: Key) -> Value:
        if len(self) >= _REMEMBERED:
            self.clear()
        found = self[key] = self._function(key)
        return found
