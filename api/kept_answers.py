"""Answers that are not worked out again: of closed windows, which do not change. Per process, in memory, bounded."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

MOST = 256
MOST_EDGES = 2_000_000
"""Of call graphs that are kept: some 50 MB."""
KEPT_S = 600.0
"""Rows of a closed window change only by hand; after so long even that is seen."""


class KeptAnswers:
    """The last answers by question. A question names its tenant and everything that the answer rests on.

    Args:
        monotonic_s: a clock that never goes back.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = monotonic_s
        self._edges = 0
        self._answers: OrderedDict[Hashable, tuple[float, int, Any]] = OrderedDict()

    def get(self, question: Hashable) -> Any:
        """Return the answer, or ``None``."""
        found = self._answers.get(question)
        if found is None:
            return None
        if self._now_s() - found[0] > KEPT_S:
            self._drop(question)
            return None
        self._answers.move_to_end(question)
        return found[2]

    def put(self, question: Hashable, answer: Any, edges: int = 0) -> None:
        """Keep an answer that holds so many edges; those that were not asked for longest go."""
        self._drop(question)
        self._answers[question] = (self._now_s(), edges, answer)
        self._edges += edges
        while len(self._answers) > MOST or self._edges > MOST_EDGES:
            self._drop(next(iter(self._answers)))

    def _drop(self, question: Hashable) -> None:
        found = self._answers.pop(question, None)
        self._edges -= found[1] if found is not None else 0
