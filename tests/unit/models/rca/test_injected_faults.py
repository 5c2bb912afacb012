"""Faults put into recorded calls are as long as they say, reach all who wait for them, and no others."""

import numpy as np
import pytest

from models.rca.calls import CallTable, parents_of
from tests.bench.root_cause_injected import FAULTS, Injected, added_around, with_fault
from tests.rca_traces import Fault, records_of, traces


def test_what_a_call_adds_reaches_all_calls_around_it() -> None:
    parent = np.array([-1, 0, 1, 0, -1])  # 2 within 1 within 0, 3 within 0, 4 by itself
    added_us = np.array([0.0, 0.0, 7.0, 5.0, 3.0])
    assert added_around(parent, added_us).tolist() == [12.0, 7.0, 0.0, 0.0, 0.0]
    assert added_around(parent, np.zeros(5)).tolist() == [0.0] * 5


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_only_the_service_itself_and_its_own_network_change(fault: Injected) -> None:
    records = records_of(traces(np.random.default_rng(5), 0, 4, Fault()))
    parent, use = parents_of(records), records.start_us >= 120_000_000
    before = CallTable.of(records, parent)
    checkout = records.services.index("checkout")
    faulty = with_fault(records, parent, before.self_us, use, checkout, fault, np.random.default_rng(1))
    after = CallTable.of(faulty, parent)
    own_us, network_us = after.self_us - before.self_us, after.network_us - before.network_us
    touched = use & ((records.dst == checkout) | (records.src == checkout))
    assert np.abs(own_us[~use | (records.dst != checkout)]).max() <= 2  # rounding, of itself and of its two calls
    assert np.abs(network_us[~touched]).max() <= 1
    served = use & (records.dst == checkout)
    if fault.times > 1:
        slow = own_us[served] > 2
        assert 0.5 < slow.mean() < 1.0
        longer = own_us[served][slow] / before.self_us[served][slow]
        assert 0.49 * (fault.times - 1) < longer.min() <= longer.max() < 1.51 * (fault.times - 1)
    else:
        assert (
            500 * fault.wait_ms - 2
            <= network_us[touched].min()
            <= network_us[touched].max()
            < 1_500 * fault.wait_ms + 2
        )
