"""Whatever the format: what comes of dead letters that are replayed is what would have come of their messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.source_catalogue import message_of
from schemas.settings import FlowTopic
from schemas.tenant_log import LaneConfig, Member, decode_record, unpack_rows
from schemas.topics import HEADER_ORIGIN
from streams.dead_letters import decode_dead_letter, encode_dead_letter, needs_source
from streams.ingest.chunk import SourceChunk, chunk_of
from streams.ingest.readers import FlowReader, ReplayReader, SourceReader
from streams.ingest.replayed import OriginHeader, encode_origin, origin_of
from streams.result import WHOLE_MESSAGE

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples" / "sources"
LANE = LaneConfig("default", members=(Member("flows#1", 1),))


def examples() -> list[Any]:
    found = []
    for path in sorted(EXAMPLES.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            example = json.loads(line)
            found.append(pytest.param(example["format"], message_of(example), id=f"{path.stem}: {example['name']}"))
    flow = {"time_ms": 1_591_367_999_305, "src": "a", "dst": "b", "tenant": "acme"}
    for name in ("canonical", "canonical-json"):
        lines = [json.dumps({**flow, "dst": f"d{n}"}) for n in range(3)]
        for value in (lines[0], f"[{','.join(lines)}]", "\n".join(lines), f"[{lines[0]},{{}},[{lines[1]},{lines[2]}]]"):
            found.append(pytest.param(name, value.encode(), id=f"{name}: {value[:20]}"))
    return found


def reader(format_name: str, *tenants: str) -> FlowReader:
    topic = FlowTopic(format=format_name, tenant_from="fixed:acme", tenants=tenants)
    return FlowReader(topic, "flows#1", LANE, targets=1)


def rows_of(reader: SourceReader, chunk: SourceChunk) -> list[tuple[Any, ...]]:
    """Return (edge and all columns but the position) of each row, in any order; those whose message is new to it."""
    found = []
    for record in map(decode_record, reader.encode(chunk, -1, "w", 1 << 42).records[0]):
        if record.rows is not None:
            columns = {name: column for name, column in unpack_rows(record.rows).items() if name != "position"}
            edges = [record.rows.edges[code] for code in columns.pop("edge").tolist()]
            found += list(zip(edges, *(columns[name].tolist() for name in sorted(columns)), strict=True))
    return sorted(found)


@pytest.mark.parametrize(("format_name", "value"), examples())
def test_a_replayed_message_comes_to_the_same_rows(format_name: str, value: bytes) -> None:
    expected = rows_of(reader(format_name, "*"), chunk_of("flows", 0, 0, [value]))
    letters = reader(format_name, "nobody").encode(chunk_of("flows", 0, 0, [value]), -1, "w", 1).dead_letters
    values, headers = [], []
    for letter in letters:
        message = encode_dead_letter(letter)
        kept = decode_dead_letter(message.value, message.headers)
        origin, payload = origin_of(kept, "1"), kept.payload
        if needs_source(kept) is not None:
            indexes = () if kept.index == WHOLE_MESSAGE else (kept.index,)
            origin, payload = (
                OriginHeader(topic="flows", partition=0, offset=0, indexes=indexes, incarnation="1"),
                value,
            )
        values.append(payload)
        headers.append([(HEADER_ORIGIN, encode_origin(origin))])
    flows = {"flows": reader(format_name, "*")}
    replays = ReplayReader("flows-replay", Member("flows-replay#1", 1), lambda: {"default": LANE}, 1, 1 << 23, flows)
    chunk = chunk_of("flows-replay", 0, 0, values, headers=headers)
    assert rows_of(replays, chunk) == expected
    keys = {letter.key for letter in replays.encode(chunk, -1, "w", 1).dead_letters}
    direct = reader(format_name, "*").encode(chunk_of("flows", 0, 0, [value]), -1, "w", 1).dead_letters
    assert keys == {letter.key for letter in direct}
