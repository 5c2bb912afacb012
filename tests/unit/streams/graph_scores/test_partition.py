"""Scores of a partition's windows depend on the windows alone: not on cuts, repeats, restarts or other tenants."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.commands.score import _scored
from deploy.model_file import read_model
from models.drift.baseline import WARM_UP
from models.gnn.checkpoint import FORMAT_VERSION
from models.gnn.features import FEATURE_VERSION
from models.gnn.windows import edges_of
from schemas.tables import EDGE_SCORE_MEMORY, EDGE_SCORES
from streams.graph_scores.assembly import LaneKey
from streams.graph_scores.lanes import LaneMemory, Outcome
from streams.graph_scores.model_folder import Found, ModelFolder
from streams.graph_scores.partition import IDLE_STORES, PartitionScores
from streams.graph_scores.rows import memory_message, memory_of, rows_of, score_message
from streams.graph_scores.status import status_of
from tests.graph_scores import estate_windows, numbered, put_model, values_of

WINDOWS = 12
ACME = ("acme", "default")


class Store:
    """Stored memories, as rows go out and come back."""

    def __init__(self) -> None:
        self.rows: dict[LaneKey, tuple[int, int, str]] = {}

    def load(self, lane: LaneKey) -> LaneMemory:
        return memory_of(lane, self.rows[lane]) if lane in self.rows else LaneMemory(lane)

    def keep(self, partition: PartitionScores) -> None:
        for memory in partition.dirty():
            [row] = rows_of(EDGE_SCORE_MEMORY)(memory_message(memory, 0).value).batch.to_pylist()
            start_ms = int(row["window_start"].timestamp() * 1000)
            self.rows[row["tenant"], row["lane"]] = (row["generation"], start_ms, row["memory"])


def partition_of(folder: Path, store: Store | None = None) -> PartitionScores:
    ticks = count()
    return PartitionScores(ModelFolder(folder), (store or Store()).load, lambda: float(next(ticks)))


def rows_of_messages(partition: PartitionScores, messages: Sequence[tuple[int, bytes | None]]) -> list[bytes]:
    """Return the bytes that go to ClickHouse."""
    return [score_message(scored).value for scored in partition.take(messages).scored]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_model(tmp_path / "models", "acme")
    return tmp_path / "models"


@pytest.fixture(scope="module")
def messages() -> list[tuple[int, bytes | None]]:
    """Two tenants' windows, mixed, the other tenant of other traffic."""
    mine, theirs = estate_windows(WINDOWS), estate_windows(WINDOWS, seed=2, tenant="other")
    return numbered(values_of(window for pair in zip(mine, theirs, strict=True) for window in pair))


def test_windows_of_a_tenant_with_a_model_become_rows_without_torch(
    folder: Path, messages: list[tuple[int, bytes | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    work = partition_of(folder).take(messages)
    assert work.outcomes == Counter(
        {Outcome.WARMING_UP: 2 * WARM_UP, Outcome.SCORED: WINDOWS - WARM_UP, Outcome.NO_MODEL: WINDOWS - WARM_UP}
        | {Outcome.REPEATED: 0, Outcome.DAMAGED: 0}
    )
    assert len(work.seconds) == WINDOWS - WARM_UP
    rows = [row for one in work.scored for row in rows_of(EDGE_SCORES)(score_message(one).value).batch.to_pylist()]
    assert {row["tenant"] for row in rows} == {"acme"} and len(rows) == 5 * (WINDOWS - WARM_UP) + 1
    [stranger] = [row for row in rows if row["src"] == "stranger"]
    assert stranger["is_new"] and not any(row["is_new"] for row in rows if row is not stranger)
    assert all(abs(row["combined"] - row["statistical"] - row["graph"]) < 0.01 for row in rows)
    assert {row["model"] for row in rows} == {work.scored[0].model} and len(work.scored[0].model) == 12


def test_the_scores_are_those_of_drift_score(folder: Path, messages: list[tuple[int, bytes | None]]) -> None:
    expected = list(_scored(read_model(folder / "acme.npz"), iter([edges_of(one) for one in estate_windows(WINDOWS)])))
    found = [
        (key[0], key[1], round(float(combined), 3))
        for one in partition_of(folder).take(messages).scored
        for key, combined in zip(one.keys, one.combined, strict=True)
    ]
    assert found == [(row["src"], row["dst"], row["combined"]) for row in expected]


@pytest.fixture(scope="module")
def uncut(
    tmp_path_factory: pytest.TempPathFactory, messages: list[tuple[int, bytes | None]]
) -> tuple[Path, list[bytes]]:
    """A folder of models, and the rows that all messages give at once."""
    folder = tmp_path_factory.mktemp("cut") / "models"
    put_model(folder, "acme")
    return folder, rows_of_messages(partition_of(folder), messages)


@settings(max_examples=50)
@given(st.lists(st.integers(min_value=1, max_value=60), max_size=12))
def test_any_cutting_of_the_messages_gives_the_same_rows(
    uncut: tuple[Path, list[bytes]], messages: list[tuple[int, bytes | None]], cuts: list[int]
) -> None:
    folder, expected = uncut
    cut = partition_of(folder)
    bounds = sorted({0, *(min(one, len(messages)) for one in cuts), len(messages)})
    parts = [messages[a:b] for a, b in pairwise(bounds)]
    assert [one for part in parts for one in rows_of_messages(cut, part)] == expected


@pytest.mark.parametrize("stored_at", [0, 9, 20, 31])
@pytest.mark.parametrize("died_at", [33, 40, 48])
def test_a_restart_anywhere_gives_the_same_rows_again(
    folder: Path, messages: list[tuple[int, bytes | None]], stored_at: int, died_at: int
) -> None:
    expected = rows_of_messages(partition_of(folder), messages)
    store = Store()
    first = partition_of(folder, store)
    rows = rows_of_messages(first, messages[:stored_at])
    store.keep(first)
    committed = first.safe_offset
    rows += rows_of_messages(first, messages[stored_at:died_at])  # written, and never committed
    again = rows_of_messages(partition_of(folder, store), messages[committed:])
    assert set(rows) | set(again) == set(expected)
    assert again[-3:] == expected[-3:]


def test_memories_that_outran_the_commit_repeat_nothing_wrongly(
    folder: Path, messages: list[tuple[int, bytes | None]]
) -> None:
    store = Store()
    first = partition_of(folder, store)
    expected = rows_of_messages(first, messages)
    store.keep(first)  # and the commit fails: the next owner reads all from the start
    again = partition_of(folder, store).take(messages)
    assert again.scored == [] and again.outcomes[Outcome.REPEATED] == 2 * WINDOWS and expected


def test_tenants_do_not_touch_each_other(folder: Path, messages: list[tuple[int, bytes | None]]) -> None:
    alone = partition_of(folder).take(numbered(values_of(estate_windows(WINDOWS))))
    beside = partition_of(folder).take(messages)
    assert [one.combined.tolist() for one in alone.scored] == [one.combined.tolist() for one in beside.scored]
    assert {one.lane for one in beside.scored} == {ACME}


def test_two_tenants_are_scored_each_by_its_own_model(folder: Path, messages: list[tuple[int, bytes | None]]) -> None:
    put_model(folder, "other", seed=8)
    scored = partition_of(folder).take(messages).scored
    models = {one.lane[0]: one.model for one in scored}
    assert models.keys() == {"acme", "other"} and models["acme"] != models["other"]


def damaged(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


Spoil = Callable[[Path], object]
SPOILED: dict[str, tuple[Spoil, str]] = {
    "missing": (Path.unlink, "no model for tenant acme, lane default: train one by `drift train --tenant acme"),
    "damaged": (damaged, "this is no model of `drift train`"),
    "format": (lambda f: put_model(f.parent, "acme", format_version=FORMAT_VERSION + 1), "of format"),
    "features": (lambda f: put_model(f.parent, "acme", feature_version=FEATURE_VERSION + 1), "train it again"),
    "of another": (lambda f: put_model(f.parent, "eve", name="acme.npz"), "was trained on tenant 'eve'"),
    "of another lane": (lambda f: put_model(f.parent, "acme", lane="cloud"), "no model for tenant acme, lane default"),
}


@pytest.mark.parametrize(("spoil", "told"), SPOILED.values(), ids=SPOILED)
def test_without_a_usable_model_windows_pass_and_the_reason_is_shown(
    folder: Path, messages: list[tuple[int, bytes | None]], spoil: Spoil, told: str
) -> None:
    spoil(folder / "acme.npz")
    partition = partition_of(folder)
    work = partition.take(messages)
    assert work.scored == [] and work.outcomes[Outcome.NO_MODEL] == 2 * (WINDOWS - WARM_UP)
    reason = next(text for text in status_of([partition.found]).reasons if "acme" in text)
    assert told in reason and "\n" not in reason


def test_a_model_that_comes_later_finds_the_memory_warm_and_a_new_one_is_taken(
    tmp_path: Path, messages: list[tuple[int, bytes | None]]
) -> None:
    folder = tmp_path / "models"
    partition = partition_of(folder)
    assert partition.take(messages[:24]).scored == []
    file = put_model(folder, "acme")
    later = partition.take(messages[24:36]).scored
    expected = partition_of(folder).take(messages).scored
    assert [one.combined.tolist() for one in later] == [one.combined.tolist() for one in expected[-6:-3]]
    put_model(folder, "acme", seed=9)
    newer = partition.take(messages[36:]).scored
    assert {one.model for one in newer} != {one.model for one in later}
    file.unlink()
    assert status_of([partition.found]).scored == 1  # as of the last window


def test_incomplete_windows_teach_nothing_and_get_no_scores(folder: Path) -> None:
    windows = estate_windows(WINDOWS)
    lossy = estate_windows(WINDOWS, seed=3, incomplete=("loss",))[6]
    plain = partition_of(folder).take(numbered(values_of([*windows[:6], *windows[7:]])))
    work = partition_of(folder).take(numbered(values_of([*windows[:6], lossy, *windows[7:]])))
    assert work.outcomes[Outcome.INCOMPLETE] == 1
    assert [one.combined.tolist() for one in work.scored] == [one.combined.tolist() for one in plain.scored]


def test_another_generation_of_a_replay_begins_anew(folder: Path) -> None:
    first, second = (values_of(estate_windows(8, generation=number)) for number in (1, 2))
    partition = partition_of(folder)
    partition.take(numbered(first))
    work = partition.take(numbered(second, len(first)))
    assert work.outcomes[Outcome.WARMING_UP] == WARM_UP and len(work.scored) == 8 - WARM_UP
    late = partition.take(numbered(first, 2 * len(first)))
    assert late.scored == [] and late.outcomes[Outcome.REPEATED] == 8


def test_memories_of_lanes_that_fell_silent_are_let_go_and_come_back(folder: Path) -> None:
    windows, store = estate_windows(WINDOWS), Store()
    partition = partition_of(folder, store)
    partition.take(numbered(values_of(windows[:8])))
    for _ in range(IDLE_STORES + 1):
        store.keep(partition)
    assert partition.lanes == {} and partition.found == {}
    back = partition.take(numbered(values_of(windows[8:]), 100))
    assert len(back.scored) == 4 and back.scored[0].keys[-1][0] != "" and partition.lanes.keys() == {ACME}


def test_a_status_names_few_lanes_and_counts_the_rest() -> None:
    lanes = {(f"t{n}", "default"): Found(None, f"no model for tenant t{n}") for n in range(9)}
    lanes[("t0", "replay:x")] = Found(None, "no model for a replay")
    status = status_of([lanes], "the broker is away")
    assert (status.scored, status.missing, status.refused) == (0, 10, 0)
    assert status.reasons[0].endswith("not scored: the broker is away")
    assert status.reasons[-1] == "graph model: 6 more lanes without a usable model" and len(status.reasons) == 5
    assert not any("replay" in reason for reason in status.reasons)
