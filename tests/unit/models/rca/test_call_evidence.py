"""What traces tell: who is slow itself, whose network, who calls otherwise than before."""

from dataclasses import replace

import numpy as np
import pytest

from models.rca.call_mix import mix_shift
from models.rca.call_shifts import time_shifts
from models.rca.calls import CallTable, parents_of
from models.rca.causes import causes_of
from models.rca.error_rank import score_services
from models.rca.evidence import Shift
from models.rca.gather import CallRanges, gather
from models.rca.topology import Topology
from schemas.rca_inputs import CallRecords
from tests.rca_traces import CALLS, OWN_US, USER, Fault, records_of, traces

BEFORE_MINUTES, NOW_MINUTES = 6, 2
BEGIN_US = BEFORE_MINUTES * 60_000_000


def table_of(fault: Fault) -> tuple[CallTable, Topology, CallRanges]:
    rng = np.random.default_rng(11)
    rows = traces(rng, 0, BEFORE_MINUTES, Fault()) + traces(rng, BEGIN_US, NOW_MINUTES, fault)
    table = CallTable.of(records_of(rows))
    names = table.services
    topology = Topology.of([names[n] for n in table.src], [names[n] for n in table.dst])
    now = table.start_us >= BEGIN_US
    return table, topology, CallRanges(table, now, ~now)


def ranking(fault: Fault) -> list[str]:
    _, topology, ranges = table_of(fault)
    kept = score_services(topology, gather(topology, ranges)).kept
    return [topology.services[n] for n in np.argsort(-kept, kind="stable") if kept[n] > 0]


def sentences_of(fault: Fault, service: str) -> list[str]:
    _, topology, ranges = table_of(fault)
    shifts = gather(topology, ranges)
    scores = score_services(topology, shifts)
    causes = causes_of(topology, shifts, scores.seed, scores.kept, {}, windows=12, limit=5)
    return [one.sentence for cause in causes if cause.service == service for one in cause.evidence]


def test_calls_are_put_into_the_calls_they_were_made_within() -> None:
    records = records_of(traces(np.random.default_rng(3), 0, 1, Fault(), a_minute=5))
    for row, parent in enumerate(parents_of(records).tolist()):
        caller = records.services[records.src[row]]
        if caller == USER:
            assert parent == -1
        else:
            assert records.trace[row] == records.trace[parent]
            assert records.dst[parent] == records.src[row]
            assert records.start_us[parent] <= records.start_us[row]


def test_a_call_within_two_of_its_callers_calls_belongs_to_the_one_around_it() -> None:
    # a serves twice in this trace; the second of its calls makes the call of b.
    records = CallRecords(
        services=[USER, "a", "b"],
        operations=["op"],
        start_us=np.array([0, 1_000, 1_200]),
        src=np.array([0, 0, 1]),
        dst=np.array([1, 1, 2]),
        operation=np.zeros(3, dtype=np.int64),
        trace=np.zeros(3, dtype=np.int64),
        server_us=np.array([900, 900, 100]),
        client_us=np.array([900, 900, 120]),
    )
    assert parents_of(records).tolist() == [-1, -1, 1]
    table = CallTable.of(records)
    assert table.self_us.tolist() == [900, 780, 100]
    assert table.network_us.tolist() == [0, 0, 20]
    assert [table.patterns[number] for number in table.pattern] == [(), (2,), ()]


def test_self_time_is_what_a_service_spends_beside_its_calls() -> None:
    table, _, _ = table_of(Fault())
    for service, own_us in OWN_US.items():
        took = table.self_us[table.dst == table.services.index(service)]
        assert np.median(took) == pytest.approx(own_us, rel=0.05)
    root = table.patterns[table.pattern[table.src == table.services.index(USER)][0]]
    assert tuple(table.services[n] for n in root) == CALLS["frontend"]


def test_nothing_is_found_where_nothing_changed() -> None:
    _, topology, ranges = table_of(Fault())
    assert not any(shift.is_evidence.any() for shift in gather(topology, ranges))


def test_a_slow_leaf_is_named_although_all_above_it_are_slow() -> None:
    assert ranking(Fault(busy_us={"payment": 80_000}))[0] == "payment"
    said = sentences_of(Fault(busy_us={"payment": 80_000}), "payment")
    assert said[0].startswith("Of the calls to payment a share of 1 keeps it busy itself")


def test_a_delayed_network_is_the_callees_where_it_alone_is_waited_for() -> None:
    fault = Fault(wait_us={("checkout", "mail"): 50_000})
    assert ranking(fault)[0] == "mail"
    assert (
        "Of the calls from checkout to mail a share of 1 waits longer between the two" in sentences_of(fault, "mail")[0]
    )


def test_a_caller_that_waits_for_all_it_calls_is_the_cause() -> None:
    waits = {("frontend", callee): 30_000 for callee in CALLS["frontend"]}
    fault = Fault(wait_us=waits)
    _, topology, ranges = table_of(fault)
    scores = score_services(topology, gather(topology, ranges))
    frontend = topology.services.index("frontend")
    assert scores.kept[frontend] > scores.seed[frontend]
    assert ranking(fault)[0] == "frontend"
    assert any(said.endswith("point to it.") for said in sentences_of(fault, "frontend"))


def test_an_operation_that_breaks_off_is_named_with_what_it_broke_off_after() -> None:
    fault = Fault(calls=lambda service, trace: ("cart",) if service == "frontend" and trace % 2 else None)
    table, topology, ranges = table_of(fault)
    shift = mix_shift(table, ranges.now, ranges.before, topology)
    frontend = topology.services.index("frontend")
    assert shift.is_evidence.tolist() == [name == "frontend" for name in topology.services]
    assert (shift.observed[frontend], shift.expected[frontend]) == (0.5, 0.0)
    assert shift.excess[frontend] == pytest.approx(60, abs=0.5)
    assert shift.remarks[frontend] == ("frontend/Serve", "ends after cart, without ads")
    assert {topology.services[n] for n in shift.moves.target} == {"cart", "ads"}
    assert ranking(fault)[0] == "frontend"
    said = sentences_of(fault, "frontend")[0]
    assert said.startswith(
        "Of the calls to frontend for frontend/Serve a share of 0.5 ends after cart, without ads, against 0"
    )
    assert any("cart comes into question: what it answers may be why." in said for said in sentences_of(fault, "cart"))


def test_what_three_calls_do_is_weaker_evidence_than_what_thirty_do() -> None:
    fault = Fault(calls=lambda service, trace: ("cart",) if service == "frontend" and trace % 3 else None)
    scores = []
    for calls in (3, 30):
        table, topology, ranges = table_of(fault)
        first = np.flatnonzero(ranges.now & (table.dst == table.services.index("frontend")))[:calls]
        shift = mix_shift(table, np.isin(np.arange(len(table.dst)), first), ranges.before, topology)
        frontend = topology.services.index("frontend")
        assert shift.observed[frontend] == pytest.approx(2 / 3)
        scores.append(float(shift.score[frontend]))
    assert scores[0] < 0.6 * scores[1]


def test_an_operation_that_calls_nothing_any_more() -> None:
    fault = Fault(calls=lambda service, trace: () if service == "checkout" and trace % 3 else None)
    table, topology, ranges = table_of(fault)
    shift = mix_shift(table, ranges.now, ranges.before, topology)
    checkout = topology.services.index("checkout")
    assert shift.remarks[checkout] == ("checkout/Serve", "calls nothing in turn, without payment")
    assert [topology.services[n] for n in shift.moves.target] == ["payment"]


def test_new_operations_and_services_give_no_evidence() -> None:
    rng = np.random.default_rng(2)
    later = [(*row[:3], f"new/{row[3]}", *row[4:]) for row in traces(rng, BEGIN_US, 1, Fault(busy_us={"ads": 90_000}))]
    table = CallTable.of(records_of(traces(rng, 0, 3, Fault()) + later))
    names = table.services
    topology = Topology.of([names[n] for n in table.src], [names[n] for n in table.dst])
    now = table.start_us >= BEGIN_US
    shifts: list[Shift] = [*time_shifts(table, now, ~now, topology), mix_shift(table, now, ~now, topology)]
    assert not any(shift.is_evidence.any() for shift in shifts)


def test_the_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(8)
    rows = traces(rng, 0, 3, Fault()) + traces(rng, BEGIN_US, 1, Fault(busy_us={"cart": 30_000}))
    results = []
    for order in (rows, [rows[n] for n in rng.permutation(len(rows))]):
        table = CallTable.of(records_of(order))
        names = table.services
        topology = Topology.of([names[n] for n in table.src], [names[n] for n in table.dst])
        now = table.start_us >= BEGIN_US
        shifts = gather(topology, CallRanges(table, now, ~now))
        results.append([(shift.signal, np.round(shift.score, 9).tolist()) for shift in shifts])
    assert results[0] == results[1]


def test_columns_of_unlike_lengths_are_refused() -> None:
    records = records_of(traces(np.random.default_rng(1), 0, 1, Fault(), a_minute=2))
    with pytest.raises(ValueError, match="unlike"):
        replace(records, server_us=records.server_us[:-1])
