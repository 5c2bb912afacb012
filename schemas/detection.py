"""Thresholds of detection. They travel in ``tenant-log`` with the lane, so a replay judges alike."""

import msgspec


class DetectionConfig(msgspec.Struct, frozen=True):
    """What it takes to call something drift.

    Attributes:
        learning_windows: closed windows with traffic before anything fires, per tenant and lane.
        min_calls: calls an edge needs in a window before its ratios and latencies are judged.
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
        close_after_windows: windows without new evidence after which a finding closes.
        update_every_windows: a finding that goes on is updated at most this often, unless its severity rises.
        max_edges_per_tenant: cardinality bound; beyond it new edges are summed in ``overflow``.
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
    close_after_windows: int = 5
    update_every_windows: int = 15
    max_edges_per_tenant: int = 200_000


THRESHOLDS_SINCE_4 = frozenset(
    {
        "open_after_windows",
        "outside_surge_ratio",
        "beacon_min_contacts",
        "beacon_min_hours",
        "beacon_max_dispersion",
    }
)
"""Thresholds that states before version 4 hold only if they differ from their defaults (models/graph/snapshot.py)."""
