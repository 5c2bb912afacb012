"""Mends the embedded ClickHouse's memory of insert tokens after a kill, so that a repeated insert is not dropped.

ClickHouse notes an insert's token in ``deduplication_logs/`` of the table *before* it puts the part in its place
(MergeTreeSink::commitPart). A process killed in between leaves a token without rows: the repeat that should mend it is
taken for a duplicate, and the rows are lost. So, before the first insert of a process, tokens whose part is not there
are forgotten.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from clickhouse_connect.driver import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

logger = logging.getLogger(__name__)

_ADDED = "1"
_FOLDER = "deduplication_logs"
_TABLES = """
SELECT database, name, data_paths FROM system.tables WHERE engine LIKE '%MergeTree' AND database != 'system'
"""


class Blocks(NamedTuple):
    """What a part holds: the blocks first..last of a partition; a merged part covers those it was made of."""

    partition: str
    first: int
    last: int

    @classmethod
    def of(cls, part: str) -> "Blocks":
        """Read a part's name, ``partition_first_last_level[_mutation]``; ValueError if it is none."""
        partition, first, last, *_ = part.split("_")
        return cls(partition, int(first), int(last))


def tokens_without_rows(lines: Iterable[str], active: Iterable[Blocks]) -> set[str]:
    """Return the block ids that the log would take for a repeat although no active part has their rows.

    Args:
        lines: of all log files in order: operation (1: added, else dropped), part, block id; between tabs.

    Raises:
        ValueError: a line of another format.
    """
    standing: dict[str, Blocks] = {}
    for line in lines:
        operation, part, block_id = line.split("\t")
        if operation == _ADDED:
            standing[block_id] = Blocks.of(part)
        else:
            standing.pop(block_id, None)
    by_partition: dict[str, list[Blocks]] = {}
    for blocks in active:
        by_partition.setdefault(blocks.partition, []).append(blocks)
    return {
        block_id
        for block_id, blocks in standing.items()
        if not any(
            part.first <= blocks.first and blocks.last <= part.last for part in by_partition.get(blocks.partition, ())
        )
    }


def _files(table: Path) -> list[Path]:
    return sorted((table / _FOLDER).glob("deduplication_log_*.txt"), key=lambda path: int(path.stem.split("_")[-1]))


def _without(path: Path, block_ids: set[str]) -> None:
    """Write a log file again without the lines of these blocks; whole or not at all."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.rstrip("\n").split("\t")[-1] not in block_ids]
    if len(kept) == len(lines):
        return
    new = path.parent.parent / f"tmp_{path.name}"  # not beside it: the engine reads every file of that folder
    new.write_text("".join(kept), encoding="utf-8")
    new.replace(path)


def forget_tokens_without_rows(client: Client) -> int:
    """Go through all tables of an embedded engine in which nobody inserts yet; return how many tokens were forgotten.

    Never raises over what it finds: a log that cannot be read is told and left as it is.
    """
    forgotten = 0
    try:
        for database, name, paths in client.query(_TABLES).result_rows:
            for path in paths:
                forgotten += _mend(client, database, name, Path(path))
    except (ClickHouseError, OSError, ValueError) as error:
        logger.warning("ClickHouse's log of insert tokens cannot be checked: %s", error)
    return forgotten


def _mend(client: Client, database: str, name: str, table: Path) -> int:
    files = _files(table)
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines() if line]
    if not lines:
        return 0
    rows = client.query(
        "SELECT partition_id, min_block_number, max_block_number FROM system.parts "
        "WHERE active AND database = {database:String} AND table = {name:String}",
        parameters={"database": database, "name": name},
    ).result_rows
    block_ids = tokens_without_rows(lines, [Blocks(*row) for row in rows])
    if not block_ids:
        return 0
    where = {"database": database, "name": name}
    client.command("DETACH TABLE {database:Identifier}.{name:Identifier} SYNC", parameters=where)
    try:
        for path in files:
            _without(path, block_ids)
    finally:
        client.command("ATTACH TABLE {database:Identifier}.{name:Identifier}", parameters=where)
    logger.warning(
        "%s.%s: %d insert(s) were noted but not stored (a kill in between, or rows past their retention): "
        "forgotten, so that a repeat is stored",
        database,
        name,
        len(block_ids),
    )
    return len(block_ids)
