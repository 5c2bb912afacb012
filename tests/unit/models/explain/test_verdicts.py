"""The sentences of a verdict say its numbers and no others."""

import re

import hypothesis.strategies as st
import pytest
from hypothesis import given

from models.explain.verdicts import verdict_sentences
from schemas.drift import AlertReason, Verdict

R = AlertReason


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (
            Verdict(R.ALERTED, 45, 10_080, 3, 20, 4),
            [
                "Risk 45 of 100: such a finding or a stronger one began in 3 of 10,080 windows before; "
                "the effect alone is rated 45.",
                "An alert: number 4 of at most 20 of this day.",
            ],
        ),
        (
            Verdict(R.LOW_RISK, 45, feedback=-20),
            [
                "Risk 45 of 100, by the effect alone: there is no history yet; feedback moved it by -20.",
                "No alert: the risk is below medium.",
            ],
        ),
        (Verdict(R.BUDGET_USED, 45, 0, 0, 1, 1), ["", "No alert: the 1 alert of this day is used."]),
        (Verdict(R.BUDGET_USED, 45, 0, 0, 20, 20), ["", "No alert: the 20 alerts of this day are used."]),
        (
            Verdict(R.BUDGET_USED, 45, 0, 0, 20, 16),
            ["", "No alert: of the 20 alerts of this day, 16 are used, and what is left is reserved."],
        ),
        (
            Verdict(R.PACED, 45, 0, 0, 20, 1),
            [
                "",
                "No alert: of the 20 alerts of this day, 1 is used; the others are kept for later or for critical "
                "findings.",
            ],
        ),
        (
            Verdict(R.BELOW_LEVEL, 45, 0, 0, 20, 1, 52),
            ["", "No alert: on the days before, 20 alerts a day were used up by risks of 52 and more."],
        ),
        (Verdict(R.WHITELISTED, 45, note="w 1"), ["", 'No alert: whitelist entry "w 1" says so.']),
        (Verdict(R.ALERTED, 45), ["", "An alert: there is no limit to alerts."]),
    ],
)
def test_what_is_said(verdict: Verdict, said: list[str]) -> None:
    told = verdict_sentences(verdict, 45)
    assert [text for text, expected in zip(told, said, strict=True) if expected] == [text for text in said if text]


@given(
    st.builds(
        Verdict,
        reason=st.sampled_from(R),
        effect=st.integers(0, 100),
        windows=st.integers(0, 10**6),
        windows_alike=st.integers(0, 10**6),
        budget=st.integers(0, 10**6),
        alerts=st.integers(0, 10**6),
        level=st.integers(0, 101),
        feedback=st.integers(-40, 40),
    ),
    st.integers(0, 100),
)
def test_every_number_told_is_one_of_the_verdict(verdict: Verdict, risk: int) -> None:
    told = " ".join(verdict_sentences(verdict, risk)).replace(",", "")
    numbers = {int(text) for text in re.findall(r"-?\d+", told)}
    known = {verdict.effect, verdict.windows, verdict.windows_alike, verdict.budget, verdict.alerts, verdict.level}
    assert numbers <= known | {verdict.feedback, risk, 100}
    assert risk in numbers
