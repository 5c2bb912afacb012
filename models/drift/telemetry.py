"""Whether a source is losing data: its own reports, its sampling, hosts that fall silent, rows that come late. Pure.

What is missing from a source that loses data means nothing: while it does, removed edges and drops of rates of that
tenant and lane are withheld, and a finding says so. All is judged window by window, from sums over a window's rows and
reports, so that it does not matter in which records or order they came.

A host's silence is counted in *ticks*, whole windows in which its tenant had rows: if all hosts fall silent at once,
the tenant did, and that is told as what it is. A host's usual gap is the second longest it ever made: one outage does
not become usual, the second night that an autoscaler takes it away does. Where as many hosts are new as are gone, they
were replaced.
"""

import math

import msgspec

from models.drift.detection import Detection, confidence_of, rounded
from models.drift.sampling import resample
from models.drift.telemetry_state import (
    NOBODY,
    TOLD,
    TOLD_TOGETHER,
    UNTOLD,
    HostState,
    Lost,
    Noted,
    TenantTelemetry,
    keep_watched,
)
from schemas.detection import DetectionConfig
from schemas.drift import HOST_SUBJECT, LANE_SUBJECT, DriftKind, Evidence

NAMED_HOSTS = 3
"""So many hosts have findings of their own; more at once are one finding, about the lane."""
_LOG_CHANCE = math.log(1e-6)
"""How unlikely a host's silence must be, by chance, to be called one."""
_Change = tuple[int, str, float, float]
"""Rows, host, factor before and after."""
_RISK = {
    DriftKind.TELEMETRY_LOSS: 25,
    DriftKind.SAMPLING_CHANGE: 15,
    DriftKind.SILENT_HOST: 30,
    DriftKind.DELIVERY_LAG: 20,
}


class Moment(msgspec.Struct, frozen=True):
    """The window that is judged.

    Attributes:
        whole: nothing but the source itself can be missing from it. is_over: the input ended within it.
        may_tell: the tenant is past its learning windows.
    """

    lane: str
    index: int
    window_ms: int
    whole: bool
    is_over: bool
    may_tell: bool


def watch(state: TenantTelemetry, noted: Noted, config: DetectionConfig, moment: Moment) -> list[Detection]:
    """Take in what came of a tenant in a window; return what its source is found to do."""
    found = _judge_losses(state, noted, config, moment)
    if noted.rows:
        found += _judge_lateness(state, noted, config, moment)
        _note_presence(state, moment.index)
        state.ticks += moment.whole
        found += _note_hosts(state, noted, config, moment)
        if moment.whole and not moment.is_over:
            found += _judge_silence(state, config, moment)
        if state.is_losing(moment.index):
            state.quiet_floor = moment.index
    return found if moment.may_tell else []


def _subject(lane: str, host: str) -> str:
    return HOST_SUBJECT + host if host else LANE_SUBJECT + lane


def _detection(
    kind: DriftKind, subject: str, evidence: tuple[Evidence, ...], ticks: int, first_seen_ms: int
) -> Detection:
    return Detection(
        kind=kind,
        src=subject,
        dst="",
        port=-1,
        protocol=-1,
        edges=(),
        edges_total=0,
        evidence=evidence,
        risk=_RISK[kind],
        confidence=confidence_of(ticks),
        first_seen_ms=first_seen_ms,
    )


def _hosts_evidence(signal: str, count: int, known: int, ticks: int, detector: str) -> Evidence:
    return Evidence(signal, float(count), 0.0, "hosts", 0.0, known, ticks, detector)


# -- what the source says it lost --------------------------------------------------------------------------------------


def _judge_losses(state: TenantTelemetry, noted: Noted, config: DetectionConfig, moment: Moment) -> list[Detection]:
    reports = [lost for by_host in noted.lost.values() for lost in by_host.values()]
    if not reports:
        return []
    if sum(lost.records for lost in reports) < config.loss_min_records and not any(lost.unsaid for lost in reports):
        return []
    state.lost_until = max(state.lost_until, moment.index + config.loss_quiet_windows)
    hosts = sorted({host for by_host in noted.lost.values() for host in by_host})
    groups = [[host] for host in hosts] if len(hosts) <= NAMED_HOSTS else [hosts]
    found = []
    for group in groups:
        evidence = tuple(
            item for kind in sorted(noted.lost) for item in _loss_evidence(kind, noted.lost[kind], group, state.ticks)
        )
        if len(group) > 1:
            evidence = (
                _hosts_evidence("losing_hosts", len(group), len(state.hosts), state.ticks, "loss-report"),
                *evidence,
            )
        subject = _subject(moment.lane, group[0] if len(group) == 1 else NOBODY)
        first_ms = moment.index * moment.window_ms
        found.append(_detection(DriftKind.TELEMETRY_LOSS, subject, evidence, state.ticks, first_ms))
    return found


def _loss_evidence(kind: str, by_host: dict[str, Lost], hosts: list[str], ticks: int) -> list[Evidence]:
    mine = [by_host[host] for host in hosts if host in by_host]
    reports, records = sum(lost.reports for lost in mine), sum(lost.records for lost in mine)
    found = []
    if records:
        found.append(Evidence("lost_records", rounded(records), 0.0, "records", 0.0, reports, ticks, kind))
    if unsaid := sum(lost.unsaid for lost in mine):
        found.append(Evidence("loss_reports", rounded(unsaid), 0.0, "reports", 0.0, reports, ticks, kind))
    return found


# -- rows that come late -----------------------------------------------------------------------------------------------


def _judge_lateness(state: TenantTelemetry, noted: Noted, config: DetectionConfig, moment: Moment) -> list[Detection]:
    share = noted.late / noted.rows
    if noted.late < max(1, config.late_min_rows) or share < config.late_min_share or config.late_min_share >= 1:
        return []
    state.lost_until = max(state.lost_until, moment.index + config.loss_quiet_windows)
    evidence = Evidence("late_ratio", rounded(share), 0.0, "ratio", 0.0, noted.rows, state.ticks, "lateness")
    subject, first_ms = _subject(moment.lane, NOBODY), moment.index * moment.window_ms
    return [_detection(DriftKind.DELIVERY_LAG, subject, (evidence,), state.ticks, first_ms)]


# -- hosts -------------------------------------------------------------------------------------------------------------


def _gaps(gap: int, longest: int, usual: int) -> tuple[int, int]:
    """Return the longest and the second longest gap after another one."""
    if gap > longest:
        return gap, longest
    return longest, max(usual, gap)


def _note_presence(state: TenantTelemetry, index: int) -> None:
    if state.last_index >= 0:
        state.gap, state.usual = _gaps(index - state.last_index, state.gap, state.usual)
    state.last_index = max(state.last_index, index)


def _note_hosts(state: TenantTelemetry, noted: Noted, config: DetectionConfig, moment: Moment) -> list[Detection]:
    """Note who reported, and by what factor; return the detections of factors that changed."""
    changed: list[_Change] = []
    for name, seen in noted.hosts.items():
        host = state.hosts.get(name)
        if host is None:
            host = state.hosts[name] = HostState(state.ticks, state.ticks, moment.index, since=state.ticks)
        host.gap, host.usual = _gaps(state.ticks - host.last, host.gap, host.usual)
        host.last, host.last_index, host.told = state.ticks, moment.index, UNTOLD
        host.seen += moment.whole
        before = host.sampling
        host.sampling = resample(before, seen)
        if before is not None and before.step != host.sampling.step:
            changed.append((seen.rows, name, before.factor, host.sampling.factor))
    keep_watched(state.hosts)
    return _judge_sampling(state, changed, config, moment)


def _judge_sampling(
    state: TenantTelemetry, changed: list[_Change], config: DetectionConfig, moment: Moment
) -> list[Detection]:
    if not changed:
        return []
    state.resampled_index = moment.index
    state.resampled_until = moment.index + config.loss_quiet_windows
    for host in state.hosts.values():
        host.seen, host.since = 0, state.ticks + 1  # how often it is seen is learned anew, as all else is
    changed.sort(key=lambda change: (-change[0], change[1]))
    found = []
    for rows, name, before, after in changed if len(changed) <= NAMED_HOSTS else changed[:1]:
        factor = Evidence("sampling_factor", after, before, "", 0.0, rows, state.ticks, "sampling")
        evidence: tuple[Evidence, ...] = (factor,)
        if len(changed) > NAMED_HOSTS:
            known, name = len(state.hosts), NOBODY
            evidence = (_hosts_evidence("resampled_hosts", len(changed), known, state.ticks, "sampling"), factor)
        subject, first_ms = _subject(moment.lane, name), moment.index * moment.window_ms
        found.append(_detection(DriftKind.SAMPLING_CHANGE, subject, evidence, state.ticks, first_ms))
    return found


def _patience(host: HostState, config: DetectionConfig) -> int:
    """Return after how many ticks without it a host is silent.

    That is several of its usual gaps, and so many ticks that chance would hardly leave it out of all of them: it is in
    each with the probability that Laplace's rule of succession gives after those it was and was not in, not counting
    its longest gap, which was an outage.
    """
    ticks = max(host.last + 1 - host.since - (host.gap - 1), host.seen)
    present = (host.seen + 1) / (ticks + 2)
    unlikely = math.ceil(round(_LOG_CHANCE / math.log(1 - present), 6))
    return max(1, config.silent_host_min_windows, config.silent_host_silences * host.usual, unlikely)


def _judge_silence(state: TenantTelemetry, config: DetectionConfig, moment: Moment) -> list[Detection]:
    """Find hosts that are missing from a whole window; those missing for long are told of, then forgotten."""
    now = state.ticks
    for name in [name for name, host in state.hosts.items() if name != NOBODY]:
        host = state.hosts[name]
        if now - host.last > _patience(host, config) + config.silent_host_max_windows:
            del state.hosts[name]
    regular = {name: host for name, host in state.hosts.items() if name and host.seen >= max(1, config.min_history)}
    missing = {name: host for name, host in sorted(regular.items()) if now - host.last >= host.usual}
    # A rolling update starts the new before it stops the old.
    since = min((host.last for host in missing.values()), default=now) - max(1, config.silent_host_min_windows)
    replacing = sum(host.last == now and host.first > since for name, host in state.hosts.items() if name)
    if len(missing) <= replacing:
        missing = {}
    silent = {name: host for name, host in missing.items() if now - host.last >= _patience(host, config)}
    state.is_missing = len(silent) > state.usual_silent()
    state.is_doubtful = any(host.usual == 1 for name, host in missing.items() if name not in silent)
    state.note_silent(len(silent))
    if not state.is_missing or not moment.may_tell:
        return []
    fresh = {name: host for name, host in silent.items() if host.told == UNTOLD}
    if not fresh:
        return []
    if len(silent) <= NAMED_HOSTS:
        for host in fresh.values():
            host.told = TOLD
        return [_silent_host(name, host, state, moment) for name, host in fresh.items()]
    for host in fresh.values():
        host.told = TOLD_TOGETHER
    together = [host for host in silent.values() if host.told == TOLD_TOGETHER]
    longest = min(together, key=lambda host: host.last)
    evidence = (
        _hosts_evidence("silent_hosts", len(together), len(regular), now, "silence"),
        _silence_evidence(longest, now),
    )
    first_ms = (longest.last_index + 1) * moment.window_ms
    return [_detection(DriftKind.SILENT_HOST, _subject(moment.lane, NOBODY), evidence, now, first_ms)]


def _silent_host(name: str, host: HostState, state: TenantTelemetry, moment: Moment) -> Detection:
    first_ms = (host.last_index + 1) * moment.window_ms
    evidence = (_silence_evidence(host, state.ticks),)
    return _detection(DriftKind.SILENT_HOST, _subject(moment.lane, name), evidence, state.ticks, first_ms)


def _silence_evidence(host: HostState, now: int) -> Evidence:
    silence = now - host.last
    score = rounded(silence / host.usual)
    return Evidence(
        "silent_windows", float(silence), float(host.usual), "windows", score, silence, host.seen, "silence"
    )
