"""Topics as they are against topics as they have to be. Pure."""

from collections.abc import Mapping, Sequence

from deploy.diagnosis.finding import Finding, ok, problem, span, warning
from schemas.settings import FlowTopic, LaneSettings, Settings
from streams.topics import PlannedTopic, TopicFacts

OUTAGE_MS = 24 * 3_600_000
"""An outage that every topic should outlast without loss."""
SAFETY = 4
"""A topic must hold this many times what windows wait for at most."""
_AT_LEAST = ("retention.ms", "max.message.bytes")


def judge_topics(settings: Settings, planned: Sequence[PlannedTopic], found: Mapping[str, TopicFacts]) -> list[Finding]:
    """Return findings of all topics, at least one each, in the order of ``planned``."""
    findings: list[Finding] = []
    for topic in planned:
        facts = found.get(topic.name)
        check = f"topic {topic.name}"
        if facts is None:
            findings.append(problem(check, "does not exist", "`drift topics` creates it"))
            continue
        mine = [*_partitions(topic, facts, settings), *_declared(topic, facts)]
        if topic.name == settings.topics.name("tenant_log"):
            mine += _log(facts, settings)
        for flow in settings.flows:
            if flow.topic == topic.name and not topic.is_fixed:
                mine += _source(flow, facts, settings)
        findings += mine or [ok(check, described(facts))]
    return findings


def described(facts: TopicFacts) -> str:
    """Describe a topic in short."""
    policy = facts.config.get("cleanup.policy", "delete")
    kept = "" if policy == "compact" else f", kept {_retention(facts.config)}"
    return f"{facts.partitions} partitions, {policy}{kept}, {facts.timestamp_type}"


def _retention(config: Mapping[str, str]) -> str:
    retention_ms = int(config.get("retention.ms", -1))
    return "for ever" if retention_ms < 0 else span(retention_ms)


def _partitions(topic: PlannedTopic, facts: TopicFacts, settings: Settings) -> list[Finding]:
    check, found = f"topic {topic.name}", []
    if topic.is_fixed and facts.partitions != topic.partitions:
        found.append(
            problem(
                check,
                f"has {facts.partitions} partitions, the settings ask for {topic.partitions}",
                "set topics.partitions back, or give our topics new names; the count is fixed for ever",
            )
        )
    if facts.leaderless:
        numbers = ", ".join(map(str, facts.leaderless))
        found.append(problem(check, f"partitions {numbers} have no leader", "check the brokers' health"))
    if topic.is_fixed and facts.replicas < settings.topics.replication:
        found.append(
            warning(
                check,
                f"has {facts.replicas} replicas, topics.replication asks for {settings.topics.replication}",
                "reassign it with more replicas (kafka-reassign-partitions)",
            )
        )
    return found


def _declared(topic: PlannedTopic, facts: TopicFacts) -> list[Finding]:
    """Compare what is declared with what is."""
    check, found = f"topic {topic.name}", []
    wanted = {"cleanup.policy": "delete", **topic.config}
    for key, value in wanted.items():
        real = facts.config.get(key)
        if real is None or real == value:
            continue
        advice = f"set {key}={value}"
        text = f"{key} is {real}, declared is {value}"
        if key == "cleanup.policy":
            if topic.is_fixed or "compact" in real:
                found.append(problem(check, f"{text}; records would be deleted that are needed", advice))
        elif key == "max.message.bytes" and not topic.is_fixed:
            if int(real) > int(value):
                text = f"takes messages of {real} bytes, flows.max_message_bytes is {value}: larger are dead letters"
                found.append(warning(check, text, "raise the setting, or lower the topic's"))
        elif key in _AT_LEAST:
            if _too_little(key, int(real), int(value)):
                found.append((problem if key == "max.message.bytes" else warning)(check, text, advice))
        else:
            found.append(warning(check, text, advice))
    return found


def _too_little(key: str, real: int, wanted: int) -> bool:
    if key == "retention.ms" and real < 0:
        return False  # for ever
    return real < wanted


def longest_wait_ms(lanes: Sequence[LaneSettings]) -> int:
    """Return how long a record may be needed before its window closes."""
    return max(lane.window_ms + lane.lateness_ms + lane.max_wait_ms for lane in lanes)


def _log(facts: TopicFacts, settings: Settings) -> list[Finding]:
    check = f"topic {settings.topics.name('tenant_log')}"
    found = []
    retention_ms = int(facts.config.get("retention.ms", -1))
    least_ms = SAFETY * (longest_wait_ms(settings.lanes) + settings.worker.checkpoint_every_ms)
    if 0 <= retention_ms < least_ms:
        text = f"keeps records for {span(retention_ms)}; windows and checkpoints alone need {span(least_ms)}"
        found.append(problem(check, text, "raise retention.ms"))
    elif 0 <= retention_ms < OUTAGE_MS:
        text = f"keeps records for {span(retention_ms)}: ingest pauses when the graph side lags by half of it"
        found.append(warning(check, text, "raise retention.ms above a day"))
    if int(facts.config.get("retention.bytes", -1)) >= 0:
        text = f"retention.bytes is {facts.config['retention.bytes']}: records can go before their time"
        found.append(warning(check, text, "set retention.bytes=-1; only time can be watched for"))
    hold_ms = settings.worker.hold_above_ms
    if hold_ms is not None and 0 <= retention_ms <= hold_ms:
        text = f"worker.hold_above_ms is {span(hold_ms)}, the topic keeps records for {span(retention_ms)}"
        found.append(problem(check, text, "lower the setting below the retention, or leave it out"))
    return found


def _source(flow: FlowTopic, facts: TopicFacts, settings: Settings) -> list[Finding]:
    check, found = f"topic {flow.topic}", []
    lane = next(lane for lane in settings.lanes if lane.name == flow.lane)
    retention_ms = int(facts.config.get("retention.ms", -1))
    least_ms = SAFETY * longest_wait_ms([lane])
    if 0 <= retention_ms < least_ms:
        text = f"keeps records for {span(retention_ms)}, lane {lane.name} may wait for {span(least_ms / SAFETY)}"
        found.append(problem(check, text, "raise retention.ms, or lower the lane's max_wait_ms"))
    elif 0 <= retention_ms < OUTAGE_MS:
        text = f"keeps records for {span(retention_ms)}: a longer outage loses flows"
        found.append(warning(check, text, "raise retention.ms above a day"))
    if facts.timestamp_type == "CreateTime":
        text = f"has the producers' timestamps: that a clock is ahead by {span(lane.skew_ms)} only our own can tell"
        found.append(warning(check, text, "set message.timestamp.type=LogAppendTime"))
    return found
