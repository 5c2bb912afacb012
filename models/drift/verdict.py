"""One verdict on a finding: risk from effect, rarity and feedback; severity from risk; alert from the budget. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from models.drift.alerting import ALERT_FROM, AlertLedger
from models.drift.detection import Detection, severity_of
from models.drift.feedback import Feedback, WhitelistEntry, points_of, whitelisted_by
from models.drift.rarity import Rarity, risk_of, score_of
from schemas.drift import AlertReason, Severity, Verdict


@dataclass(frozen=True, slots=True)
class Assessment:
    """A detection's risk, 0..100, and the verdict that says how it came about."""

    risk: int
    verdict: Verdict

    @property
    def severity(self) -> Severity:
        """Severity follows from the risk alone."""
        return severity_of(self.risk)


@dataclass(slots=True)
class Judge:
    """Gives the verdicts on one tenant's findings in one lane.

    Attributes:
        rarity: what the lane's closed windows brought. ledger: alerts of the tenant. budget: a day; 0 without.
        feedback, whitelist: what people said; nobody's by default.
    """

    rarity: Rarity
    ledger: AlertLedger
    budget: int
    feedback: Sequence[Feedback] = ()
    whitelist: Sequence[WhitelistEntry] = ()
    began: dict[str, float] = field(default_factory=dict)

    def assess(self, fingerprint: str, detection: Detection) -> Assessment:
        """Return the risk of a detection. It is no alert yet."""
        tail = self.rarity.tail(detection.kind, score_of(detection))
        points = points_of(fingerprint, detection, self.feedback)
        risk = max(0, min(100, risk_of(tail, detection.risk) + points))
        reason = AlertReason.WAITS_FOR_WINDOW if severity_of(risk) >= ALERT_FROM else AlertReason.LOW_RISK
        return Assessment(
            risk,
            Verdict(
                reason=reason,
                effect=detection.risk,
                windows=tail.windows,
                windows_alike=tail.alike,
                budget=self.budget,
                feedback=points,
            ),
        )

    def count(self, detection: Detection) -> None:
        """Note that a finding began in the window that is being judged."""
        score = score_of(detection)
        self.began[detection.kind] = max(score, self.began.get(detection.kind, 0.0))

    def alert(self, detection: Detection, given: Assessment, time_ms: int, is_new: bool = True) -> Verdict:
        """Decide whether a finding is an alert from an event at ``time_ms`` on.

        Attributes:
            is_new: it was not bad enough for an alert before.
        """
        verdict = given.verdict
        if given.severity < ALERT_FROM:
            return msgspec.structs.replace(verdict, reason=AlertReason.LOW_RISK)
        if note := whitelisted_by(detection, time_ms, self.whitelist):
            return msgspec.structs.replace(verdict, reason=AlertReason.WHITELISTED, note=note)
        if not self.budget:
            return msgspec.structs.replace(verdict, reason=AlertReason.ALERTED)
        place = self.ledger.ask(time_ms, given.risk, given.severity, self.budget, is_new)
        return msgspec.structs.replace(verdict, reason=place.reason, alerts=place.alerts, level=place.level)
