"""The part of OCSF 1.8.0 that a drift event uses, as typed records. Field names and types are OCSF's own.

Class Detection Finding, https://schema.ocsf.io/1.8.0/classes/detection_finding. Times are Unix epoch ms; values of
observations are strings, as OCSF has them. A field that is ``None`` is left out. Only ``unmapped.drift`` is ours.
"""

import msgspec

from schemas.drift import Activity, DriftKind, Evidence, Severity, Verdict

OCSF_VERSION = "1.8.0"
CATEGORY_UID, CATEGORY_NAME = 2, "Findings"
CLASS_UID, CLASS_NAME = 2004, "Detection Finding"


class _Ocsf(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    pass


class Product(_Ocsf, frozen=True):
    """Who reports."""

    name: str
    vendor_name: str


class Metadata(_Ocsf, frozen=True):
    """About the event: ``uid`` is the event's id, ``correlation_uid`` the incident's."""

    version: str
    product: Product
    uid: str
    correlation_uid: str
    tenant_uid: str
    log_name: str
    log_version: str


class Analytic(_Ocsf, frozen=True):
    """Which detector spoke. ``type_id``: 1 rule, 3 statistical."""

    uid: str
    name: str
    type_id: int
    type: str


class Named(_Ocsf, frozen=True):
    """A tactic or technique."""

    uid: str
    name: str


class Attack(_Ocsf, frozen=True):
    """MITRE ATT&CK."""

    version: str
    tactic: Named
    technique: Named


class FindingInfo(_Ocsf, frozen=True):
    """The finding: ``uid`` is the same in Create, Update and Close; ``uid_alt`` in all its episodes."""

    uid: str
    uid_alt: str
    title: str
    types: tuple[str, ...]
    first_seen_time: int
    analytic: Analytic
    attacks: tuple[Attack, ...]
    created_time: int | None = None
    modified_time: int | None = None


class Endpoint(_Ocsf, frozen=True):
    """One end of an edge; ``name`` is the service as we know it."""

    name: str
    svc_name: str | None = None
    ip: str | None = None
    domain: str | None = None
    port: int | None = None


class ConnectionInfo(_Ocsf, frozen=True):
    """``direction_id``: 1 inbound, 2 outbound, 3 lateral. ``boundary_id``: 2 internal, 3 external."""

    direction_id: int
    direction: str
    boundary_id: int
    boundary: str
    protocol_num: int | None = None
    protocol_name: str | None = None


class EvidenceArtifact(_Ocsf, frozen=True):
    """One edge concerned."""

    src_endpoint: Endpoint
    dst_endpoint: Endpoint
    connection_info: ConnectionInfo


class Resource(_Ocsf, frozen=True):
    """A service of the estate. ``role_id``: 1 target, 2 actor, 3 affected."""

    uid: str
    name: str
    type: str
    role_id: int
    role: str
    namespace: str | None = None


class AnalysisTarget(_Ocsf, frozen=True):
    """What was analysed."""

    name: str
    type: str


class Timespan(_Ocsf, frozen=True):
    """A time interval."""

    type_id: int
    type: str
    start_time: int
    end_time: int


class Observation(_Ocsf, frozen=True):
    """A value seen or expected; ``count``: how many calls or windows it rests on."""

    value: str
    count: int
    timespan: Timespan | None = None


class ObservedSignal(_Ocsf, frozen=True):
    """An anomaly or a baseline of one signal."""

    observation_parameter: str
    observation_type: str
    observed_pattern: str
    observations: tuple[Observation, ...]


class AnomalyAnalysis(_Ocsf, frozen=True):
    """What was observed (``anomalies``) against what was expected (``baselines``), pairwise."""

    analysis_targets: tuple[AnalysisTarget, ...]
    anomalies: tuple[ObservedSignal, ...]
    baselines: tuple[ObservedSignal, ...]


class Observable(_Ocsf, frozen=True):
    """A value to search by. ``type_id``: 2 IP address, 11 port, 38 resource name."""

    name: str
    type_id: int
    type: str
    value: str


class Remediation(_Ocsf, frozen=True):
    """What to check next."""

    desc: str


class DriftDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What OCSF has no place for, and the evidence once more with its numbers as numbers.

    ``seen_in``: lanes of the tenant that had seen the subject by then; absent where lanes are not compared.
    ``verdict``: how risk and alert-ness came about; absent of events of older versions.
    """

    kind: DriftKind
    lane: str
    generation: int
    episode: int
    is_early: bool
    src: str
    dst: str
    port: int
    protocol: int
    edges_total: int
    evidence: tuple[Evidence, ...]
    checks: tuple[str, ...]
    seen_in: tuple[str, ...] = ()
    verdict: Verdict | None = None


class Unmapped(msgspec.Struct, frozen=True):
    """OCSF's place for what it does not know."""

    drift: DriftDetails


class DetectionFinding(_Ocsf, frozen=True, kw_only=True):
    """OCSF class 2004, as we fill it."""

    category_uid: int
    category_name: str
    class_uid: int
    class_name: str
    activity_id: Activity
    activity_name: str
    type_uid: int
    type_name: str
    severity_id: Severity
    severity: str
    status_id: int
    status: str
    status_detail: str | None = None
    time: int
    start_time: int
    end_time: int
    message: str
    is_alert: bool
    confidence_score: int
    confidence_id: int
    confidence: str
    risk_score: int
    risk_level_id: int
    risk_level: str
    metadata: Metadata
    finding_info: FindingInfo
    anomaly_analyses: tuple[AnomalyAnalysis, ...] = ()
    evidences: tuple[EvidenceArtifact, ...] = ()
    resources: tuple[Resource, ...] = ()
    observables: tuple[Observable, ...] = ()
    remediation: Remediation | None = None
    unmapped: Unmapped
