"""Says how a risk came about and why a finding is an alert or none, with the numbers of its verdict. Pure."""

from models.explain.wording import name_of, number, quantity
from schemas.drift import AlertReason, Verdict

_REASONS = {
    AlertReason.ALERTED: "An alert: number {alerts} of at most {budget} of this day.",
    AlertReason.LOW_RISK: "No alert: the risk is below medium.",
    AlertReason.WAITS_FOR_WINDOW: "No alert yet: that is decided when its window closes.",
    AlertReason.BELOW_LEVEL: (
        "No alert: on the days before, {budget} alerts a day were used up by risks of {level} and more."
    ),
    AlertReason.PACED: (
        "No alert: of the {budget} alerts of this day, {used}; the others are kept for later or for critical findings."
    ),
    AlertReason.BUDGET_USED: "No alert: of the {budget} alerts of this day, {used}, and what is left is reserved.",
    AlertReason.TOO_OLD: "No alert: alerts of a day so long ago are no longer counted.",
    AlertReason.WHITELISTED: "No alert: whitelist entry {note} says so.",
}


def verdict_sentences(verdict: Verdict, risk: int) -> list[str]:
    """Return the sentences on risk and alert of an event with a ``risk`` of 0..100."""
    said = f"Risk {risk} of 100"
    if verdict.windows:
        alike = "none" if not verdict.windows_alike else number(verdict.windows_alike)
        said += f": such a finding or a stronger one began in {alike} of {quantity(verdict.windows, 'windows')} before"
        said += f"; the effect alone is rated {verdict.effect}"
    else:
        said += ", by the effect alone: there is no history yet"
    if verdict.feedback:
        said += f"; feedback moved it by {verdict.feedback:+d}"
    return [f"{said}.", _alert_sentence(verdict)]


def _alert_sentence(verdict: Verdict) -> str:
    if verdict.reason is AlertReason.ALERTED and not verdict.alerts:
        return "An alert: there is no limit to alerts." if not verdict.budget else "An alert from before this version."
    if verdict.reason is AlertReason.BUDGET_USED and verdict.alerts >= verdict.budget:
        return f"No alert: the {_count(verdict.budget)} of this day {'is' if verdict.budget == 1 else 'are'} used."
    used = f"{number(verdict.alerts)} {'is' if verdict.alerts == 1 else 'are'} used"
    return _REASONS[verdict.reason].format(
        alerts=number(verdict.alerts),
        budget=number(verdict.budget),
        level=number(verdict.level),
        used=used,
        note=name_of(verdict.note),
    )


def _count(alerts: int) -> str:
    return f"{number(alerts)} alert{'' if alerts == 1 else 's'}"
