"""The windows after a tenant's names changed: what is new only by its name is no news. Pure.

What a rule now names otherwise arrives as edges and services never seen under these names. They are compared by the
names they had: known then is known now. Nothing is told early meanwhile: which names an edge had is only complete when
its window closes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from models.drift.structural import EdgeFacts
from models.graph.admission import is_overflow
from models.graph.naming import Naming
from models.graph.registry import HABIT_COLUMNS, Registry
from schemas.tenant_log import EdgeIdentity

MAX_FORMER = 64
"""Former names of one edge that are kept: the first in order, whichever came first."""

Ends = tuple[str, str]
IntColumn = npt.NDArray[np.int64]


@dataclass(slots=True)
class Settling:
    """One tenant in one lane, from a change of its names until enough windows have closed.

    Attributes:
        until: closed windows of the tenant at which this ends.
        before: how endpoints were named before the change, the first of several.
        renamed: names of then that were given other ones in place, with what they are called now.
        services: numbers of services that carry other traffic than before, or meet other peers.
        former: source and target, as they were named, of edges that are not known yet; by number.
    """

    until: int
    before: Naming
    renamed: dict[str, str] = field(default_factory=dict)
    services: set[int] = field(default_factory=set)
    former: dict[int, set[Ends]] = field(default_factory=dict)

    def note(self, registry: Registry, number: int, given: EdgeIdentity) -> None:
        """Note by which other names an edge was known, as one of its rows gives them."""
        _, src, dst, _, _ = self.before.edge(given)
        self._add(registry, number, (self.renamed.get(src, src), self.renamed.get(dst, dst)))

    def _add(self, registry: Registry, number: int, ends: Ends) -> None:
        now = registry.identities[number]
        if now is None or is_overflow(now) or registry.edge.array["known"][number] or ends == now[1:3]:
            return
        ends_of = self.former.setdefault(number, set())
        ends_of.add(ends)
        if len(ends_of) > MAX_FORMER:
            ends_of.remove(max(ends_of))

    def follow(
        self, registry: Registry, names: Mapping[str, str], services: Mapping[int, int], edges: Mapping[int, int]
    ) -> None:
        """Go on after services got other names: by name, by number, and which edges were merged into which."""
        self.renamed = {then: names.get(now, now) for then, now in self.renamed.items()}
        for then, now in names.items():
            self.renamed.setdefault(then, now)
        self.services = {services.get(service, service) for service in self.services}
        former, self.former = self.former, {}
        for number, ends_of in former.items():
            for src, dst in sorted(ends_of):
                self._add(registry, edges.get(number, number), (names.get(src, src), names.get(dst, dst)))

    def begin_close(self, registry: Registry, present: IntColumn) -> None:
        """Take what a window about to be judged shows under new names for what it was.

        Edges known by a former name become known before anything is judged; services get the habits of what they were
        part of.
        """
        numbers = [number for number in np.intersect1d(present, list(self.former)).tolist() if self.former.get(number)]
        known = [number for number in numbers if self._was_known(registry, number)]
        for number in numbers:
            self._inherit_habits(registry, number)
        registry.learn(np.array(known, dtype=np.int64))
        registry.touch(np.array(numbers, dtype=np.int64))

    def _was_known(self, registry: Registry, number: int) -> bool:
        return any(
            (found := registry.edge_number.get(former)) is not None and bool(registry.edge.array["known"][found])
            for former in self._formers(registry, number)
        )

    def _inherit_habits(self, registry: Registry, number: int) -> None:
        for tenant, *former in self._formers(registry, number):
            for end, name in zip(("src", "dst"), former[:2], strict=True):
                old = registry.service_number.get((registry.tenant_number[tenant], str(name)))
                new = int(registry.edge.array[end][number])
                if old is not None and old != new:
                    for column in HABIT_COLUMNS:
                        values = registry.service.array[column]
                        values[new] = max(values[new], values[old])

    def _formers(self, registry: Registry, number: int) -> list[EdgeIdentity]:
        now = registry.identities[number]
        if now is None:
            return []
        return [(now[0], src, dst, now[3], now[4]) for src, dst in sorted(self.former.get(number, ()))]

    def facts(self, registry: Registry, number: int, facts: EdgeFacts) -> EdgeFacts:
        """Return what a rule may know of an unknown edge, what was known by its former names included."""
        known = registry.service.array["known"]
        for tenant, src, dst, _, _ in self._formers(registry, number):
            owner = registry.tenant_number[tenant]
            source, target = registry.service_number.get((owner, src)), registry.service_number.get((owner, dst))
            facts = replace(
                facts,
                src_known=facts.src_known or (source is not None and bool(known[source])),
                dst_known=facts.dst_known or (target is not None and bool(known[target])),
                pair_known=facts.pair_known
                or (source is not None and target is not None and (source << 32 | target) in registry.known_pairs),
            )
        return facts

    def unsettled(self, registry: Registry) -> IntColumn:
        """Return the services whose traffic, as a whole or by its peers, may be another only by names."""
        ends = {int(registry.edge.array[end][number]) for number in self.former for end in ("src", "dst")}
        return np.array(sorted(self.services | ends), dtype=np.int64)

    def close(self, registry: Registry, closed_windows: int) -> bool:
        """Forget what a closed window has settled; return whether all is."""
        for number in list(self.former):
            if registry.identities[number] is None or registry.edge.array["known"][number]:
                del self.former[number]
        return closed_windows >= self.until
