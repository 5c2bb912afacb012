"""The wire form of a drift event: OCSF 1.8.0 Detection Finding as JSON, CloudEvents headers, and the key. Pure.

The mapping is exact both ways: ``decode_event(encode_event(event)) == event``. docs/siem.md has it as a table.
"""

from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import msgspec

from schemas.drift import (
    ATTACK_VERSION,
    STRUCTURAL_KINDS,
    TECHNIQUES,
    TELEMETRY_KINDS,
    Activity,
    DriftEvent,
    DriftKind,
    Evidence,
    Severity,
)
from schemas.errors import WireFormatError
from schemas.ocsf_edges import artifact_of, edge_of, observables_of, resources_of, target_type
from schemas.ocsf_types import (
    CATEGORY_NAME,
    CATEGORY_UID,
    CLASS_NAME,
    CLASS_UID,
    OCSF_VERSION,
    AnalysisTarget,
    Analytic,
    AnomalyAnalysis,
    Attack,
    DetectionFinding,
    DriftDetails,
    FindingInfo,
    Metadata,
    Named,
    Observation,
    ObservedSignal,
    Product,
    Remediation,
    Timespan,
    Unmapped,
)

EVENT_VERSION = "1"
"""Version of this mapping: in ``metadata.log_version``, in ``ce_type`` and in the name of the schema."""
EVENT_TYPE = f"io.secureguard.drift.finding.v{EVENT_VERSION}"
EVENT_SCHEMA = f"urn:secureguard:drift:schema:v{EVENT_VERSION}:drift-event"
LOG_NAME = "drift-events"

_PRODUCT = Product(name="SecureGuard Drift", vendor_name="SecureGuard")
_RULE, _STATISTICAL = (1, "Rule"), (3, "Statistical")
_RISK_LEVELS = {
    Severity.INFORMATIONAL: (0, "Info"),
    Severity.LOW: (1, "Low"),
    Severity.MEDIUM: (2, "Medium"),
    Severity.HIGH: (3, "High"),
    Severity.CRITICAL: (4, "Critical"),
}
_STATUS = {Activity.CREATE: (1, "New"), Activity.UPDATE: (1, "New"), Activity.CLOSE: (4, "Resolved")}
"""An Update says that the detector saw more, not that somebody works on it: that is for the SIEM to say."""
_FREQUENCY, _VOLUME, _DEVIATION = "Frequency Analysis", "Volume Analysis", "Deviation Analysis"
_ASSOCIATION = "Association Analysis"
_PATTERNS = {
    DriftKind.NEW_SERVICE: (_FREQUENCY, "UNSEEN"),
    DriftKind.NEW_EDGE: (_FREQUENCY, "UNSEEN"),
    DriftKind.NEW_PORT: (_FREQUENCY, "UNSEEN"),
    DriftKind.NEW_EXTERNAL_EGRESS: (_FREQUENCY, "UNSEEN"),
    DriftKind.REMOVED_EDGE: (_FREQUENCY, "ABSENT"),
    DriftKind.FAN_OUT_BURST: (_ASSOCIATION, "SURGE"),
    DriftKind.DENIED_BURST: (_FREQUENCY, "SURGE"),
    DriftKind.RATE_SURGE: (_FREQUENCY, "SURGE"),
    DriftKind.RATE_DROP: (_FREQUENCY, "DROP"),
    DriftKind.BYTES_SURGE: (_VOLUME, "SURGE"),
    DriftKind.ERROR_INCREASE: (_DEVIATION, "INCREASE"),
    DriftKind.LATENCY_INCREASE: (_DEVIATION, "INCREASE"),
    DriftKind.BEACONING: (_FREQUENCY, "PERIODIC"),
    DriftKind.EXPOSED_DATASTORE: (_FREQUENCY, "UNSEEN"),
    DriftKind.CROSS_NAMESPACE: (_FREQUENCY, "UNSEEN"),
    DriftKind.POLICY_VIOLATION: (_ASSOCIATION, "DENIED"),
    DriftKind.TELEMETRY_LOSS: (_VOLUME, "DROP"),
    DriftKind.SAMPLING_CHANGE: (_DEVIATION, "CHANGE"),
    DriftKind.SILENT_HOST: (_FREQUENCY, "ABSENT"),
    DriftKind.DELIVERY_LAG: (_DEVIATION, "DELAY"),
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(DetectionFinding)


def encode_event(event: DriftEvent) -> bytes:
    """Return the Kafka message value: one OCSF Detection Finding, JSON."""
    return _encoder.encode(to_ocsf(event))


def decode_event(data: bytes) -> DriftEvent:
    """Read what ``encode_event`` wrote. Fields that a later version added are ignored.

    Raises:
        WireFormatError: the bytes are no drift event.
    """
    try:
        return from_ocsf(_decoder.decode(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireFormatError(f"drift event cannot be read: {error}") from error


def event_key(event: DriftEvent) -> bytes:
    """Return the Kafka message key: all events of a finding have the same, so they stay in order."""
    return f"{event.tenant}:{event.fingerprint}".encode()


def cloudevents_headers(event: DriftEvent) -> list[tuple[str, bytes]]:
    """Return the Kafka headers of CloudEvents 1.0 in binary content mode.

    Source: CloudEvents Kafka protocol binding 1.0.2, section 3.2. ``ce_id`` is the event's id: drop repeats by it.
    """
    time = (_EPOCH + timedelta(milliseconds=event.time_ms)).isoformat(timespec="milliseconds")
    source = f"/secureguard-drift/{quote(event.tenant, safe='')}/{quote(event.lane, safe='')}"
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event.event_id,
        "ce_type": EVENT_TYPE,
        "ce_source": source,
        "ce_time": time.replace("+00:00", "Z"),
        "ce_subject": event.finding_id,
        "ce_dataschema": EVENT_SCHEMA,
        "content-type": "application/json",
    }
    return [(name, value.encode()) for name, value in headers.items()]


def to_ocsf(event: DriftEvent) -> DetectionFinding:
    """Map a drift event to OCSF."""
    status_id, status = _STATUS[event.activity]
    confidence_id, confidence = _confidence(event.confidence)
    risk_level_id, risk_level = _RISK_LEVELS[event.severity]
    activity_name = event.activity.name.title()
    return DetectionFinding(
        category_uid=CATEGORY_UID,
        category_name=CATEGORY_NAME,
        class_uid=CLASS_UID,
        class_name=CLASS_NAME,
        activity_id=event.activity,
        activity_name=activity_name,
        type_uid=CLASS_UID * 100 + event.activity,
        type_name=f"{CLASS_NAME}: {activity_name}",
        severity_id=event.severity,
        severity=event.severity.name.title(),
        status_id=status_id,
        status=status,
        status_detail=event.close_reason or None,
        time=event.time_ms,
        start_time=event.window_start_ms,
        end_time=event.window_end_ms,
        message=event.message,
        is_alert=event.is_alert,
        confidence_score=event.confidence,
        confidence_id=confidence_id,
        confidence=confidence,
        risk_score=event.risk_score,
        risk_level_id=risk_level_id,
        risk_level=risk_level,
        metadata=Metadata(
            version=OCSF_VERSION,
            product=_PRODUCT,
            uid=event.event_id,
            correlation_uid=event.incident_id,
            tenant_uid=event.tenant,
            log_name=LOG_NAME,
            log_version=EVENT_VERSION,
        ),
        finding_info=_finding_info(event),
        anomaly_analyses=_anomaly_analyses(event),
        evidences=tuple(artifact_of(edge) for edge in event.edges),
        resources=resources_of(event),
        observables=observables_of(event),
        remediation=Remediation(desc="\n".join(event.checks)) if event.checks else None,
        unmapped=Unmapped(
            DriftDetails(
                kind=event.kind,
                lane=event.lane,
                generation=event.generation,
                episode=event.episode,
                is_early=event.is_early,
                src=event.src,
                dst=event.dst,
                port=event.port,
                protocol=event.protocol,
                edges_total=event.edges_total,
                evidence=event.evidence,
                checks=event.checks,
                seen_in=event.seen_in,
                verdict=event.verdict,
            )
        ),
    )


def from_ocsf(finding: DetectionFinding) -> DriftEvent:
    """Map back what ``to_ocsf`` made."""
    info, metadata, details = finding.finding_info, finding.metadata, finding.unmapped.drift
    return DriftEvent(
        event_id=metadata.uid,
        finding_id=info.uid,
        fingerprint=info.uid_alt,
        incident_id=metadata.correlation_uid,
        tenant=metadata.tenant_uid,
        lane=details.lane,
        generation=details.generation,
        kind=details.kind,
        activity=finding.activity_id,
        episode=details.episode,
        severity=finding.severity_id,
        risk_score=finding.risk_score,
        confidence=finding.confidence_score,
        is_alert=finding.is_alert,
        is_early=details.is_early,
        time_ms=finding.time,
        window_start_ms=finding.start_time,
        window_end_ms=finding.end_time,
        first_seen_ms=info.first_seen_time,
        src=details.src,
        dst=details.dst,
        port=details.port,
        protocol=details.protocol,
        edges=tuple(edge_of(artifact) for artifact in finding.evidences),
        edges_total=details.edges_total,
        evidence=details.evidence,
        title=info.title,
        message=finding.message,
        checks=details.checks,
        close_reason=finding.status_detail or "",
        seen_in=details.seen_in,
        verdict=details.verdict,
    )


def _confidence(score: int) -> tuple[int, str]:
    if score >= 75:
        return 3, "High"
    return (2, "Medium") if score >= 50 else (1, "Low")


def _finding_info(event: DriftEvent) -> FindingInfo:
    technique = TECHNIQUES[event.kind]
    type_id, type_name = _RULE if event.kind in STRUCTURAL_KINDS | TELEMETRY_KINDS else _STATISTICAL
    is_create = event.activity is Activity.CREATE
    return FindingInfo(
        uid=event.finding_id,
        uid_alt=event.fingerprint,
        title=event.title,
        types=(event.kind.value,),
        first_seen_time=event.first_seen_ms,
        created_time=event.time_ms if is_create else None,
        modified_time=None if is_create else event.time_ms,
        analytic=Analytic(
            uid=f"drift.{event.kind.value}",
            name=event.evidence[0].detector if event.evidence else event.kind.value,
            type_id=type_id,
            type=type_name,
        ),
        attacks=(
            Attack(
                version=ATTACK_VERSION,
                tactic=Named(uid=technique.tactic_id, name=technique.tactic),
                technique=Named(uid=technique.technique_id, name=technique.technique),
            ),
        ),
    )


def number_text(value: float) -> str:
    """Write a float as the shortest text that reads back as the same float; whole numbers without ``.0``."""
    return repr(value).removesuffix(".0")


def _anomaly_analyses(event: DriftEvent) -> tuple[AnomalyAnalysis, ...]:
    if not event.evidence:
        return ()
    window = Timespan(type_id=9, type="Time Interval", start_time=event.window_start_ms, end_time=event.window_end_ms)
    observation_type, pattern = _PATTERNS[event.kind]

    def signal(item: Evidence, observed_pattern: str, observation: Observation) -> ObservedSignal:
        return ObservedSignal(
            observation_parameter=item.signal,
            observation_type=observation_type,
            observed_pattern=observed_pattern,
            observations=(observation,),
        )

    target = AnalysisTarget(name=event.subject, type=target_type(event))
    return (
        AnomalyAnalysis(
            analysis_targets=(target,),
            anomalies=tuple(
                signal(item, pattern, Observation(value=number_text(item.observed), count=item.sample, timespan=window))
                for item in event.evidence
            ),
            baselines=tuple(
                signal(item, "USUAL", Observation(value=number_text(item.expected), count=item.history))
                for item in event.evidence
            ),
        ),
    )
