"""How much fetched data may wait for agents. Asked by the consumer thread, given back by any thread."""

from collections import defaultdict, deque
from collections.abc import Callable, Hashable


class Lease:
    """A chunk's share of the budget, given back when the agent asks for the next chunk or nobody holds this one."""

    __slots__ = ("_budget", "_key", "_size_bytes")

    def __init__(self, budget: "Budget", key: Hashable, size_bytes: int) -> None:
        self._budget: Budget | None = budget
        self._key = key
        self._size_bytes = size_bytes

    def release(self) -> None:
        """Give the share back; again is harmless."""
        budget, self._budget = self._budget, None
        if budget is not None:
            budget.give_back(self._key, self._size_bytes)

    def __del__(self) -> None:
        self.release()


class Budget:
    """Bytes and chunks lent to agents.

    A partition with nothing lent is always admitted, so no partition starves and nothing can deadlock: at most
    ``max_bytes`` and one chunk per partition wait. Only the consumer thread calls ``admits`` and ``lend``; shares come
    back through a deque, whose ends are atomic, because a lease may die inside a garbage collection, where no lock
    may be taken.
    """

    def __init__(self, max_bytes: int, max_chunks_per_partition: int, on_release: Callable[[], None]) -> None:
        self._max_bytes = max_bytes
        self._max_chunks = max_chunks_per_partition
        self._on_release = on_release
        self._returned: deque[tuple[Hashable, int]] = deque()
        self._chunks: defaultdict[Hashable, int] = defaultdict(int)
        self._lent_bytes = 0
        self._refused = False

    @property
    def lent_bytes(self) -> int:
        """Bytes that wait for agents. Any thread; about, while the consumer thread counts."""
        return self._lent_bytes - sum(size_bytes for _, size_bytes in self._returned.copy())

    def admits(self, key: Hashable) -> bool:
        """Whether another chunk of this partition may be handed out; after a refusal, a release wakes the thread."""
        self._refused, before = True, self._refused  # set first: a release in between is then either seen or wakes
        self._settle()
        chunks = self._chunks[key]
        if chunks == 0 or (chunks < self._max_chunks and self._lent_bytes < self._max_bytes):
            self._refused = before
            return True
        return False

    def lend(self, key: Hashable, size_bytes: int) -> Lease:
        """Count a chunk against the budget."""
        self._chunks[key] += 1
        self._lent_bytes += size_bytes
        return Lease(self, key, size_bytes)

    def give_back(self, key: Hashable, size_bytes: int) -> None:
        """Return a share. Any thread."""
        self._returned.append((key, size_bytes))
        if self._refused:
            self._refused = False
            self._on_release()

    def _settle(self) -> None:
        while self._returned:
            key, size_bytes = self._returned.popleft()
            self._chunks[key] -= 1
            self._lent_bytes -= size_bytes
