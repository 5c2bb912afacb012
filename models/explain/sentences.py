"""Explains a finding in plain sentences: observed against expected, how rare, who says so, what to check. Pure.

Every number comes from the evidence. The text depends on the arguments alone, so a replay writes the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from models.explain.checks import checks_for
from models.explain.verdicts import verdict_sentences
from models.explain.wording import duration, edge_of, instant, name_of, number, port_of, quantity, weekday_of
from schemas.drift import PART_OF_SCAN, RECURRENCE, TELEMETRY_KINDS, Activity, DriftKind, EdgeRef, Evidence, Verdict

MAX_EDGES_NAMED = 5
MAX_EVIDENCE_TOLD = 4


@dataclass(frozen=True, slots=True)
class Explanation:
    """What people read of a finding: one line, a short paragraph, and what to look at next."""

    title: str
    message: str
    checks: tuple[str, ...]


_TITLES = {
    DriftKind.NEW_SERVICE: "New service {subject}",
    DriftKind.NEW_EDGE: "New edge {subject}",
    DriftKind.NEW_PORT: "New port on {subject}",
    DriftKind.NEW_EXTERNAL_EGRESS: "New external egress {subject}",
    DriftKind.REMOVED_EDGE: "Edge {subject} fell silent",
    DriftKind.FAN_OUT_BURST: "Fan-out burst from {subject}",
    DriftKind.DENIED_BURST: "Burst of denied calls from {subject}",
    DriftKind.RATE_SURGE: "Call rate of {subject} surged",
    DriftKind.RATE_DROP: "Call rate of {subject} dropped",
    DriftKind.BYTES_SURGE: "Data volume of {subject} surged",
    DriftKind.ERROR_INCREASE: "Error ratio of {subject} rose",
    DriftKind.LATENCY_INCREASE: "Latency of {subject} rose",
    DriftKind.BEACONING: "Clock-like contact {subject}",
    DriftKind.EXPOSED_DATASTORE: "Data store {subject} answers callers outside",
    DriftKind.CROSS_NAMESPACE: "Namespaces newly meet: {subject}",
    DriftKind.POLICY_VIOLATION: "Policy violated: {subject}",
    DriftKind.TELEMETRY_LOSS: "Source {subject} loses records",
    DriftKind.SAMPLING_CHANGE: "Sampling of {subject} changed",
    DriftKind.SILENT_HOST: "Source {subject} fell silent",
    DriftKind.DELIVERY_LAG: "Records of {subject} come late",
}
_BORDER_TITLES = {
    # Of a service with the whole outside: by kind, and whether the outside calls.
    (DriftKind.NEW_PORT, True): "{subject} newly answers callers outside",
    (DriftKind.NEW_PORT, False): "New port called outside by {subject}",
    (DriftKind.RATE_SURGE, True): "Calls from outside to {subject} surged",
    (DriftKind.RATE_SURGE, False): "Calls to the outside by {subject} surged",
}
_FIRST_TIMES = {
    "service_presence": "{subject} took part in calls for the first time",
    "edge_presence": "{subject}: this caller called this service for the first time",
    "port_presence": "{subject}: this port was used for the first time",
    "egress_presence": "{subject}: this destination outside the estate was called for the first time",
    "datastore_answers": "{subject}: a caller outside was answered on a data store's port for the first time",
    "namespace_edge": "{subject}: a service of this namespace called one of the other for the first time",
    "exposed_port": "{subject}: a caller outside the estate was answered on this port for the first time",
    "outside_port": "{subject}: this port was called outside the estate for the first time",
}
_SIGNALS = {
    "calls_per_window": "calls in a window",
    "bytes_per_window": "bytes in a window",
    "error_ratio": "share of failed calls",
    "latency_p50_us": "median latency",
    "slow_call_ratio": "share of calls that took more than three times the usual p95 latency",
    "latency_p95_us": "p95 latency",
    "latency_p99_us": "p99 latency",
    "fan_out": "distinct peers in a window",
    "new_targets": "number of hosts and ports called for the first time in a window",
    "scanned_hosts": "number of hosts among them",
    "scanned_ports": "number of ports among them",
    "denied_per_window": "denied calls in a window",
    "denied_by_policy": "calls in a window that a declared rule denies",
    "silent_windows": "silence in a row",
    "down_windows": "time for which all its edges carried few calls or none",
    "outside_callers": "distinct callers from outside in a window",
    "outside_calls_per_window": "calls across the border in a window",
    "outside_bytes_per_window": "bytes in a window, the most of any peer outside",
    "interval_dispersion": "variance of the intervals between contacts as a share of chance",
    "lost_records": "what the source says it lost in a window",
    "loss_reports": "number of reports of loss that name none, in a window",
    "losing_hosts": "number of hosts that lose records",
    "sampling_factor": "sampling factor",
    "resampled_hosts": "number of hosts whose sampling changed",
    "silent_hosts": "number of hosts that fell silent while others go on",
    "late_ratio": "share of records that came late",
}
_BEACON = {
    "contact_interval": "in contact every {observed} on average",
    "usual_bytes_out": "{observed} sent in each call of most contacts",
    "usual_bytes_in": "{observed} received in each call of most contacts",
}
_SAMPLE_UNITS = {
    "silent_windows": "windows",
    "down_windows": "restarts",
    "fan_out": "peers",
    "outside_callers": "peers",
    "interval_dispersion": "contacts",
    "lost_records": "reports",
    "loss_reports": "reports",
    "losing_hosts": "hosts",
    "sampling_factor": "records",
    "resampled_hosts": "hosts",
    "silent_hosts": "hosts",
    "late_ratio": "records",
}
"""What a sample counts, where it is not calls."""
_CLOSE_REASONS = {
    "recovered": "Recovered: nothing unusual was seen for long enough. Last evidence:",
    "accepted": "Accepted: it is no longer news and now belongs to what is known. Last evidence:",
    "returned": "Returned: the edge carries calls again. Last evidence:",
    "unconfirmed": "Not confirmed: the closed windows do not show it. Last evidence:",
}
_SOURCE_CLOSE_REASONS = {
    "recovered": "Recovered: there was no further sign of it for long enough. Last evidence:",
    "accepted": "Accepted: it stays so. Last evidence:",
    "returned": "Returned: the source reports again. Last evidence:",
}
_WITHHELD = "Meanwhile removed edges and drops of call rates of this tenant and lane are withheld."
_LEARNS_ANEW = (
    "Call rates, volumes and gaps of this tenant and lane are learned anew; until then none of them is judged."
)


def describe(
    *,
    kind: DriftKind,
    src: str,
    dst: str,
    port: int,
    protocol: int,
    evidence: tuple[Evidence, ...],
    edges: tuple[EdgeRef, ...],
    edges_total: int,
    activity: Activity,
    close_reason: str = "",
    window_ms: int,
    first_seen_ms: int = -1,
    also_seen: Sequence[tuple[str, int]] = (),
    verdict: Verdict | None = None,
    risk: int = 0,
) -> Explanation:
    """Explain one event of a finding.

    Attributes:
        port, protocol: -1 if unknown. edges: those listed, of ``edges_total``.
        close_reason: why it ended, on Close alone. window_ms: length of the lane's windows.
        first_seen_ms: event time of the first sign, Unix epoch ms; -1 leaves it out.
        also_seen: other lanes that have the subject, and the event time since when; -1 where that is not known.
        verdict: how the ``risk``, 0..100, came about, and why it is an alert or none.
    """
    subject = _subject(src, dst, port, protocol)
    sentences = [_opening(activity, close_reason, kind)] if activity is not Activity.CREATE else []
    if not evidence:
        sentences.append(f"{subject}: no evidence is attached.")
    signals = [item for item in evidence if item.signal not in (RECURRENCE, PART_OF_SCAN)]
    sentences += [_evidence_sentence(subject, item, window_ms) for item in signals[:MAX_EVIDENCE_TOLD]]
    if len(signals) > MAX_EVIDENCE_TOLD:
        sentences.append(f"{_more(len(signals) - MAX_EVIDENCE_TOLD, 'signal')} in the evidence.")
    sentences += [_recurrence_sentence(item, src, dst) for item in evidence if item.signal == RECURRENCE]
    sentences += [_scan_sentence(item, edges) for item in evidence if item.signal == PART_OF_SCAN]
    if kind in TELEMETRY_KINDS and activity is not Activity.CLOSE:
        sentences.append(_LEARNS_ANEW if kind is DriftKind.SAMPLING_CHANGE else _WITHHELD)
    listing = _edges_sentence(edges, edges_total, EdgeRef(src, dst, port, protocol))
    if listing:
        sentences.append(listing)
    if first_seen_ms >= 0:
        sentences.append(f"First sign at {instant(first_seen_ms)}.")
    if also_seen:
        sentences.append(_lanes_sentence(kind, activity, also_seen))
    if verdict is not None and activity is not Activity.CLOSE:
        sentences += verdict_sentences(verdict, risk)
    wording = _TITLES[kind] if src and dst else _BORDER_TITLES.get((kind, not src), _TITLES[kind])
    title = wording.format(subject=subject)
    return Explanation(
        title=f"Closed: {title}" if activity is Activity.CLOSE else title,
        message=" ".join(sentences),
        checks=() if activity is Activity.CLOSE else checks_for(kind, name_of(src), name_of(dst) if dst else ""),
    )


def _subject(src: str, dst: str, port: int, protocol: int) -> str:
    if not dst or not src:
        where = port_of(port, protocol)
        return name_of(src or dst) + (f" ({where})" if where else "")
    return edge_of(EdgeRef(src, dst, port, protocol))


def _opening(activity: Activity, close_reason: str, kind: DriftKind) -> str:
    if activity is Activity.UPDATE:
        return "Update of an open finding."
    if kind in TELEMETRY_KINDS and close_reason in _SOURCE_CLOSE_REASONS:
        return _SOURCE_CLOSE_REASONS[close_reason]
    return _CLOSE_REASONS.get(
        close_reason, f"Closed: {name_of(close_reason)}. Last evidence:" if close_reason else "Closed. Last evidence:"
    )


def _more(count: int, noun: str) -> str:
    return f"{number(count)} more {noun}{'' if count == 1 else 's'}"


def _evidence_sentence(subject: str, item: Evidence, window_ms: int) -> str:
    observed, expected = quantity(item.observed, item.unit), quantity(item.expected, item.unit)
    history = f"{quantity(item.history, 'windows')} of history"
    if item.signal == "sampled":
        seen = quantity(item.sample, "records")
        return f"These numbers are estimates: the source sees 1 in {number(item.observed)}, here {seen}."
    if item.signal in _BEACON:
        facts = f"{_BEACON[item.signal].format(observed=observed)}, over {duration(item.history * window_ms)}"
        facts += f" ({quantity(item.sample, 'contacts')} counted)"
        what = subject
    elif item.signal in _FIRST_TIMES:
        span = duration(item.history * window_ms)
        facts = f"{observed} seen, expected {expected}, none in {history} ({span})"
        what = _FIRST_TIMES[item.signal].format(subject=subject)
    else:
        sample = quantity(item.sample, _SAMPLE_UNITS.get(item.signal, "calls"))
        score = "robust z-score" if item.detector == "robust-z" else "score"
        rarity = f"{score} {number(item.score)} " if item.score else ""
        signal = _SIGNALS.get(item.signal) or name_of(item.signal)
        was = "crept to" if item.detector == "page-hinkley" else "was"
        facts = f"{signal} {was} {observed}, expected {expected}{_times(item)}"
        facts += f" (window {duration(window_ms)}; {rarity}from {sample} against {history})"
        what = subject
    return f"{what}: {facts}. Detector: {name_of(item.detector)}."


def _recurrence_sentence(item: Evidence, src: str, dst: str) -> str:
    times = f"{number(item.sample)} such {'time' if item.sample == 1 else 'times'} remembered"
    restarted = {"restart": src, "caller-restart": src, "callee-restart": dst}.get(item.detector)
    when = "at this hour" if restarted is None else f"at a restart of {name_of(restarted)}"
    return f"Expected {when}, so no alert: as on {weekday_of(item.observed)} ({times}). Detector: {item.detector}."


def _scan_sentence(item: Evidence, edges: tuple[EdgeRef, ...]) -> str:
    caller = name_of(edges[0].src) if edges else "the caller"
    targets = quantity(item.observed, item.unit)
    return (
        f"Part of a scan, so no alert of its own: {caller} called {targets} for the first time in this window, "
        f"which is told as a fan-out burst of it. Detector: {item.detector}."
    )


def _lanes_sentence(kind: DriftKind, activity: Activity, also_seen: Sequence[tuple[str, int]]) -> str:
    if kind is DriftKind.REMOVED_EDGE and activity is not Activity.CLOSE:
        return f"Other lanes that knew it do not see it either: {', '.join(name_of(lane) for lane, _ in also_seen)}."
    what = "Its source is" if kind in (DriftKind.FAN_OUT_BURST, DriftKind.DENIED_BURST) else "It is"
    lanes = (name_of(lane) + (f" (since {instant(ms)})" if ms >= 0 else "") for lane, ms in also_seen)
    return f"{what} also seen in lane {', '.join(lanes)}."


def _times(item: Evidence) -> str:
    """Say how many times the expectation, where that means something."""
    if item.observed > item.expected > 0:
        return f", {number(float(f'{item.observed / item.expected:.3g}'))} times as much"
    return ""


def _edges_sentence(edges: tuple[EdgeRef, ...], edges_total: int, subject: EdgeRef) -> str:
    if not edges or (edges_total <= 1 and edges[0] == subject):
        return ""
    named = ", ".join(edge_of(ref) for ref in edges[:MAX_EDGES_NAMED])
    rest = edges_total - min(len(edges), MAX_EDGES_NAMED)
    return f"Edges concerned: {named}" + (f" and {_more(rest, 'edge')}." if rest > 0 else ".")
