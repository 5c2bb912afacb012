"""The plan of a fault run, its population and its sums, without any process."""

from collections import Counter

from schemas.ids import partition_of
from tests.faults import plan as kinds
from tests.faults.load import Ledger
from tests.faults.plan import BESIDE, IN_TURN, make_plan
from tests.faults.population import make_edges, make_probes
from tests.faults.run import wrong_edges


def test_a_plan_has_each_fault_as_often_as_asked_and_follows_from_its_seed() -> None:
    plan = make_plan(seed=4, seconds=1_800, kills=50, each=2)
    assert Counter(plan.in_turn) == Counter({kinds.KILL: 50} | dict.fromkeys(IN_TURN, 2))
    assert Counter(kind for _, kind, _ in plan.beside) == Counter(dict.fromkeys(BESIDE, 2))
    assert plan.beside[-1][0] + plan.beside[-1][2] <= 1_800
    assert make_plan(4, 1_800, 50, 2) == plan != make_plan(5, 1_800, 50, 2)


def test_faults_that_cannot_be_had_are_left_out() -> None:
    plan = make_plan(4, 1_800, 5, 1, without=frozenset({kinds.BROKER_DISK, kinds.HANG}))
    assert kinds.BROKER_DISK not in plan.in_turn
    assert kinds.HANG not in {kind for _, kind, _ in plan.beside}


def test_every_partition_has_a_probe_whose_new_edges_are_new_once() -> None:
    for probe in make_probes(seed=1, partitions=12):
        assert partition_of(probe.tenant, 12) == probe.partition
        assert len({*probe.usual, *probe.unusual}) == len(probe.usual) + len(probe.unusual)
        sources = [edge.src for edge in probe.unusual[:20]]  # a window's worth
        assert max(Counter(sources).values()) == 1


def test_one_tenant_has_half_of_all_edges() -> None:
    sizes = Counter(edge.tenant for edge in make_edges(seed=1, edges=50_000, tenants=40))
    assert sum(sizes.values()) == 50_000 and len(sizes) == 40
    assert max(sizes.values()) >= 25_000 and min(sizes.values()) < 100


def test_every_edge_whose_total_differs_is_counted() -> None:
    edges = [("t", "a", "b", 1), ("t", "a", "c", 1), ("t", "a", "d", 1)]
    ledger = Ledger(edges, [5, 7, 0], [], 3, 0, 0, 0)
    assert wrong_edges(ledger, [[*edges[0], 5], [*edges[1], 7]]) == 0
    assert wrong_edges(ledger, [[*edges[0], 5], [*edges[1], 6]]) == 1
    assert wrong_edges(ledger, [[*edges[0], 5]]) == 1
    assert wrong_edges(ledger, [[*edges[0], 5], [*edges[1], 7], ["t", "x", "y", 1, 1]]) == 1
