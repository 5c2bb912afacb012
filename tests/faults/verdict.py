"""Decides at the end of a run, from the outside, whether anything was lost, doubled, invented or miscounted.

Two judges. The replay: `tenant-log`, partition by partition from its start, through a fresh state machine; what it says
must stand on `drift-events`, `graph-windows`, `flows-dead-letter` and in ClickHouse. The independent check
(tests/independent): totals, windows and findings recomputed by SQL from the raw messages of the source topics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.settings import Settings


@dataclass(frozen=True)
class Verdict:
    """What was found. Everything but ``raw_duplicates`` must be 0.

    Attributes:
        lost: expected and nowhere: events (by id) on the topic or in ClickHouse, chunks and rows of windows, dead
            letters, input records that are in no total.
        duplicated_by_id: an id that stands for two contents (event, chunk, dead letter), or twice in ClickHouse.
        raw_duplicates: identical repeats on the topics, as zombies leave them. Allowed, counted.
        unexpected: events, chunks, rows or dead letters that the input does not account for.
        wrong_totals: rows (edge and window, window, finding, edge over all windows) with a number that differs.
        missed_gaps: ranges of source offsets that hold messages, are in no record of a `tenant-log` partition, and that
            no loss mark tells of.
        false_gaps: places where the chain breaks though no message is missing, and windows marked ``loss`` or
            ``incarnation`` without a mark in the log.
        counts: what was looked at: flows, on_time, late, skewed, dead, events, windows, chunks, edge_rows, log_records,
            tail_records (of `tenant-log` that no worker had to apply), incomplete windows by reason.
        by_place: the same counts as above, one by one: place to name to number.
        details: the first differences, in words. notes: how things were compared, what was sampled.
        seconds: how long each phase took.
    """

    lost: int = 0
    duplicated_by_id: int = 0
    raw_duplicates: int = 0
    unexpected: int = 0
    wrong_totals: int = 0
    missed_gaps: int = 0
    false_gaps: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    by_place: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    details: Sequence[str] = ()
    notes: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Say whether nothing was lost, doubled by id, unexpected or wrong."""
        raise NotImplementedError

    @property
    def line(self) -> str:
        """Return the counts as one line."""
        raise NotImplementedError


async def judge(settings: Settings, *, work: Path, sample_tenants: Sequence[str] | None = None) -> Verdict:
    """Judge what stands on the topics and in ClickHouse after a run. No worker may run, and nobody may produce.

    Every record that workers had committed (their group's offset on `tenant-log`) must have come out; what lies behind
    may have. ClickHouse must hold what the sinks had committed. The source topics, `tenant-log` and the results must
    still hold everything from their start: no retention may have struck.

    Args:
        settings: of the workers; ``clickhouse`` is where their sinks wrote (a front, or a chdb folder that no other
            process has open).
        work: folder for scratch data, on a disk with room for a third of the raw input; removed what was made there.
        sample_tenants: compare windows and findings by SQL for these tenants alone; ``None``: for all. Totals per edge,
            dead letters and the conservation of input are always compared for all.
    """
    raise NotImplementedError
