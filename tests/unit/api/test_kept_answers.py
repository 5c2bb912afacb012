"""What is kept is bounded, forgotten after a while, and never another question's answer."""

import pytest

from api import kept_answers
from api.kept_answers import KeptAnswers


def test_an_answer_is_that_of_its_question_until_its_time_is_over() -> None:
    now_s = 0.0
    kept = KeptAnswers(lambda: now_s)
    kept.put(("acme", 1), "one")
    assert (kept.get(("acme", 1)), kept.get(("globex", 1)), kept.get(("acme", 2))) == ("one", None, None)
    now_s = kept_answers.KEPT_S
    assert kept.get(("acme", 1)) == "one"
    now_s += 1
    assert kept.get(("acme", 1)) is None
    kept.put(("acme", 1), "two")
    assert kept.get(("acme", 1)) == "two"


def test_the_ones_that_were_not_asked_for_longest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_answers, "MOST", 3)
    monkeypatch.setattr(kept_answers, "MOST_EDGES", 100)
    kept = KeptAnswers(lambda: 0.0)
    for number in range(3):
        kept.put(number, number, edges=30)
    assert kept.get(0) == 0
    kept.put(3, 3, edges=5)
    assert [kept.get(number) for number in range(4)] == [0, None, 2, 3]
    kept.put(2, "again", edges=90)
    assert [kept.get(number) for number in (0, 2, 3)] == [None, "again", 3]
    kept.put(4, 4, edges=101)
    assert [kept.get(number) for number in range(5)] == [None] * 5
