"""Feedback moves the risk of what was judged and of its like; a whitelist entry keeps events and takes the alert."""

import pytest

from models.drift.alerting import AlertLedger
from models.drift.detection import Detection
from models.drift.feedback import MOST_POINTS, Feedback, WhitelistEntry, points_of, whitelisted_by
from models.drift.rarity import Rarity
from models.drift.verdict import Judge
from schemas.drift import AlertReason, DriftKind, Severity

EDGE = DriftKind.NEW_EDGE
DETECTION = Detection(EDGE, "shop/web", "shop/db", 5432, 6, (), 1, (), 45, 50, 0)
NOTHING = Feedback("f1", EDGE, "shop/web", "shop/db", is_true=False)
REAL = Feedback("f1", EDGE, "shop/web", "shop/db", is_true=True)
NOTHING_BESIDE = Feedback("f2", EDGE, "shop/web", "shop/db", is_true=False)
OTHER = Feedback("f3", EDGE, "shop/web", "shop/cart", is_true=False)


@pytest.mark.parametrize(
    ("said", "points"),
    [
        ([], 0),
        ([NOTHING], -20),
        ([REAL], 20),
        ([NOTHING_BESIDE], -10),
        ([OTHER], 0),
        ([NOTHING, REAL], 0),
        ([NOTHING, NOTHING_BESIDE], -30),
        ([NOTHING] * 9, -MOST_POINTS),
        ([REAL] * 9, MOST_POINTS),
    ],
)
def test_feedback_moves_what_it_was_said_of_in_full_and_its_like_by_half(said: list[Feedback], points: int) -> None:
    assert points_of("f1", DETECTION, said) == points


@pytest.mark.parametrize(
    ("entry", "holds"),
    [
        (WhitelistEntry("a"), True),
        (WhitelistEntry("a", kind="new_*", src="shop/*", dst="shop/d?"), True),
        (WhitelistEntry("a", kind="rate_surge"), False),
        (WhitelistEntry("a", src="bank/*"), False),
        (WhitelistEntry("a", port=5432), True),
        (WhitelistEntry("a", port=80), False),
        (WhitelistEntry("a", expires_ms=1_001), True),
        (WhitelistEntry("a", expires_ms=1_000), False),
    ],
)
def test_a_whitelist_entry_is_about_kinds_edges_and_a_time(entry: WhitelistEntry, holds: bool) -> None:
    assert whitelisted_by(DETECTION, 1_000, [entry]) == ("a" if holds else "")


def judge(feedback: list[Feedback], whitelist: list[WhitelistEntry], budget: int = 1) -> Judge:
    return Judge(Rarity(), AlertLedger(), budget, feedback, whitelist)


def test_a_finding_said_to_be_nothing_is_less_risk_and_no_alert() -> None:
    for said, risk, severity, reason in (
        ([], 45, Severity.MEDIUM, AlertReason.ALERTED),
        ([NOTHING], 25, Severity.LOW, AlertReason.LOW_RISK),
        ([REAL], 65, Severity.HIGH, AlertReason.ALERTED),
    ):
        by = judge(said, [])
        given = by.assess("f1", DETECTION)
        verdict = by.alert(DETECTION, given, 0)
        assert (given.risk, given.severity, verdict.reason, verdict.effect) == (risk, severity, reason, 45)
        assert verdict.feedback == risk - 45


def test_what_is_whitelisted_keeps_its_risk_and_takes_no_place_among_alerts() -> None:
    by = judge([], [WhitelistEntry("w2"), WhitelistEntry("w1", dst="shop/db")])
    given = by.assess("f1", DETECTION)
    verdict = by.alert(DETECTION, given, 0)
    assert (given.risk, verdict.reason, verdict.note) == (45, AlertReason.WHITELISTED, "w1")
    by.whitelist = ()
    assert by.alert(DETECTION, given, 0).reason is AlertReason.ALERTED, "the only place of the day is still free"
