"""Who talks to whom in fault tests: tenants of very different size, and a probe tenant for every partition. Pure."""

import random
from dataclasses import dataclass

from schemas.ids import partition_of

PROBE_SERVICES = 90
"""Of a probe tenant: 8,010 ordered pairs, each new once; enough for an hour at two a second."""
_LARGEST_SHARE = 0.5


@dataclass(frozen=True)
class Edge:
    """One edge of a tenant, and its flow as JSON up to the event time."""

    tenant: str
    src: str
    dst: str
    port: int

    @property
    def prefix(self) -> str:
        """Return the beginning of the JSON of a flow of this edge; the event time comes next."""
        return (
            f'{{"tenant":"{self.tenant}","src":"{self.src}","dst":"{self.dst}","port":{self.port},'
            '"protocol":"tcp","reporter":"client","time_ms":'
        )


def tenant_sizes(edges: int, tenants: int) -> list[int]:
    """Return how many edges each tenant has: the first half of all, each next one about a tenth less than the last."""
    first = int(edges * _LARGEST_SHARE)
    weights = [0.9**n for n in range(tenants - 1)]
    rest = [max(1, int((edges - first) * weight / sum(weights))) for weight in weights]
    return [edges - sum(rest), *rest]


def make_edges(seed: int, edges: int, tenants: int) -> list[Edge]:
    """Return ``edges`` edges of ``tenants`` tenants, the same for the same seed."""
    rng = random.Random(f"edges {seed}")
    found: list[Edge] = []
    for number, size in enumerate(tenant_sizes(edges, tenants)):
        services = [f"ns{n % 7}/service-{n}" for n in range(max(3, int(size**0.5) * 2))]
        pairs: set[tuple[str, str]] = set()
        while len(pairs) < size:
            src, dst = rng.sample(services, 2)
            pairs.add((src, dst))
        found += [Edge(f"tenant-{number:02d}", src, dst, 8000 + n % 5) for n, (src, dst) in enumerate(sorted(pairs))]
    return found


@dataclass(frozen=True)
class ProbeTenant:
    """A tenant whose flows all go to one partition of `tenant-log`; its new edges tell whether that one is alive.

    Attributes:
        usual: edges that keep its services known.
        unusual: edges no flow has had, in the order in which they are to appear.
    """

    partition: int
    tenant: str
    usual: list[Edge]
    unusual: list[Edge]


def make_probes(seed: int, partitions: int) -> list[ProbeTenant]:
    """Return a probe tenant for each partition of `tenant-log`."""
    names: dict[int, str] = {}
    number = 0
    while len(names) < partitions:
        name = f"probe-{number}"
        names.setdefault(partition_of(name, partitions), name)
        number += 1
    return [_probe(seed, partition, names[partition]) for partition in range(partitions)]


def _probe(seed: int, partition: int, tenant: str) -> ProbeTenant:
    services = [f"probe/service-{n:02d}" for n in range(PROBE_SERVICES)]
    ring = [(n, (n + 1) % PROBE_SERVICES) for n in range(PROBE_SERVICES)]
    # One distance after the other, sources in turn: no source meets many new peers in a window, which were a burst.
    distances = list(range(2, PROBE_SERVICES))
    random.Random(f"probes {seed} {partition}").shuffle(distances)
    fresh = [(n, (n + distance) % PROBE_SERVICES) for distance in distances for n in range(PROBE_SERVICES)]

    def edges(pairs: list[tuple[int, int]]) -> list[Edge]:
        return [Edge(tenant, services[src], services[dst], 7000) for src, dst in pairs]

    return ProbeTenant(partition, tenant, edges(ring), edges(fresh))
