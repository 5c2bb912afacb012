"""Committed offsets, logs and the group, as a start would find them; and whose clock is off. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.diagnosis.finding import Finding, ok, problem, span, warning

Where = tuple[str, int]
"""(topic, partition)."""
CLOCK_WARNING_MS, CLOCK_PROBLEM_MS = 2_000, 60_000


@dataclass(frozen=True, slots=True)
class LogRange:
    """First offset of a partition's log, and the offset after its last record."""

    first: int
    end: int


def judge_sources(
    topics: Mapping[str, str], logs: Mapping[Where, LogRange], committed: Mapping[Where, int | None], accept_loss: bool
) -> list[Finding]:
    """Judge the group's offsets of source topics (``topics``: name to where a partition without an offset starts)."""
    findings = []
    for topic, start in topics.items():
        mine = {where: log for where, log in logs.items() if where[0] == topic}
        behind = new = 0
        wrong: list[Finding] = []
        for where, log in sorted(mine.items()):
            offset = committed.get(where)
            check = f"offsets {topic}[{where[1]}]"
            if offset is None:
                new += 1
                behind += log.end - log.first if start == "earliest" else 0
            elif offset < log.first:
                text = f"{log.first - offset} records from offset {offset} on were deleted unread"
                if accept_loss:
                    wrong.append(warning(check, text, "worker.accept_loss is set: the next start goes on without them"))
                else:
                    wrong.append(problem(check, text, "`drift worker --accept-loss` goes on without them"))
            elif offset > log.end:
                text = f"offset {offset} is committed, the log ends at {log.end}: the topic was created anew"
                wrong.append(problem(check, text, "give it a new topics.incarnation"))
            else:
                behind += log.end - offset
        if wrong:
            findings += wrong
        elif mine:
            told = f", {new} of {len(mine)} partitions start at the {start} record" if new else ""
            findings.append(ok(f"offsets {topic}", f"{behind} messages behind{told}"))
    return findings


def judge_state(topic: str, logs: Mapping[Where, LogRange], stored: Mapping[int, int]) -> list[Finding]:
    """Judge whether the log still holds what follows each checkpoint (``stored``: next offset by partition)."""
    wrong = []
    behind = 0
    for (name, number), log in sorted(logs.items()):
        if name != topic:
            continue
        following = stored.get(number)
        check = f"offsets {topic}[{number}]"
        if following is None:
            if log.first > 0:
                text = f"there is no saved state, and the log begins at offset {log.first}: its beginning is gone"
                wrong.append(warning(check, text, "what was learned from it is lost; nothing else to do"))
            behind += log.end - log.first
        elif following < log.first:
            text = f"the saved state needs offset {following}, the log begins at {log.first}: records are lost"
            advice = (
                "raise retention.ms; to go on, create it anew and change topics.incarnation: what was learned stays"
            )
            wrong.append(problem(check, text, advice))
        elif following > log.end:
            text = f"the saved state ends at offset {following}, the log at {log.end}: the topic was created anew"
            wrong.append(problem(check, text, "change topics.incarnation: what was learned stays"))
        else:
            behind += log.end - following
    return wrong or [ok(f"offsets {topic}", f"{behind} records after the checkpoints are replayed at a start")]


def judge_group(group: str, state: str, members: int) -> Finding:
    """Judge the consumer group; states are Kafka's."""
    check = f"group {group}"
    if state in ("PreparingRebalance", "CompletingRebalance"):
        text = f"{members} members, handing out partitions ({state})"
        return warning(check, text, "if it lasts: workers die or are too busy; read their logs")
    if members == 0:
        return warning(check, "no worker is a member", "start `drift worker`, unless it is stopped on purpose")
    return ok(check, f"{members} members, {state}")


def judge_clock(check: str, ahead_ms: Sequence[int]) -> Finding | None:
    """Judge how far other clocks are ahead of ours; the least difference counts, the rest is waiting."""
    if not ahead_ms:
        return None
    least = min(ahead_ms, key=abs)
    text = f"{span(abs(least))} {'ahead' if least >= 0 else 'behind'}"
    advice = "run NTP on both machines: silence, skew and ages are told by these clocks"
    if abs(least) >= CLOCK_PROBLEM_MS:
        return problem(check, text, advice)
    return warning(check, text, advice) if abs(least) >= CLOCK_WARNING_MS else ok(check, text)
