"""What a drift event says. The wire form on `drift-events` is OCSF (schemas/ocsf.py)."""

from enum import IntEnum, StrEnum

import msgspec

from schemas.ids import stable_hash


class DriftKind(StrEnum):
    """What changed."""

    NEW_SERVICE = "new_service"
    NEW_EDGE = "new_edge"
    NEW_PORT = "new_port"
    NEW_EXTERNAL_EGRESS = "new_external_egress"
    REMOVED_EDGE = "removed_edge"
    FAN_OUT_BURST = "fan_out_burst"
    DENIED_BURST = "denied_burst"
    RATE_SURGE = "rate_surge"
    RATE_DROP = "rate_drop"
    BYTES_SURGE = "bytes_surge"
    ERROR_INCREASE = "error_increase"
    LATENCY_INCREASE = "latency_increase"
    BEACONING = "beaconing"
    EXPOSED_DATASTORE = "exposed_datastore"
    CROSS_NAMESPACE = "cross_namespace"
    POLICY_VIOLATION = "policy_violation"
    TELEMETRY_LOSS = "telemetry_loss"
    SAMPLING_CHANGE = "sampling_change"
    SILENT_HOST = "silent_host"
    DELIVERY_LAG = "delivery_lag"


STRUCTURAL_KINDS = frozenset(
    {
        DriftKind.NEW_SERVICE,
        DriftKind.NEW_EDGE,
        DriftKind.NEW_PORT,
        DriftKind.NEW_EXTERNAL_EGRESS,
        DriftKind.REMOVED_EDGE,
        DriftKind.FAN_OUT_BURST,
        DriftKind.DENIED_BURST,
        DriftKind.EXPOSED_DATASTORE,
        DriftKind.CROSS_NAMESPACE,
        DriftKind.POLICY_VIOLATION,
    }
)


TELEMETRY_KINDS = frozenset(
    {DriftKind.TELEMETRY_LOSS, DriftKind.SAMPLING_CHANGE, DriftKind.SILENT_HOST, DriftKind.DELIVERY_LAG}
)
"""Kinds that are about the source of flows, not about the flows: while one is open, what it makes doubtful is withheld.
Their subject is a host that reports (``host:NAME``), or the whole lane (``lane:NAME``)."""
HOST_SUBJECT, LANE_SUBJECT = "host:", "lane:"


RECURRENCE = "recurrence"
"""Signal of the evidence that says that this departure comes back at its hour or at a restart, as the detector says,
and is expected: ``observed`` is when it was there last (Unix epoch ms), ``sample`` how many such times are remembered.
"""


PART_OF_SCAN = "part_of_scan"
"""Signal of the evidence that says that something new is a piece of a scan, which is a finding of its own in the same
window: ``observed`` is how many hosts and ports its caller called for the first time."""


class Severity(IntEnum):
    """OCSF ``severity_id``."""

    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4
    CRITICAL = 5


class Activity(IntEnum):
    """OCSF ``activity_id``: where in its life a finding is."""

    CREATE = 1
    UPDATE = 2
    CLOSE = 3


class Evidence(msgspec.Struct, frozen=True):
    """One signal that was not as expected.

    Attributes:
        signal: what was measured (``calls_per_window``, ``latency_p95_us``, ``error_ratio``, ``edge_presence`` ...).
        observed, expected: in ``unit``; rounded to 6 significant digits so that equal inputs give equal bytes.
        score: robust z-score or ratio of the detector, rounded to 2 decimals; 0 where the rule has none.
        sample: calls (or windows) the observation rests on. ``history``: windows the expectation rests on.
        detector: which rule or detector speaks.
    """

    signal: str
    observed: float
    expected: float
    unit: str
    score: float
    sample: int
    history: int
    detector: str


class AlertReason(StrEnum):
    """Why a finding is an alert, or is none."""

    ALERTED = "alerted"
    LOW_RISK = "low_risk"
    WAITS_FOR_WINDOW = "waits_for_window"
    BELOW_LEVEL = "below_level"
    PACED = "paced"
    BUDGET_USED = "budget_used"
    TOO_OLD = "too_old"
    WHITELISTED = "whitelisted"


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a finding's risk came about, and why it is an alert or none.

    Attributes:
        reason: of its alert-ness.
        effect: 0..100, what the detector makes of the effect alone.
        windows: closed windows of this tenant and lane that the risk rests on; older ones count for less.
        windows_alike: those of them in which such a finding, or a stronger one of its kind, began.
        budget: alerts a day and tenant; 0 without a budget.
        alerts: alerts of that day by then, this one among them if it is one.
        level: risk from which a finding of that day could be an alert; 0 while no past day says.
        feedback: points by which people's feedback moved the risk.
        note: id of the whitelist entry, where one says that this is no alert.
    """

    reason: AlertReason
    effect: int
    windows: int = 0
    windows_alike: int = 0
    budget: int = 0
    alerts: int = 0
    level: int = 0
    feedback: int = 0
    note: str = ""


class EdgeRef(msgspec.Struct, frozen=True, order=True):
    """An edge by name; port and protocol -1 if unknown."""

    src: str
    dst: str
    port: int = -1
    protocol: int = -1


class DriftEvent(msgspec.Struct, frozen=True):
    """Create, Update or Close of one finding.

    Attributes:
        event_id: unique and the same after every replay; consumers drop repeats by it.
        finding_id: the same in Create, Update and Close of one episode.
        fingerprint: the same in all episodes of this tenant, lane, kind and subject.
        episode: how often this fingerprint had been closed before.
        is_early: raised before its window closed; numbers are so far, ``incident_id`` is provisional.
        time_ms: event time of what raised it: the record's (early) or the window's end.
        edges: edges concerned, at most 50; ``edges_total`` says how many there are.
        risk_score: 0..100. ``confidence``: 0..100, lowered by sampling, loss or little history.
        close_reason: why it ended, on Close alone: ``accepted``, ``recovered``, ``returned``, ``unconfirmed`` (told
            early, and its window does not show it), ``renamed`` (another finding goes on for it).
        seen_in: live lanes that had seen the subject by then, this one among them, sorted; empty: not compared.
        verdict: how risk and alert-ness came about; None before logic version 3.
    """

    event_id: str
    finding_id: str
    fingerprint: str
    incident_id: str
    tenant: str
    lane: str
    generation: int
    kind: DriftKind
    activity: Activity
    episode: int
    severity: Severity
    risk_score: int
    confidence: int
    is_alert: bool
    is_early: bool
    time_ms: int
    window_start_ms: int
    window_end_ms: int
    first_seen_ms: int
    src: str
    dst: str
    port: int
    protocol: int
    edges: tuple[EdgeRef, ...]
    edges_total: int
    evidence: tuple[Evidence, ...]
    title: str
    message: str
    checks: tuple[str, ...]
    close_reason: str = ""
    seen_in: tuple[str, ...] = ()
    verdict: Verdict | None = None

    @property
    def subject(self) -> str:
        """Return the edge or service the finding is about, for people."""
        if not self.dst:
            return self.src
        if not self.src:
            return self.dst
        port = f":{self.port}" if self.port >= 0 else ""
        return f"{self.src} -> {self.dst}{port}"


class Technique(msgspec.Struct, frozen=True):
    """A MITRE ATT&CK technique (Enterprise matrix v17)."""

    tactic_id: str
    tactic: str
    technique_id: str
    technique: str


ATTACK_VERSION = "17"
_LATERAL = Technique("TA0008", "Lateral Movement", "T1021", "Remote Services")
_SCAN = Technique("TA0007", "Discovery", "T1046", "Network Service Discovery")
_EXFILTRATION = Technique("TA0010", "Exfiltration", "T1048", "Exfiltration Over Alternative Protocol")
_IMPACT = Technique("TA0040", "Impact", "T1499", "Endpoint Denial of Service")
_STOP = Technique("TA0040", "Impact", "T1489", "Service Stop")
_BLINDED = Technique("TA0005", "Defense Evasion", "T1562.006", "Indicator Blocking")
TECHNIQUES: dict[DriftKind, Technique] = {
    DriftKind.NEW_SERVICE: _LATERAL,
    DriftKind.NEW_EDGE: _LATERAL,
    DriftKind.NEW_PORT: _LATERAL,
    DriftKind.NEW_EXTERNAL_EGRESS: Technique("TA0010", "Exfiltration", "T1041", "Exfiltration Over C2 Channel"),
    DriftKind.REMOVED_EDGE: _STOP,
    DriftKind.FAN_OUT_BURST: _SCAN,
    DriftKind.DENIED_BURST: _SCAN,
    DriftKind.RATE_SURGE: Technique("TA0040", "Impact", "T1498", "Network Denial of Service"),
    DriftKind.RATE_DROP: _STOP,
    DriftKind.BYTES_SURGE: _EXFILTRATION,
    DriftKind.ERROR_INCREASE: _IMPACT,
    DriftKind.LATENCY_INCREASE: _IMPACT,
    DriftKind.BEACONING: Technique("TA0011", "Command and Control", "T1071", "Application Layer Protocol"),
    DriftKind.EXPOSED_DATASTORE: Technique("TA0001", "Initial Access", "T1133", "External Remote Services"),
    DriftKind.CROSS_NAMESPACE: _LATERAL,
    DriftKind.POLICY_VIOLATION: _LATERAL,
    DriftKind.TELEMETRY_LOSS: _BLINDED,
    DriftKind.SAMPLING_CHANGE: _BLINDED,
    DriftKind.SILENT_HOST: _BLINDED,
    DriftKind.DELIVERY_LAG: _BLINDED,
}


def fingerprint_of(tenant: str, lane: str, kind: DriftKind, src: str, dst: str, port: int, protocol: int) -> str:
    """Return the identity of a finding across its episodes."""
    return stable_hash("fingerprint", tenant, lane, kind, src, dst, port, protocol)


def finding_id_of(fingerprint: str, episode: int, generation: int) -> str:
    """Return the identity of one episode of a finding."""
    return stable_hash("finding", fingerprint, episode, generation)


def event_id_of(finding_id: str, activity: Activity, window_start_ms: int) -> str:
    """Return the identity of one event; only updates depend on the window."""
    return stable_hash("event", finding_id, int(activity), window_start_ms if activity is Activity.UPDATE else 0)
