"""Thresholds of detection. They travel in ``tenant-log`` with the lane, so a replay judges alike."""

from typing import cast, get_type_hints

import msgspec


class DetectionConfig(msgspec.Struct, frozen=True):
    """What it takes to call something drift.

    Attributes:
        learning_windows: closed windows with traffic before anything fires, per tenant and lane.
        min_calls: calls an edge needs in a window before its ratios and quantiles of latency are judged.
        min_history: windows an edge must have been seen in before its signals are judged.
        z_threshold: robust z-score from which a signal is called drift; larger is quieter.
        min_effect_ratio: smallest observed/expected ratio worth an event (rate, bytes, latency).
        min_latency_shift_us: smallest absolute shift of latency worth an event.
        min_error_shift: smallest absolute shift of the error ratio worth an event (0..1).
        removed_after_silences: an edge is removed after this many times its usual silence.
        removed_min_windows: ... but never before this many windows.
        fan_out_min: distinct new peers of one source in a window before a burst is called.
        fan_out_ratio: ... and this many times its largest usual fan-out.
        denied_min: denied calls of one source in a window before a burst is called.
        denied_ratio: ... and this many times its largest usual count.
        open_after_windows: windows in which a service met somebody new outside the estate, per direction and halved
            each day, before that is its habit: then one more is no finding, only what is unusual for it is.
        outside_surge_ratio: calls, callers or bytes from or to the outside worth an event, in times the largest usual
            of the service; larger is quieter.
        beacon_min_contacts: contacts of an edge across the border before their regularity is judged; larger finds slow
            beacons later.
        beacon_min_hours: ... over at least this time.
        beacon_max_dispersion: largest variance of their intervals, as a share of what chance would give (0..1), that
            counts as a clock. 0.15 takes a jitter of half the interval for one, and chance never.
        creep_min_history: windows a signal of an edge must have been seen in before it is watched for slow drift.
        recurring_after: earlier times at the same hour, days or a week or two before, or at a restart of one of its
            services, after which a departure that is no larger is expected and no alert; 0: never.
        exposed_min_calls: calls from outside that a data store's port answers in a window to be exposed; 0: never.
        crossing_min_calls: calls in a window before a namespace that newly calls another is told; 0: never.
        policy_min_calls: calls of two services that a rule denies in a window before that is told; 0: never.
        slow_call_doubt: log-likelihood ratio from which an edge's calls have become slow, few as they may be (min_calls
            does not matter there); larger is quieter.
        departure_doubt: log-likelihood ratio from which a departure of an edge's calls, bytes, errors or latency is
            news: rare for this edge, or lasting; larger is quieter, and later. 0: each window by itself.
        close_after_windows: windows without new evidence after which a finding closes.
        update_every_windows: a finding that goes on is updated at most this often, unless its severity rises.
        outside_prefix_v4, outside_prefix_v6: bits of an address of the internet that its name keeps (docs/inventory.md
            says why so many); fewer make fewer and coarser nodes.
        max_edges_per_tenant: cardinality bound; beyond it new edges are summed in ``overflow``.
        loss_quiet_windows: after the last sign that a source loses data, removed edges and drops stay withheld for so
            many windows; larger is more careful.
        loss_min_records: records a source must say it lost in a window to be losing; unknown numbers are enough.
        late_min_share: share of a window's rows that come late (0..1) from which a source lags; 1 is never.
        late_min_rows: ... and so many of them at least.
        silent_host_min_windows: a host that reported regularly is silent after so many windows without it ...
        silent_host_silences: ... and this many times its usual gap.
        silent_host_max_windows: a host that stays silent for so much longer is gone for good, and is forgotten.
        alerts_per_day: at most so many findings of a tenant, over all its live lanes, become alerts in a calendar day
            (UTC, event time). It changes no event but for ``is_alert`` and its reason. 0: no budget, every finding of
            medium severity or more is an alert, at once.
        max_pending_pairs: halves of calls (spans) held, per tenant and lane, until the other half comes; beyond it the
            oldest are counted without it. 0 pairs nothing.
    """

    learning_windows: int = 10
    min_calls: int = 10
    min_history: int = 8
    z_threshold: float = 6.0
    min_effect_ratio: float = 2.0
    min_latency_shift_us: int = 2_000
    min_error_shift: float = 0.05
    removed_after_silences: int = 10
    removed_min_windows: int = 5
    fan_out_min: int = 15
    fan_out_ratio: float = 3.0
    denied_min: int = 20
    denied_ratio: float = 5.0
    open_after_windows: int = 4
    outside_surge_ratio: float = 3.0
    beacon_min_contacts: int = 20
    beacon_min_hours: float = 6.0
    beacon_max_dispersion: float = 0.15
    creep_min_history: int = 30
    recurring_after: int = 1
    exposed_min_calls: int = 1
    crossing_min_calls: int = 1
    policy_min_calls: int = 1
    slow_call_doubt: float = 8.0
    departure_doubt: float = 9.0
    close_after_windows: int = 5
    update_every_windows: int = 15
    outside_prefix_v4: int = 16
    outside_prefix_v6: int = 32
    max_edges_per_tenant: int = 200_000
    loss_quiet_windows: int = 5
    loss_min_records: int = 1
    late_min_share: float = 0.05
    late_min_rows: int = 20
    silent_host_min_windows: int = 3
    silent_host_silences: int = 3
    silent_host_max_windows: int = 60
    alerts_per_day: int = 20
    max_pending_pairs: int = 200_000


THRESHOLDS_SINCE_4 = frozenset(
    {
        "open_after_windows",
        "outside_surge_ratio",
        "beacon_min_contacts",
        "beacon_min_hours",
        "beacon_max_dispersion",
        "creep_min_history",
        "exposed_min_calls",
        "crossing_min_calls",
        "policy_min_calls",
        "recurring_after",
        "slow_call_doubt",
        "departure_doubt",
        "outside_prefix_v4",
        "outside_prefix_v6",
        "loss_quiet_windows",
        "loss_min_records",
        "late_min_share",
        "late_min_rows",
        "silent_host_min_windows",
        "silent_host_silences",
        "silent_host_max_windows",
        "alerts_per_day",
        "max_pending_pairs",
    }
)
"""Thresholds that workers before logic version 3 do not know: until it is in force, they have no effect and no state
holds them (models/graph/declaration.py)."""
_FirstThresholds = msgspec.defstruct(
    "FirstThresholds",
    [(name, kind) for name, kind in get_type_hints(DetectionConfig).items() if name not in THRESHOLDS_SINCE_4],
    frozen=True,
)


def thresholds_as_known_before(detection: DetectionConfig) -> DetectionConfig:
    """Return what to write of thresholds where logic version 3 is not in force: as workers before wrote it.

    Thresholds that they do not know are kept only if one of them says something new. Only to be encoded.
    """
    default = DetectionConfig()
    if any(getattr(detection, name) != getattr(default, name) for name in THRESHOLDS_SINCE_4):
        return detection
    kept = {name: getattr(detection, name) for name in _FirstThresholds.__struct_fields__}
    return cast(DetectionConfig, _FirstThresholds(**kept))
