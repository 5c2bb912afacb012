"""A history that was stored goes on as if it had never stopped, to the bit; what is damaged is refused."""

import numpy as np
import pytest

from models.gnn import features, remembered
from models.gnn.features import GraphHistory
from models.gnn.remembered import decode_memory, encode_memory
from models.gnn.windows import WindowEdges
from schemas.errors import WireFormatError
from tests.gnn_windows import made_windows


def history_after(count: int) -> GraphHistory:
    history = GraphHistory()
    for window in made_windows(count):
        history.take(window)
    return history


@pytest.mark.parametrize("stored_after", [0, 1, 7])
def test_a_stored_history_goes_on_to_the_bit(stored_after: int) -> None:
    windows = made_windows(12)
    plain, resumed = GraphHistory(), GraphHistory()
    for number, window in enumerate(windows):
        if number == stored_after:
            resumed = GraphHistory.resumed(decode_memory(encode_memory(resumed.state())))
        one, other = plain.take(window), resumed.take(window)
        for name in ("nodes", "src", "dst", "edges", "is_new", "deviations"):
            assert np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "deviations"), name
    assert encode_memory(plain.state()) == encode_memory(resumed.state())
    assert plain.edges == resumed.edges and plain.windows == resumed.windows


def test_a_memory_that_is_damaged_or_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_memory(history_after(8).state())
    for spoiled in (b"", data[:-9], data[9:], b"x" * 40):
        with pytest.raises(WireFormatError, match="memory of the graph model"):
            decode_memory(spoiled)
    monkeypatch.setattr(remembered, "MEMORY_VERSION", 2)
    with pytest.raises(WireFormatError, match="version 1, this one reads 2"):
        decode_memory(data)
    monkeypatch.undo()
    monkeypatch.setattr(remembered, "MAX_BYTES", 50)
    with pytest.raises(WireFormatError, match="too large"):
        decode_memory(data)


def test_beyond_the_bound_those_silent_for_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MOST_EDGES", 8)
    windows = made_windows(9)
    history = GraphHistory()
    for number, window in enumerate(windows):
        strangers = [(f"stranger-{number}", f"s{n}", 80, 6) for n in range(2)]
        calls = np.append(window.calls, [1, 1])
        signals = np.concatenate([window.signals, window.signals[:2]])
        history.take(WindowEdges(window.start_ms, [*window.keys, *strangers], calls, signals))
        assert len(history.edges) <= 8
        assert set(window.keys) <= history.edges and set(strangers) <= history.edges


def test_more_edges_in_one_window_than_the_bound_stay_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MOST_EDGES", 3)
    assert len(history_after(4).edges) == 5
