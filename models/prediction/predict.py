"""A change against the learned graph: edges it adds, breaks or shadows, rules it violates, how risky that is. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from models.drift.structural import EdgeFacts, subjects_of
from models.prediction.manifests import Manifests, declared_calls
from models.prediction.policies import Call, judge_call
from schemas.drift import DriftKind, EdgeRef
from schemas.ids import is_external
from schemas.prediction import (
    BaselineEdge,
    DeclaredCall,
    ForbiddenEdge,
    Location,
    PredictedChange,
    PredictionReport,
)

DATASTORE_PORTS = {
    1433: "SQL Server",
    1521: "Oracle",
    3306: "MySQL",
    5432: "PostgreSQL",
    6379: "Redis",
    9000: "ClickHouse",
    9042: "Cassandra",
    9092: "Kafka",
    9200: "Elasticsearch",
    11211: "memcached",
    27017: "MongoDB",
}
"""Registered or usual ports of stores (IANA service names, the tools' documentation)."""

_RISK_OF_KIND = {
    DriftKind.NEW_SERVICE: 20,
    DriftKind.NEW_EDGE: 30,
    DriftKind.NEW_PORT: 25,
    DriftKind.NEW_EXTERNAL_EGRESS: 45,
}
"""Below the risk of the same finding unannounced: what is declared can be reviewed."""
_RISK_OF_STORE = 15
_RISK_OF_NAMESPACE = 10
_RISK_BROKEN, _RISK_SHADOWED, _RISK_VIOLATION = 60, 50, 80
_BUSY_CALLS = 1_000
MAX_REASONS = 5


def predict(
    manifests: Manifests,
    baseline: Sequence[BaselineEdge],
    listed: Sequence[DeclaredCall] = (),
    rules: Sequence[ForbiddenEdge] = (),
) -> PredictionReport:
    """Return what a change would do.

    Args:
        baseline: edges learned. listed: calls that an edge list names, beside those that manifests declare.
        rules: what the tenant forbids.
    """
    known = _Known(baseline)
    declared = [*declared_calls(manifests, known.services), *listed]
    new = [call for call in declared if not known.has(call)]
    changes = [_added(call, known) for call in new]
    changes += _broken(manifests, baseline)
    changes += _shadowed(manifests, declared)
    changes += _violations(declared, rules)
    changes.sort(key=lambda one: (-one.risk, one.effect, one.src, one.dst, one.port, one.protocol))
    findings = Counter(subject[0].value for subject in {s for call in new for s in known.news_of(call)})
    risk = _joint_risk([one.risk for one in changes])
    return PredictionReport(
        risk=risk,
        reasons=tuple(one.reason for one in changes[:MAX_REASONS]),
        changes=tuple(changes),
        drift_events=dict(sorted(findings.items())),
        notes=tuple(_notes(manifests, baseline)),
    )


class _Known:
    """The learned graph, as the rules of new edges look at it."""

    def __init__(self, baseline: Sequence[BaselineEdge]) -> None:
        self.services = frozenset(name for edge in baseline for name in (edge.src, edge.dst))
        self.pairs = frozenset((edge.src, edge.dst) for edge in baseline)
        self._edges = frozenset((edge.src, edge.dst, edge.port) for edge in baseline)

    def has(self, call: DeclaredCall) -> bool:
        """Say whether a call was seen; one without a port is its pair's, and a pair seen without ports any port's."""
        if call.port < 0 or (call.src, call.dst, -1) in self._edges:
            return (call.src, call.dst) in self.pairs
        return (call.src, call.dst, call.port) in self._edges

    def news_of(self, call: DeclaredCall) -> list[tuple[DriftKind, str, str, int, int]]:
        """Return the findings that the call would be, as the stream worker would raise them."""
        facts = EdgeFacts(
            ref=EdgeRef(call.src, call.dst, call.port, call.protocol),
            src_known=call.src in self.services,
            dst_known=call.dst in self.services,
            pair_known=(call.src, call.dst) in self.pairs,
            calls=0,
            first_ms=0,
            history=0,
        )
        return subjects_of(facts)


def _added(call: DeclaredCall, known: _Known) -> PredictedChange:
    kinds = tuple(dict.fromkeys(subject[0] for subject in known.news_of(call)))
    risk = max(_RISK_OF_KIND.get(kind, 20) for kind in kinds)
    reason = f"{call.src} would call {_spelled(call.dst, call.port)} for the first time: {call.reason}."
    store = DATASTORE_PORTS.get(call.port)
    if store is not None and not is_external(call.dst):
        risk += _RISK_OF_STORE
        reason += f" Port {call.port} is that of {store}."
    if _namespace(call.src) != _namespace(call.dst) and not is_external(call.dst):
        risk += _RISK_OF_NAMESPACE
        reason += " It crosses namespaces."
    return _change("adds", call, reason, risk, call.location, kinds)


def _broken(manifests: Manifests, baseline: Sequence[BaselineEdge]) -> list[PredictedChange]:
    found = []
    for edge in baseline:
        verdict = judge_call(Call(edge.src, edge.dst, edge.port, edge.protocol), manifests)
        if verdict.allowed is False and verdict.policy is not None:
            policy = verdict.policy
            busy = f", {edge.calls:,} calls in the baseline" if edge.calls else ""
            reason = (
                f"NetworkPolicy {policy.namespace}/{policy.name} would refuse calls from {edge.src} to "
                f"{_spelled(edge.dst, edge.port)} ({verdict.direction}{busy})."
            )
            risk = _RISK_BROKEN + min(30, round(10 * math.log10(1 + edge.calls / _BUSY_CALLS))) if edge.calls else 60
            found.append(_change("breaks", edge, reason, risk, policy.location, (DriftKind.REMOVED_EDGE,)))
    return found


def _shadowed(manifests: Manifests, declared: Sequence[DeclaredCall]) -> list[PredictedChange]:
    found = []
    for call in declared:
        verdict = judge_call(Call(call.src, call.dst, call.port, call.protocol), manifests)
        if verdict.allowed is False and verdict.policy is not None:
            policy = verdict.policy
            reason = (
                f"{call.src} is told to call {_spelled(call.dst, call.port)} ({call.reason}), and NetworkPolicy "
                f"{policy.namespace}/{policy.name} of the same change would refuse it ({verdict.direction})."
            )
            found.append(_change("shadows", call, reason, _RISK_SHADOWED, policy.location, (DriftKind.DENIED_BURST,)))
    return found


def _violations(declared: Sequence[DeclaredCall], rules: Sequence[ForbiddenEdge]) -> list[PredictedChange]:
    found = []
    for call in declared:
        for rule in rules:
            if (
                fnmatchcase(call.src, rule.src)
                and fnmatchcase(call.dst, rule.dst)
                and (rule.port < 0 or call.port < 0 or rule.port == call.port)
            ):
                spelled = _spelled(call.dst, call.port)
                reason = f"{call.src} would call {spelled}, which the rule {rule.name} forbids: {call.reason}."
                found.append(_change("violates", call, reason, _RISK_VIOLATION, call.location, ()))
    return found


def _change(
    effect: str,
    edge: DeclaredCall | BaselineEdge,
    reason: str,
    risk: int,
    location: Location,
    kinds: tuple[DriftKind, ...],
) -> PredictedChange:
    return PredictedChange(
        effect, edge.src, edge.dst, edge.port, edge.protocol, reason, min(risk, 100), location, kinds
    )


def _joint_risk(risks: Sequence[int]) -> int:
    """Return the risk of all changes together: never below the largest, and more the more there are, up to 100."""
    spared = math.prod(1 - (risk / 100) ** 2 for risk in risks)
    return min(100, max([round(100 * math.sqrt(1 - spared)), *risks], default=0)) if risks else 0


def _notes(manifests: Manifests, baseline: Sequence[BaselineEdge]) -> list[str]:
    notes = list(manifests.notes)
    if not baseline:
        notes.append("The baseline holds no edge: everything looks new. Learn first, or name another tenant.")
    if manifests.policies:
        notes.append("Policies that are in the cluster and not in these files are not known: one may allow more.")
        calls = [Call(edge.src, edge.dst, edge.port, edge.protocol) for edge in baseline]
        untold = sum(judge_call(call, manifests).allowed is None for call in calls)
        if untold:
            notes.append(
                f"Of {untold} learned edges it cannot be told whether the policies allow them: labels or addresses are "
                "missing. Give the manifests of those workloads too."
            )
    return notes


def _spelled(service: str, port: int) -> str:
    return service if port < 0 else f"{service}:{port}"


def _namespace(service: str) -> str:
    return service.rpartition(":")[2].partition("/")[0]
