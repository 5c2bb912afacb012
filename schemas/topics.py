"""Every Kafka topic: its name, key, value and retention. The one place topics are declared."""

from dataclasses import dataclass, field

MINUTE_MS = 60_000
DAY_MS = 86_400_000

HEADER_TENANT = "x-tenant"
HEADER_LANE = "drift-lane"
"""JSON of a lane declaration (name, generation, window_ms, lateness_ms) on records of the replay topic."""
HEADER_END = "drift-end"
"""Present on the end-of-input record that a replay writes to every partition."""
HEADER_ORIGIN = "drift-origin"
"""JSON of where a replayed dead letter comes from; the rules of that topic then hold, and no other header of ours."""


@dataclass(frozen=True, slots=True)
class TopicDeclaration:
    """How a topic of ours is created and checked.

    Attributes:
        partitions: ``None`` takes the configured, fixed count that follows tenants.
        config: topic configuration as Kafka spells it.
    """

    role: str
    default_name: str
    key: str
    value: str
    partitions: int | None = None
    config: dict[str, str] = field(default_factory=dict)


TENANT_LOG = TopicDeclaration(
    "tenant_log",
    "tenant-log",
    "none; partition by tenant",
    "MessagePack rows, statements and controls (schemas/tenant_log.py)",
    config={"retention.ms": str(3 * DAY_MS), "max.message.bytes": "2097152", "message.timestamp.type": "LogAppendTime"},
)
GRAPH_WINDOWS = TopicDeclaration(
    "graph_windows",
    "graph-windows",
    "tenant",
    "MessagePack chunk of a closed window (schemas/graph.py)",
    config={"retention.ms": str(3 * DAY_MS), "max.message.bytes": "2097152"},
)
DRIFT_EVENTS = TopicDeclaration(
    "drift_events",
    "drift-events",
    "tenant:fingerprint",
    "OCSF 1.8.0 Detection Finding, JSON (schemas/ocsf.py)",
    config={"retention.ms": str(7 * DAY_MS)},
)
DRIFT_CONTROLS = TopicDeclaration(
    "drift_controls",
    "drift-controls",
    "tenant:kind:id",
    "JSON by kind; empty removes",
    config={"cleanup.policy": "compact"},
)
STATE = TopicDeclaration(
    "state",
    "tenant-state",
    "chunk key",
    "checkpoint chunks and manifests (streams/graph/checkpoints.py)",
    config={
        "cleanup.policy": "compact",
        "max.message.bytes": "2097152",
        # The segment being written is never compacted, and Kafka's defaults (1 GiB, 7 days) would let a partition grow
        # to gigabytes of chunks that newer ones have replaced. Recovery does not need this, disks do.
        "segment.bytes": str(64 << 20),
        "segment.ms": str(10 * MINUTE_MS),
        "min.cleanable.dirty.ratio": "0.3",
        "max.compaction.lag.ms": str(60 * MINUTE_MS),
        # A tombstone need only outlive a reader that has read what it removes: recovery reads for a minute at most.
        "delete.retention.ms": str(60 * MINUTE_MS),
    },
)
AUDIT = TopicDeclaration(
    "audit",
    "drift-audit",
    "tenant",
    "log-ins and changes of accounts and keys, JSON (schemas/audit.py)",
    partitions=1,
    config={"retention.ms": str(7 * DAY_MS)},
)
DEAD_LETTER = TopicDeclaration(
    "dead_letter",
    "flows-dead-letter",
    "source topic:partition:offset:index",
    "the original bytes",
    config={"retention.ms": str(7 * DAY_MS), "max.message.bytes": "1048588"},
)
REPLAY = TopicDeclaration(
    "replay",
    "flows-replay",
    "any",
    "canonical flows pushed by `drift replay`, lane in the headers",
    config={"retention.ms": str(DAY_MS), "max.message.bytes": "10485880"},
)

INTERNAL_AND_PUBLIC = (TENANT_LOG, GRAPH_WINDOWS, DRIFT_EVENTS, DRIFT_CONTROLS, STATE, AUDIT, DEAD_LETTER, REPLAY)
FOLLOWS_TENANTS = (TENANT_LOG, GRAPH_WINDOWS, DRIFT_EVENTS, STATE)
"""Topics with the same, fixed partition count: a tenant has the same partition in each."""
