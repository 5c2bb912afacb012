"""Which declaration of a lane is in force, and what of it a logic version knows. Pure."""

import msgspec

from schemas.detection import THRESHOLDS_SINCE_4, DetectionConfig
from schemas.ids import stable_hash
from schemas.tenant_log import LaneConfig, Member

_DEFAULTS = msgspec.structs.asdict(DetectionConfig())
_LATER_DEFAULTS = {name: _DEFAULTS[name] for name in THRESHOLDS_SINCE_4}


def first_fields() -> tuple[str, ...]:
    """Return the thresholds that there were from the beginning."""
    return tuple(name for name in DetectionConfig.__struct_fields__ if name not in THRESHOLDS_SINCE_4)


def without_later_fields(config: LaneConfig) -> LaneConfig:
    """Return a declaration as those read it who do not know the thresholds that logic version 3 brought."""
    return msgspec.structs.replace(config, detection=msgspec.structs.replace(config.detection, **_LATER_DEFAULTS))


def declared_by(current: LaneConfig, stated: LaneConfig) -> LaneConfig:
    """Return what holds after another declaration: an older worker, or a record delivered again, takes nothing back.

    Within a version topics may appear and grow; a topic that is taken away, or shrinks, needs a new version.
    """
    if stated.version < current.version:
        return current
    best = msgspec.structs.replace(max(current, stated, key=_rank), window_ms=current.window_ms)
    if stated.version > current.version:
        return best
    known = {member.source: member.partitions for member in current.members}
    if all(member.partitions <= known.get(member.source, 0) for member in stated.members):
        return msgspec.structs.replace(best, members=current.members)
    grown = (Member(m.source, max(m.partitions, known.get(m.source, 0))) for m in stated.members)
    return msgspec.structs.replace(best, members=tuple(grown))


def _rank(config: LaneConfig) -> tuple[int, str, str]:
    """Return what orders declarations. Those who do not know the later thresholds come to the same order.

    A declaration that sets one of these wins over the same without: workers that do not know them state that one.
    """
    plain = msgspec.to_builtins(msgspec.structs.replace(config, window_ms=0, members=()))
    detection = plain["detection"]
    later = {name: detection.pop(name) for name in sorted(THRESHOLDS_SINCE_4)}
    own = "" if later == _LATER_DEFAULTS else stable_hash(msgspec.json.encode(later).decode())
    return config.version, stable_hash(msgspec.json.encode(plain).decode()), own
