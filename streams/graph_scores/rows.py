"""Scores and memories as rows for ClickHouse, in the bytes that the sinks' writer takes. Pure."""

import base64
from typing import Any

import pyarrow as pa

from schemas.tables import EDGE_SCORE_MEMORY, EDGE_SCORES, TableDeclaration
from streams.graph_scores.lanes import LaneMemory, ScoredWindow
from streams.sinks.rows import Rows, RowsOf, arrow_schema, partition_key
from streams.sinks.writer import Message

_SCHEMAS = {table.name: arrow_schema(table) for table in (EDGE_SCORES, EDGE_SCORE_MEMORY)}


def score_message(scored: ScoredWindow) -> Message:
    """Return a window's rows of `edge_scores` as a message at the offset of the window's marker."""
    schema, count = _SCHEMAS[EDGE_SCORES.name], len(scored)
    src, dst, port, protocol = zip(*scored.keys, strict=True)
    values = {
        "tenant": pa.repeat(pa.scalar(scored.lane[0]), count),
        "lane": pa.repeat(pa.scalar(scored.lane[1]), count),
        "generation": [scored.place[0]] * count,
        "window_start": [scored.place[1]] * count,
        "src": src,
        "dst": dst,
        "port": port,
        "protocol": protocol,
        "is_new": scored.is_new,
        "statistical": scored.statistical,
        "graph": scored.graph,
        "combined": scored.combined,
        "model": pa.repeat(pa.scalar(scored.model), count),
    }
    return Message(scored.offset, _packed(schema, values))


def memory_message(memory: LaneMemory, number: int) -> Message:
    """Return a lane's row of `edge_score_memory` as a message; ``number`` tells those written together apart."""
    assert memory.place is not None
    tenant, lane = memory.lane
    generation, start_ms = memory.place
    values = {
        "tenant": [tenant],
        "lane": [lane],
        "generation": [generation],
        "window_start": [start_ms],
        "memory": [base64.b64encode(memory.encode()).decode()],
    }
    return Message(number, _packed(_SCHEMAS[EDGE_SCORE_MEMORY.name], values))


def _packed(schema: Any, values: dict[str, Any]) -> bytes:
    arrays = [
        one if isinstance(one := values[column.name], pa.Array) else pa.array(one, type=column.type)
        for column in schema
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return bytes(sink.getvalue().to_pybytes())


def rows_of(table: TableDeclaration) -> RowsOf:
    """Return what reads the messages of a table."""

    def read(value: bytes) -> Rows:
        with pa.ipc.open_stream(value) as stream:
            batch = stream.read_next_batch()
        start = batch.column(batch.schema.get_field_index("window_start"))[0].value
        return Rows(table, partition_key(table.partitioning, int(start)), batch)

    return read


def memory_of(lane: tuple[str, str], row: tuple[int, int, str]) -> LaneMemory:
    """Return the memory of a stored row: generation, start of the last window, memory.

    Raises:
        WireFormatError: damaged, or of another version.
    """
    generation, start_ms, text = row
    return LaneMemory.decode(lane, (generation, start_ms), base64.b64decode(text))
