"""What to look at next, by kind of drift. Pure."""

from schemas.drift import DriftKind

_CHECKS: dict[DriftKind, tuple[str, ...]] = {
    DriftKind.NEW_SERVICE: (
        "Is {src} part of a deployment that was planned for this time, and who owns it?",
        "Does it run an image and a service account that you know?",
        "Look at the edges listed: does it call data stores or leave the estate?",
    ),
    DriftKind.NEW_EDGE: (
        "Did {src} or {dst} get a new release or configuration just before?",
        "Is {src} meant to call {dst}? If so, is a network policy for it in place?",
        "If nobody expected it, look at what else {src} newly calls.",
    ),
    DriftKind.NEW_PORT: (
        "Does {dst} serve this port on purpose, and is it an administration or debugging port?",
        "Did {src} or {dst} get a new release or configuration just before?",
    ),
    DriftKind.NEW_EXTERNAL_EGRESS: (
        "Who owns the destination {dst}, and is it a supplier you know?",
        "Did {src} get a new release or dependency just before?",
        "How many bytes left towards it, and does it go on at regular intervals?",
    ),
    DriftKind.REMOVED_EDGE: (
        "Was {src} or {dst} taken down, renamed or rerouted on purpose?",
        "Does {dst} answer others, and does {src} still run?",
        "Is a monitor, backup or audit trail behind this edge, whose silence would suit an intruder?",
    ),
    DriftKind.FAN_OUT_BURST: (
        "Is {src} a scanner, monitor or crawler that was started on purpose?",
        "Are the peers neighbours by address or port, and do most refuse? Then treat it as a scan.",
        "Look at what {src} received just before the burst.",
    ),
    DriftKind.DENIED_BURST: (
        "Did a network policy change just before, so that calls in use are now refused?",
        "If not, what tries to reach these services from {src}?",
    ),
    DriftKind.RATE_SURGE: (
        "Does {src} retry after errors or time-outs of {dst}?",
        "Did load on the callers of {src} grow alike, or only here?",
    ),
    DriftKind.RATE_DROP: (
        "Does {src} still run and get calls itself?",
        "Was traffic moved to another service or another instance of {dst}?",
    ),
    DriftKind.BYTES_SURGE: (
        "Is it a backup, export or migration that was planned?",
        "Did the calls grow alike, or did each call carry more?",
        "Is {dst} a place where data may go?",
    ),
    DriftKind.ERROR_INCREASE: (
        "Did {dst} get a new release or configuration just before?",
        "Do other callers of {dst} see errors too? If not, look at {src}.",
        "Ask for the root causes of the incident: an error deeper in the call graph comes up here.",
    ),
    DriftKind.LATENCY_INCREASE: (
        "Do other callers of {dst} see it too? If not, look at {src} and at the network between them.",
        "Look at CPU, restarts and releases of {dst} since then.",
        "Ask for the root causes of the incident: a slow service slows all that wait for it.",
    ),
    DriftKind.BEACONING: (
        "Which software makes these calls, and is it meant to: a monitor, an update check, telemetry, a time server?",
        "Who owns the end outside, {src} or {dst}, and is it a supplier you know?",
        "Do size and interval stay the same whatever the load? Then nobody types there: look at what it carries.",
    ),
    DriftKind.EXPOSED_DATASTORE: (
        "Is {dst} meant to be reached from the internet at all? If not, close the port at the border now.",
        "Who called, from which addresses, and how much did {dst} answer?",
        "Did a security group, an ingress or a service of type LoadBalancer change just before?",
    ),
    DriftKind.CROSS_NAMESPACE: (
        "Are {src} and {dst} meant to meet? If so, is a network policy for it in place?",
        "Do both namespaces belong to the same team and stage, or does a test reach into production?",
    ),
    DriftKind.POLICY_VIOLATION: (
        "Is the rule still right? It is quoted as the detector; `drift policies show` prints it.",
        "If it is, what in {src} calls {dst}, and why does nothing on the way stop it?",
    ),
    DriftKind.TELEMETRY_LOSS: (
        "Does {src} have more to report than it can? Give its buffers and queues more room, or have it report less.",
        "What is lost cannot be told from what never was: look at {src} itself for what happened meanwhile.",
    ),
    DriftKind.SAMPLING_CHANGE: (
        "Who changed the sampling of {src}, and was it meant?",
        "With a larger factor, edges of little traffic are no longer seen at all.",
    ),
    DriftKind.SILENT_HOST: (
        "Is {src} down, or only the agent that reports from it?",
        "Was it taken away on purpose? Then this ends by itself once it is forgotten.",
        "Was its agent stopped by somebody who would rather not be seen?",
    ),
    DriftKind.DELIVERY_LAG: (
        "What holds records of {src} back: a shipper with a backlog, a queue, a slow network?",
        "Do records carry the start of what lasts long? Take the end as event time, or give the lane more lateness.",
    ),
}


def checks_for(kind: DriftKind, src: str, dst: str) -> tuple[str, ...]:
    """Return what to check for a kind; ``src`` and ``dst`` as they are to be shown, either may be empty."""
    return tuple(check.format(src=src or dst, dst=dst or src) for check in _CHECKS[kind])
