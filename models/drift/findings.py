"""The life of findings of one tenant and lane: Create, Update, Close. Pure state, driven by closed windows alone.

One open finding per fingerprint. An early Create is settled by exactly one Update when a window that shows it closes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from models.drift.alerting import ALERT_FROM
from models.drift.beacon import interval_ms_of
from models.drift.detection import Detection, corroborated, severity_of
from models.drift.incidents import Incident, assign, provisional_incident_id
from models.drift.telemetry_state import TenantTelemetry
from models.drift.verdict import Assessment, Judge
from models.explain.sentences import describe
from schemas.detection import DetectionConfig
from schemas.drift import (
    TELEMETRY_KINDS,
    Activity,
    AlertReason,
    DriftEvent,
    DriftKind,
    Severity,
    Verdict,
    event_id_of,
    finding_id_of,
    fingerprint_of,
)

MAX_REMEMBERED = 10_000
"""Closed fingerprints whose episode count is remembered; beyond it all unknown ones start at ``episode_floor``."""
REMOVED_KEPT_WINDOWS = 1_440
"""A removed edge, or a silence, that lasts this long is accepted."""
_SILENT_KINDS = frozenset({DriftKind.RATE_DROP, DriftKind.REMOVED_EDGE})
_NEWS = frozenset({DriftKind.NEW_SERVICE, DriftKind.NEW_EDGE, DriftKind.NEW_PORT, DriftKind.NEW_EXTERNAL_EGRESS})
_RECOVERING = frozenset(
    {
        DriftKind.RATE_SURGE,
        DriftKind.RATE_DROP,
        DriftKind.BYTES_SURGE,
        DriftKind.ERROR_INCREASE,
        DriftKind.LATENCY_INCREASE,
        DriftKind.FAN_OUT_BURST,
        DriftKind.DENIED_BURST,
        DriftKind.BEACONING,
        DriftKind.POLICY_VIOLATION,
        DriftKind.TELEMETRY_LOSS,
        DriftKind.DELIVERY_LAG,
    }
)
_BEATS_MISSED = 3
"""A beacon has stopped after this many intervals without contact."""


class Finding(msgspec.Struct, omit_defaults=True):
    """One open finding. ``verdict``: None of one that was raised before logic version 3, and of its risk."""

    detection: Detection
    fingerprint: str
    finding_id: str
    episode: int
    incident_id: str
    opened_index: int
    last_evidence_index: int
    last_update_index: int
    severity: Severity
    is_settled: bool
    verdict: Verdict | None = None
    risk: int = -1

    @property
    def is_alert(self) -> bool:
        """Say whether it has become an alert; it stays one until it closes."""
        if self.verdict is None:
            return self.severity >= ALERT_FROM
        return self.verdict.reason is AlertReason.ALERTED


@dataclass(frozen=True, slots=True)
class Sight:
    """Another lane that has what a finding is about, and since when by event time; -1 where that is not known."""

    lane: str
    since_ms: int


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose findings these are, and how long a window is.

    Attributes:
        sights: which other lanes have what a detection is about, by name; ``None``: lanes are not compared.
        judge: who gives the verdicts; ``None``: detectors speak for themselves, as before logic version 3.
    """

    tenant: str
    lane: str
    generation: int
    window_ms: int
    config: DetectionConfig
    sights: Callable[[Detection], tuple[Sight, ...]] | None = None
    judge: Judge | None = None

    def assess(self, fingerprint: str, detection: Detection) -> Assessment | None:
        """Return the risk of a detection, as the judge sees it."""
        return None if self.judge is None else self.judge.assess(fingerprint, detection)


@dataclass(slots=True)
class FindingBook:
    """Open findings, episodes of closed ones, and incidents that can still be joined.

    Attributes:
        open: by the fingerprint of what they are about now; one whose services were renamed was published by another.
        episode_floor: no forgotten fingerprint had more episodes; starting there keeps every id unique.
    """

    open: dict[str, Finding] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)
    incidents: list[Incident] = field(default_factory=list)
    episode_floor: int = 0

    def raise_early(self, scope: Scope, index: int, detection: Detection, time_ms: int) -> DriftEvent | None:
        """Open a finding before its window closes; ``None`` if it is open already."""
        fingerprint = _fingerprint(scope, detection)
        if fingerprint in self.open:
            return None
        incident_id = provisional_incident_id(scope.tenant, scope.lane, index * scope.window_ms)
        given = scope.assess(fingerprint, detection)
        finding = self._open(scope, index, fingerprint, detection, incident_id, given, is_settled=False)
        if scope.judge is not None and given is not None and not scope.judge.budget:
            # Which one of many gets one of few places must not hang on how records were cut: the close says. Without
            # a budget there is room for all.
            finding.verdict = scope.judge.alert(detection, given, time_ms)
        return _event(scope, finding, Activity.CREATE, index, time_ms=time_ms, is_early=True)

    def _open(
        self,
        scope: Scope,
        index: int,
        fingerprint: str,
        detection: Detection,
        incident_id: str,
        given: Assessment | None,
        is_settled: bool,
    ) -> Finding:
        episode = self.closed.get(fingerprint, self.episode_floor)
        finding = Finding(
            detection=detection,
            fingerprint=fingerprint,
            finding_id=finding_id_of(fingerprint, episode, scope.generation),
            episode=episode,
            incident_id=incident_id,
            opened_index=index,
            last_evidence_index=index,
            last_update_index=index,
            severity=severity_of(detection.risk) if given is None else given.severity,
            is_settled=is_settled,
            verdict=None if given is None else given.verdict,
            risk=-1 if given is None else given.risk,
        )
        self.open[fingerprint] = finding
        return finding

    def settle(self, scope: Scope, index: int, detections: Sequence[Detection]) -> list[DriftEvent]:
        """Take a closed window's detections: create what is missing, settle what was early, update what goes on."""
        ordered = sorted(detections, key=lambda detection: detection.sort_key)
        fingerprints = [_fingerprint(scope, detection) for detection in ordered]
        fresh = [
            number
            for number, fingerprint in enumerate(fingerprints)
            if fingerprint not in self.open or not self.open[fingerprint].is_settled
        ]
        incident_ids = assign(
            scope.tenant, scope.lane, scope.generation, index, [ordered[n] for n in fresh], self.incidents
        )
        incident_of = dict(zip(fresh, incident_ids, strict=True))
        told: list[tuple[Finding, Activity]] = []
        asking: list[tuple[Finding, Assessment, bool]] = []
        for number, (fingerprint, detection) in enumerate(zip(fingerprints, ordered, strict=True)):
            given = scope.assess(fingerprint, detection)
            finding = self.open.get(fingerprint)
            activity = Activity.UPDATE
            was_candidate = False
            if finding is None:
                activity = Activity.CREATE
                finding = self._open(scope, index, fingerprint, detection, incident_of[number], given, is_settled=True)
                asks = True
            elif not finding.is_settled:
                finding.incident_id = incident_of[number]
                finding.opened_index = index
                finding.is_settled = True
                self._renew(finding, detection, index, given)
                asks = True
            else:
                severity = severity_of(detection.risk) if given is None else given.severity
                # Quiet windows make it rarer all the time: only more of an effect is news.
                rises = severity > finding.severity and (given is None or detection.risk > finding.detection.risk)
                due = index - finding.last_update_index >= scope.config.update_every_windows
                finding.last_evidence_index = index
                if not (rises or due):
                    continue
                asks, was_candidate = severity > finding.severity, finding.severity >= ALERT_FROM
                self._renew(finding, detection, index, given)
            told.append((finding, activity))
            if number in incident_of and scope.judge is not None:
                scope.judge.count(detection)
            if asks and given is not None and not finding.is_alert:
                asking.append((finding, given, not was_candidate))
        _ask(scope, (index + 1) * scope.window_ms, asking)
        return [_event(scope, finding, activity, index) for finding, activity in told]

    @staticmethod
    def _renew(finding: Finding, detection: Detection, index: int, given: Assessment | None) -> None:
        was_alert = finding.is_alert
        finding.detection = detection
        finding.severity = severity_of(detection.risk) if given is None else given.severity
        finding.last_evidence_index = index
        finding.last_update_index = index
        if given is None:
            return
        finding.risk = given.risk
        before = finding.verdict or Verdict(AlertReason.ALERTED if was_alert else AlertReason.LOW_RISK, 0)
        finding.verdict = msgspec.structs.replace(
            given.verdict,
            reason=before.reason,
            budget=before.budget,
            alerts=before.alerts,
            level=before.level,
            note=before.note,
        )

    def rename(self, scope: Scope, index: int, names: Mapping[str, str]) -> list[DriftEvent]:
        """Follow services that got other names; ``index``: the last window judged.

        A finding goes on under the identity it was published with. Of several that are about the same from here on,
        the oldest does, and the others close. An early one closes if it is about another name now: whether it was
        raised at all hangs on how records were cut, and its window will tell of it under the new name.
        """
        events = []
        found = sorted(self.open.values(), key=lambda f: (not f.is_settled, f.opened_index, f.fingerprint, f.episode))
        self.open = {}
        for finding in found:
            before = _fingerprint(scope, finding.detection)
            finding.detection = finding.detection.rename(names)
            key = _fingerprint(scope, finding.detection)
            is_same = key == before
            if not is_same:
                # The name may come to stand for another service, whose episodes must not be taken for these.
                self._remember(finding.fingerprint, finding.episode + 1)
            if key not in self.open and (finding.is_settled or is_same):
                self.open[key] = finding
                continue
            at = max(index, finding.last_evidence_index)
            events.append(_event(scope, finding, Activity.CLOSE, at, close_reason="renamed"))
            self._remember(finding.fingerprint, finding.episode + 1)
        for incident in self.incidents:
            incident.services = {names.get(service, service) for service in incident.services}
        return events

    def close_indexes(self, scope: Scope) -> list[int]:
        """Return the window indexes at which an open finding may end."""
        return [_close_index(scope, finding) for finding in self.open.values()]

    def expire(
        self,
        scope: Scope,
        index: int,
        is_silent: Callable[[Finding], bool],
        returned: Callable[[Finding], bool],
        last_contact: Callable[[Finding], int],
        source: TenantTelemetry | None = None,
        is_over: bool = False,
    ) -> list[DriftEvent]:
        """Close findings whose time has come at the end of window ``index``.

        Attributes:
            is_silent: whether a finding's edge had no traffic since the last evidence.
            returned: whether it had traffic in this window.
            last_contact: index of the last window in which it had traffic.
            source: what is known of the source of the tenant's flows.
            is_over: the input ended within this window: what it lacks ends nothing.
        """
        events = []
        for fingerprint in sorted(self.open):
            finding = self.open[fingerprint]
            kind = finding.detection.kind
            reason = ""
            if kind is DriftKind.REMOVED_EDGE and finding.last_evidence_index < index and returned(finding):
                reason = "returned"
            elif kind is DriftKind.SILENT_HOST and source is not None:
                subject = finding.detection.src
                if not source.is_silent(subject):
                    reason = "accepted" if source.has_forgotten(subject) else "returned"
                elif _close_index(scope, finding) <= index:
                    finding.last_evidence_index = index
            elif _close_index(scope, finding) <= index and not is_over:
                if not finding.is_settled:
                    reason = "unconfirmed"
                elif kind is DriftKind.RATE_DROP and is_silent(finding):
                    finding.last_evidence_index = index
                    reason = "accepted" if index - finding.opened_index >= REMOVED_KEPT_WINDOWS else ""
                elif kind is DriftKind.BEACONING and last_contact(finding) > finding.last_evidence_index:
                    finding.last_evidence_index = last_contact(finding)
                    reason = "accepted" if index - finding.opened_index >= REMOVED_KEPT_WINDOWS else ""
                else:
                    reason = "recovered" if kind in _RECOVERING else "accepted"
            if reason:
                events.append(_event(scope, finding, Activity.CLOSE, index, close_reason=reason))
                del self.open[fingerprint]
                self._remember(finding.fingerprint, finding.episode + 1)
        return events

    def _remember(self, fingerprint: str, episodes: int) -> None:
        self.closed[fingerprint] = max(episodes, self.closed.pop(fingerprint, 0))
        while len(self.closed) > MAX_REMEMBERED:
            self.episode_floor = max(self.episode_floor, self.closed.pop(next(iter(self.closed))))


def _ask(scope: Scope, time_ms: int, asking: list[tuple[Finding, Assessment, bool]]) -> None:
    """Ask for places among the day's alerts, the highest risk first: ``(finding, its risk, it was no candidate)``."""
    if scope.judge is None:
        return
    for finding, given, is_new in sorted(asking, key=lambda each: (-each[1].risk, each[0].detection.sort_key)):
        finding.verdict = scope.judge.alert(finding.detection, given, time_ms, is_new)


def key_of(tenant: str, lane: str, detection: Detection) -> str:
    """Return the key of a finding among a tenant's open ones in a lane."""
    return fingerprint_of(
        tenant, lane, detection.kind, detection.src, detection.dst, detection.port, detection.protocol
    )


def _fingerprint(scope: Scope, detection: Detection) -> str:
    return key_of(scope.tenant, scope.lane, detection)


def _close_index(scope: Scope, finding: Finding) -> int:
    if finding.detection.kind is DriftKind.REMOVED_EDGE:
        return finding.last_evidence_index + REMOVED_KEPT_WINDOWS
    if finding.detection.kind in TELEMETRY_KINDS:
        return finding.last_evidence_index + max(1, scope.config.loss_quiet_windows)
    wait = max(1, scope.config.close_after_windows)
    if finding.detection.kind is DriftKind.BEACONING:
        wait = max(wait, _BEATS_MISSED * -(-interval_ms_of(finding.detection.evidence) // scope.window_ms))
    return finding.last_evidence_index + wait


def _event(
    scope: Scope,
    finding: Finding,
    activity: Activity,
    index: int,
    time_ms: int | None = None,
    is_early: bool = False,
    close_reason: str = "",
) -> DriftEvent:
    detection = finding.detection
    start_ms = index * scope.window_ms
    others = () if scope.sights is None else scope.sights(detection)
    explanation = describe(
        kind=detection.kind,
        src=detection.src,
        dst=detection.dst,
        port=detection.port,
        protocol=detection.protocol,
        evidence=detection.evidence,
        edges=detection.edges,
        edges_total=detection.edges_total,
        activity=activity,
        close_reason=close_reason,
        window_ms=scope.window_ms,
        first_seen_ms=detection.first_seen_ms,
        also_seen=tuple((other.lane, other.since_ms) for other in others),
        verdict=finding.verdict,
        risk=finding.risk,
    )
    is_seen_twice = bool(others) and detection.kind in _NEWS
    return DriftEvent(
        event_id=event_id_of(finding.finding_id, activity, start_ms),
        finding_id=finding.finding_id,
        fingerprint=finding.fingerprint,
        incident_id=finding.incident_id,
        tenant=scope.tenant,
        lane=scope.lane,
        generation=scope.generation,
        kind=detection.kind,
        activity=activity,
        episode=finding.episode,
        severity=finding.severity,
        risk_score=detection.risk if finding.verdict is None else finding.risk,
        confidence=corroborated(detection.confidence) if is_seen_twice else detection.confidence,
        is_alert=activity is not Activity.CLOSE and finding.is_alert,
        is_early=is_early,
        time_ms=start_ms + scope.window_ms if time_ms is None else time_ms,
        window_start_ms=start_ms,
        window_end_ms=start_ms + scope.window_ms,
        first_seen_ms=detection.first_seen_ms,
        src=detection.src,
        dst=detection.dst,
        port=detection.port,
        protocol=detection.protocol,
        edges=detection.edges,
        edges_total=detection.edges_total,
        evidence=detection.evidence,
        title=explanation.title,
        message=explanation.message,
        checks=explanation.checks,
        close_reason=close_reason,
        seen_in=() if scope.sights is None else tuple(sorted([scope.lane, *(other.lane for other in others)])),
        verdict=finding.verdict,
    )
