"""Pairs and services of a lane's edges that are not known yet: the window that showed them first is still open. Pure.

Derived from the registry's columns, so no state holds it. Edges from outside are left out: a scan's are forgotten when
their window closes, so they say nothing before.
"""

from collections.abc import Iterable
from typing import Self


class Unsettled:
    """How many unknown edges each pair and each service has.

    Attributes:
        pairs: edges by pair, packed as registry.pair_of packs it. services: edges by the number of a service.
        vouched: pairs that another lane had when this one saw them first.
    """

    def __init__(self) -> None:
        self.pairs: dict[int, int] = {}
        self.services: dict[int, int] = {}
        self.vouched: set[int] = set()

    @classmethod
    def of(cls, edges: Iterable[tuple[int, int, bool]]) -> Self:
        """Put it together from (src, dst, whether its pair is vouched for) of every unknown edge."""
        found = cls()
        for src, dst, is_vouched in edges:
            found.add(src, dst)
            if is_vouched:
                found.vouched.add(src << 32 | dst)
        return found

    def add(self, src: int, dst: int) -> None:
        """Count a new edge."""
        pair = src << 32 | dst
        self.pairs[pair] = self.pairs.get(pair, 0) + 1
        for service in {src, dst}:
            self.services[service] = self.services.get(service, 0) + 1

    def take(self, src: int, dst: int) -> None:
        """Count an edge no more: it is known from now on, or gone."""
        pair = src << 32 | dst
        if _take_one(self.pairs, pair):
            self.vouched.discard(pair)
        for service in {src, dst}:
            _take_one(self.services, service)


def _take_one(counts: dict[int, int], key: int) -> bool:
    """Lower a count; return whether it was the last."""
    left = counts[key] - 1
    if left:
        counts[key] = left
        return False
    del counts[key]
    return True
