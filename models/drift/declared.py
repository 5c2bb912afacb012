"""Structural kinds that judge what an edge means: a data store open to the outside, namespaces that newly meet, a
declared rule that is broken. Pure."""

from collections.abc import Mapping

from models.drift.detection import MAX_EDGES_LISTED, Detection, confidence_of
from schemas.drift import DriftKind, EdgeRef, Evidence

DATASTORE_PORTS = {
    1433: "SQL Server",
    1521: "Oracle",
    2379: "etcd",
    3306: "MySQL",
    5432: "PostgreSQL",
    5984: "CouchDB",
    6379: "Redis",
    7000: "Cassandra",
    7687: "Neo4j",
    8086: "InfluxDB",
    8123: "ClickHouse",
    9042: "Cassandra",
    9092: "Kafka",
    9200: "Elasticsearch",
    9300: "Elasticsearch",
    11211: "memcached",
    26257: "CockroachDB",
    27017: "MongoDB",
    50000: "Db2",
}
"""Default ports of data stores over TCP (IANA's service names, or the vendors' manuals)."""
_RISK = {DriftKind.EXPOSED_DATASTORE: 85, DriftKind.CROSS_NAMESPACE: 50, DriftKind.POLICY_VIOLATION: 65}
_SIGNALS = {
    DriftKind.EXPOSED_DATASTORE: "datastore_answers",
    DriftKind.CROSS_NAMESPACE: "namespace_edge",
    DriftKind.POLICY_VIOLATION: "denied_by_policy",
}
_CERTAIN = 95


def namespace_of(service: str) -> str:
    """Return the namespace of a service's name, ``""`` if it says none.

    >>> namespace_of("shop/cart"), namespace_of("cart"), namespace_of("ext:net/10.0.0.0/8")
    ('shop', '', '')
    """
    namespace, slash, _ = service.rpartition("/")
    return namespace if slash and ":" not in namespace else ""


def judge_declared(
    kind: DriftKind, subject: EdgeRef, edges: list[EdgeRef], calls: Mapping[str, int], first_ms: int, history: int
) -> Detection:
    """State that calls did what should not be.

    Args:
        subject: what it is about; a service alone stands in one end. calls: how many, by the rule that says so.
        history: closed windows of the tenant.
    """
    evidence = (
        Evidence(
            signal=_SIGNALS[kind],
            observed=float(count),
            expected=0.0,
            unit="calls",
            score=0.0,
            sample=count,
            history=history,
            detector=rule,
        )
        for rule, count in sorted(calls.items())
    )
    return Detection(
        kind=kind,
        src=subject.src,
        dst=subject.dst,
        port=subject.port,
        protocol=subject.protocol,
        edges=tuple(sorted(edges)[:MAX_EDGES_LISTED]),
        edges_total=len(edges),
        evidence=tuple(evidence),
        risk=_RISK[kind],
        confidence=_CERTAIN if kind is DriftKind.POLICY_VIOLATION else confidence_of(history),
        first_seen_ms=first_ms,
    )
