"""A scan: one service that in a window calls many hosts and ports for the first time. One finding names it. Pure."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from models.drift.calendar import RECURRING_RISK, is_recurring
from models.drift.detection import MAX_EDGES_LISTED, Detection, confidence_of, rounded
from models.drift.structural import EdgeFacts
from schemas.drift import PART_OF_SCAN, DriftKind, Evidence
from schemas.ids import is_external

DETECTOR = "scan"
SCAN_RISK = 70
_PIECES = frozenset({DriftKind.NEW_SERVICE, DriftKind.NEW_EDGE, DriftKind.NEW_PORT})


def judge_scans(
    unknown: Iterable[EdgeFacts],
    bursts: Sequence[Detection],
    usual_of: Callable[[str], int],
    limit_of: Callable[[str], float],
) -> list[Detection]:
    """Return a fan-out burst for each service that scans inside the estate; one that is a burst anyway says so too.

    Of a service that is new itself, hosts that are known do not count: a deployment calls many of those.

    Args:
        unknown: unknown edges of a tenant in a window.
        bursts: fan-out bursts of the same window.
        usual_of: most peers in a window that are usual for a service. limit_of: how many targets are a scan.
    """
    targets: dict[str, list[EdgeFacts]] = defaultdict(list)
    for facts in unknown:
        ref = facts.ref
        if not is_external(ref.src) and not is_external(ref.dst) and (facts.src_known or not facts.dst_known):
            targets[ref.src].append(facts)
    burst_of = {burst.src: burst for burst in bursts}
    found = []
    for src in sorted(targets.keys() | burst_of.keys()):
        burst, members = burst_of.get(src), targets.get(src, [])
        if len(members) < max(1.0, limit_of(src)):
            found += [burst] if burst is not None else []
            continue
        evidence = _evidence(members, usual_of(src))
        refs = sorted(facts.ref for facts in members)
        if burst is not None:
            # Its edges name hosts alone, known ones too; the examples of a scan are what was not there before.
            evidence = (*burst.evidence, *evidence)
        found.append(
            Detection(
                kind=DriftKind.FAN_OUT_BURST,
                src=src,
                dst="",
                port=-1,
                protocol=-1,
                edges=tuple(refs[:MAX_EDGES_LISTED]),
                edges_total=len(refs),
                evidence=evidence,
                risk=SCAN_RISK,
                confidence=confidence_of(max(facts.history for facts in members)),
                first_seen_ms=min(facts.first_ms for facts in members),
            )
        )
    return found


def _evidence(members: Sequence[EdgeFacts], usual: int) -> tuple[Evidence, ...]:
    counts = (
        ("new_targets", len(members), "targets"),
        ("scanned_hosts", len({facts.ref.dst for facts in members}), "hosts"),
        ("scanned_ports", len({(facts.ref.port, facts.ref.protocol) for facts in members}), "ports"),
    )
    history = max(facts.history for facts in members)
    return tuple(
        Evidence(
            signal=signal,
            observed=float(count),
            expected=0.0,
            unit=unit,
            score=rounded(count / max(usual, 1)) if signal == "new_targets" else 0.0,
            sample=sum(max(1, facts.calls) for facts in members),
            history=history,
            detector=DETECTOR,
        )
        for signal, count, unit in counts
    )


def as_pieces(detections: Sequence[Detection]) -> list[Detection]:
    """Return a window's detections with those told as pieces that a scan is made of: it is the alert, they are not.

    Of a scan that is expected at this time, what is new stays news.
    """
    scans = {
        detection.src: item
        for detection in detections
        if detection.kind is DriftKind.FAN_OUT_BURST and not is_recurring(detection)
        for item in detection.evidence
        if item.signal == "new_targets"
    }
    return [_as_piece(detection, scans) if scans else detection for detection in detections]


def _as_piece(detection: Detection, scans: dict[str, Evidence]) -> Detection:
    if detection.kind not in _PIECES or detection.edges_total > len(detection.edges):
        return detection
    sources = {ref.src for ref in detection.edges}
    src = next(iter(sources), "")
    if len(sources) != 1 or src not in scans or (detection.kind is DriftKind.NEW_SERVICE and detection.src == src):
        return detection
    item = Evidence(
        signal=PART_OF_SCAN,
        observed=scans[src].observed,
        expected=0.0,
        unit="targets",
        score=0.0,
        sample=scans[src].sample,
        history=scans[src].history,
        detector=DETECTOR,
    )
    return replace(detection, evidence=(*detection.evidence, item), risk=min(detection.risk, RECURRING_RISK))
