"""Which insert tokens the embedded ClickHouse must forget after a kill."""

import pytest

from streams.deduplication_log import Blocks, tokens_without_rows

LOG = ["1\tday_1_1_0\tday_a", "1\tday_2_2_1\tday_b", "1\tnext_3_3_0\tnext_c"]


def blocks(*names: str) -> list[Blocks]:
    return [Blocks.of(name) for name in names]


def test_a_token_whose_part_is_there_stays() -> None:
    assert tokens_without_rows(LOG, blocks("day_1_1_0", "day_2_2_1", "next_3_3_0")) == set()


def test_a_part_that_was_merged_or_mutated_is_there() -> None:
    assert tokens_without_rows(LOG, blocks("day_1_2_1", "next_3_3_0_7")) == set()


def test_a_token_whose_part_is_not_there_is_forgotten() -> None:
    assert tokens_without_rows(LOG, blocks("day_1_1_0", "next_3_3_0")) == {"day_b"}


def test_a_part_of_another_partition_covers_nothing() -> None:
    assert tokens_without_rows(LOG, blocks("day_1_3_1")) == {"next_c"}


def test_a_token_that_was_dropped_is_not_looked_for_and_one_that_came_again_is() -> None:
    dropped = [*LOG, "2\tnext_3_3_0\tnext_c"]
    assert tokens_without_rows(dropped, blocks("day_1_2_1")) == set()
    assert tokens_without_rows([*dropped, "1\tnext_4_4_0\tnext_c"], blocks("day_1_2_1")) == {"next_c"}


def test_a_line_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError):
        tokens_without_rows(["1\tday_1_1_0"], [])
