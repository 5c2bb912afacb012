"""Lanes as records state them: declared in the settings, or by the header of a replayed record. Pure."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from schemas.dead_letter import Reason
from schemas.detection import DetectionConfig
from schemas.flow import Name
from schemas.ids import REPLAY_PREFIX
from schemas.settings import FlowTopic, LaneSettings
from schemas.tenant_log import LaneConfig, Member
from streams.result import Refusal, short

_FLOATS = frozenset(
    name for name, default in msgspec.structs.asdict(DetectionConfig()).items() if isinstance(default, float)
)
_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 43)]


def source_name(topic: str, incarnation: str) -> str:
    """Return a source topic's name in coordinates."""
    return f"{topic}#{incarnation}"


def incarnation_of(source: str) -> str:
    """Return the incarnation in a source topic's name in coordinates. Topic names hold no ``#``."""
    return source.partition("#")[2]


def detection_of(values: Mapping[str, int | float], base: DetectionConfig | None = None) -> DetectionConfig:
    """Return thresholds with some changed; numbers take the type of the field."""
    typed = {name: float(value) if name in _FLOATS else int(value) for name, value in values.items()}
    return msgspec.structs.replace(base or DetectionConfig(), **typed)


def declare_lane(
    lane: LaneSettings, flows: Sequence[FlowTopic], partitions: Mapping[str, int], incarnation: str
) -> LaneConfig:
    """Return a declared lane with its members.

    Args:
        flows: all source topics of the configuration.
        partitions: real partition count by topic.
    """
    members = {
        flow.topic: Member(source_name(flow.topic, incarnation), partitions[flow.topic])
        for flow in flows
        if flow.lane == lane.name
    }
    return LaneConfig(
        name=lane.name,
        version=lane.version,
        mode="live",
        window_ms=lane.window_ms,
        lateness_ms=lane.lateness_ms,
        max_wait_ms=lane.max_wait_ms,
        skew_ms=lane.skew_ms,
        members=tuple(members[topic] for topic in sorted(members)),
        detection=detection_of(lane.detection),
    )


class LaneHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The ``drift-lane`` header of records of the replay topic, as JSON.

    Attributes:
        name: ``replay:...``, a lane of its own, or a declared lane, whose declaration then holds.
        generation: a replay of the same name starts a new one.
        format: how the value is read.
        tenant: owner of all records; absent takes each record's own.
    """

    name: Name
    generation: Annotated[int, msgspec.Meta(ge=0)] = 0
    version: Annotated[int, msgspec.Meta(ge=1)] = 1
    window_ms: Annotated[int, msgspec.Meta(ge=1_000, le=1 << 43)] = 60_000
    lateness_ms: _Milliseconds = 30_000
    detection: dict[str, int | float] = {}
    format: str = "canonical"
    tenant: Name | None = None


_decoder = msgspec.json.Decoder(LaneHeader)


def encode_header(header: LaneHeader) -> bytes:
    """Return the header's value."""
    return msgspec.json.encode(header)


def read_header(data: bytes | None) -> LaneHeader:
    """Read a ``drift-lane`` header.

    Raises:
        Refusal: it is absent or cannot be read.
    """
    if data is None:
        raise Refusal(Reason.LANE_UNDECLARED, "the record has no drift-lane header")
    try:
        header = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(Reason.LANE_UNDECLARED, short(f"the drift-lane header cannot be read: {error}")) from error
    unknown = set(header.detection) - set(DetectionConfig.__struct_fields__)
    if unknown:
        raise Refusal(
            Reason.LANE_UNDECLARED, short(f"the drift-lane header has unknown detection settings {sorted(unknown)}")
        )
    return header


def lane_of_header(header: LaneHeader, declared: Mapping[str, LaneConfig], member: Member) -> LaneConfig:
    """Return the lane that a header names. ``member``: the replay topic.

    Raises:
        Refusal: it is neither a replay's own nor declared.
    """
    if header.name in declared:
        return declared[header.name]
    if not header.name.startswith(REPLAY_PREFIX):
        raise Refusal(Reason.LANE_UNDECLARED, short(f"lane {header.name!r} is not declared"))
    return LaneConfig(
        name=header.name,
        version=header.version,
        mode="replay",
        generation=header.generation,
        window_ms=header.window_ms,
        lateness_ms=header.lateness_ms,
        max_wait_ms=0,
        members=(member,),
        detection=detection_of(header.detection),
    )
