"""Builders for tests: flows and `tenant-log` records written the short way."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from models.graph.logic import LOGIC_VERSION
from schemas.detection import DetectionConfig
from schemas.flow import PROTOCOL_NUMBERS, SIDE_CLIENT, SIDE_SERVER, UNKNOWN, Flow
from schemas.ids import end_position, position_of
from schemas.tenant_log import ACTIVE, ENDED, LaneConfig, LogRecord, Member, Progress, Rows, pack_rows

SOURCE = "flows#1"


def make_flow(time_ms: int = 0, src: str = "shop/web", dst: str = "shop/cart", **changes: object) -> Flow:
    """Return a flow with sensible defaults."""
    values: dict[str, object] = {"port": 8080, "protocol": "tcp", "tenant": "acme", **changes}
    return Flow(time_ms=time_ms, src=src, dst=dst, **values)  # type: ignore[arg-type]


def make_lane(partitions: int = 1, **changes: object) -> LaneConfig:
    """Return a replay lane of 10 s windows over ``partitions`` source partitions; learns for 3 windows."""
    values: dict[str, object] = {
        "name": "test",
        "mode": "replay",
        "window_ms": 10_000,
        "lateness_ms": 5_000,
        "members": (Member(SOURCE, partitions),),
        "detection": DetectionConfig(learning_windows=3),
        **changes,
    }
    return LaneConfig(**values)  # type: ignore[arg-type]


def rows_of(
    flows: Sequence[Flow],
    positions: Sequence[int],
    sampling: int = 1,
    marks: Mapping[str, Sequence[int]] | None = None,
) -> Rows:
    """Pack flows as rows at the given positions.

    Args:
        sampling: by what their measures are multiplied already. marks: other columns that only own formats bring.
    """
    codes: dict[tuple[str, str, str, int, int], int] = {}
    edge = []
    for flow in flows:
        identity = (
            flow.tenant or "",
            flow.src,
            flow.dst,
            UNKNOWN if flow.port is None else flow.port,
            UNKNOWN if flow.protocol is None else PROTOCOL_NUMBERS[flow.protocol],
        )
        edge.append(codes.setdefault(identity, len(codes)))

    def column(values: Iterable[int | None]) -> np.ndarray:
        return np.array([UNKNOWN if value is None else value for value in values], dtype=np.int64)

    columns = {
        "position": column(positions),
        "time_ms": column(flow.time_ms for flow in flows),
        "edge": column(edge),
        "side": column(SIDE_SERVER if flow.reporter == "server" else SIDE_CLIENT for flow in flows),
        "skewed": column(0 for _ in flows),
    }
    for name in (
        "calls",
        "errors",
        "denied",
        "bytes_out",
        "bytes_in",
        "packets_out",
        "packets_in",
        "latency_us",
    ):
        columns[name] = column(getattr(flow, name) for flow in flows)
    if sampling != 1:
        columns["sampling"] = column(sampling for _ in flows)
    columns |= {name: column(values) for name, values in (marks or {}).items()}
    hosts = list(dict.fromkeys(flow.host for flow in flows if flow.host is not None))
    if hosts:
        columns["host"] = column(None if flow.host is None else hosts.index(flow.host) for flow in flows)
    return msgspec.structs.replace(pack_rows(list(codes), columns), hosts=tuple(hosts))


def record_of(
    lane: LaneConfig,
    partition: int,
    first_offset: int,
    flows: Sequence[Flow],
    after: int | None = None,
    as_of_ms: int = 1 << 42,
    sampling: int = 1,
    marks: Mapping[str, Sequence[int]] | None = None,
) -> LogRecord:
    """Return one record: each flow is its own message, offsets from ``first_offset`` on."""
    positions = [position_of(first_offset + number, 0) for number in range(len(flows))]
    upto = end_position(first_offset + len(flows) - 1)
    before = end_position(first_offset - 1) if after is None else after
    clocks = (("host", max(flow.time_ms for flow in flows)),) if flows else ()
    return LogRecord(
        worker="test",
        as_of_ms=as_of_ms,
        progress=(Progress(SOURCE, partition, before, upto, clocks, ACTIVE),),
        lane=lane,
        rows=rows_of(flows, positions, sampling, marks) if flows else None,
        logic=LOGIC_VERSION,
    )


def end_of(lane: LaneConfig, partition: int, next_offset: int, as_of_ms: int = 1 << 42) -> LogRecord:
    """Return the statement that ends a source partition's input."""
    progress = Progress(SOURCE, partition, end_position(next_offset - 1), end_position(next_offset), (), ENDED)
    return LogRecord(worker="test", as_of_ms=as_of_ms, progress=(progress,), lane=lane, logic=LOGIC_VERSION)
