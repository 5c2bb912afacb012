"""`drift dead-letters` at its edges: wrong input in one line; a terminal obeys nothing of a stranger's bytes."""

from typing import Any

import pytest
from click.testing import CliRunner

from deploy.cli import cli
from deploy.commands import dead_letters as command
from schemas.dead_letter import DeadLetter, Reason
from schemas.errors import ConfigurationError
from schemas.settings import FlowTopic, Settings
from schemas.topics import HEADER_LANE
from streams.dead_letter_replay import Replayed, refusal_of
from streams.dead_letter_topic import Found, Place, Selection, TenantGuess
from streams.ingest.lanes import LaneHeader, encode_header
from tests.unit.streams.ingest.test_replayed import letter_of


def found(letter: DeadLetter, **changes: Any) -> Found:
    values: dict[str, Any] = {
        "letter": letter,
        "size_bytes": len(letter.payload),
        "written_ms": 1_700_000_000_000,
        "times": 1,
        "place": Place(0, 0),
        "needs": None,
        "tenant": None,
        **changes,
    }
    return Found(**values)


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch | None = None, letters: tuple[Found, ...] = ()) -> Any:
    if monkeypatch is not None:

        async def find(_: Settings, selection: Selection) -> list[Found]:
            return [one for one in letters if selection.names(one.letter) and selection.wants(one)]

        monkeypatch.setattr(command, "_find", find)
    return CliRunner().invoke(cli, ["dead-letters", *arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "flows:1"], "is no coordinate: write topic:partition:offset:index"),
        (["show", "flows:a:b:c"], "is no coordinate"),
        (["replay", "../x:0:0:0"], "is no coordinate"),
        (["list", "--reason", "sad"], "'sad' is not one of 'malformed'"),
        (["list", "--since", "yesterday"], "is no duration"),
        (["list", "--limit", "0"], "is not in the range"),
    ],
)
def test_wrong_input_is_named(arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert says in str(result.exception)


@pytest.mark.parametrize("name", [[], ["list"], ["show"], ["replay"]])
def test_every_command_has_an_example(name: list[str]) -> None:
    assert "Example: drift dead-letters" in run(*name, "--help").stdout


def test_a_table_shows_each_once_and_escapes_what_a_terminal_would_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = (
        found(letter_of(detail="bad \x1b[31mred\u202e"), tenant="ac\x07me"),
        found(letter_of(offset=8, reason=Reason.FUTURE), times=3, size_bytes=12),
    )
    result = run("list", monkeypatch=monkeypatch, letters=letters)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["WRITTEN", "(UTC)", "SOURCE", "REASON", "TIMES", "BYTES", "TENANT", "DETAIL"]
    assert lines[1].split()[:3] == ["2023-11-14", "22:13:20", "flows:0:7:0"] and "\\x1b[31mred\\u202e" in lines[1]
    assert lines[3] == "2 dead letters: malformed 1, future 1"
    assert result.stdout.isprintable() or all(c.isprintable() or c == "\n" for c in result.stdout)


def test_a_replay_asks_first_and_names_what_it_will_not_push(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = (
        found(letter_of()),
        found(letter_of(offset=8, reason=Reason.CORRUPT_BATCH)),
        found(letter_of(offset=9, reason=Reason.CORRUPT_BATCH)),
    )
    pushed: list[int] = []

    async def push(_: Settings, some: list[Found], __: Any) -> Replayed:
        pushed.append(len(some))
        return Replayed(1, [("flows:0:8:0", "why")])

    monkeypatch.setattr(command, "replay_letters", push)
    asked = CliRunner()
    run("list", monkeypatch=monkeypatch, letters=letters)  # puts the letters in place
    result = asked.invoke(cli, ["dead-letters", "replay"], input="n\n", standalone_mode=False)
    assert "Replay 1 dead letter?" in result.stderr and not pushed
    result = asked.invoke(cli, ["dead-letters", "replay"], input="y\n", standalone_mode=False)
    assert (
        pushed == [3]
        and "1 dead letter of 3 pushed to flows-replay" in result.stdout
        and "not flows:0:8:0: why" in result.stdout
    )
    dry = asked.invoke(cli, ["dead-letters", "replay", "--dry-run"], standalone_mode=False)
    assert dry.stdout.splitlines()[0] == "1 dead letter of 3 can be replayed" and pushed == [3]
    assert dry.stdout.splitlines()[1].startswith("not flows:0:8:0 and 1 more: the broker's batch is damaged")
    only = asked.invoke(cli, ["dead-letters", "replay", "flows:0:8:0", "--yes"], standalone_mode=False)
    assert only.return_value == 1 and pushed == [3], "nothing to push, and that is said by the exit code"
    absent = asked.invoke(cli, ["dead-letters", "replay", "flows:5:5:5", "--yes"], standalone_mode=False)
    assert isinstance(absent.exception, ConfigurationError) and "flows:5:5:5" in str(absent.exception)


def test_bytes_are_shown_as_text_where_they_are_and_in_hex_elsewhere() -> None:
    assert command._is_text("läuft\n".encode()) and command._is_text("läuft"[:2].encode()[:2])
    assert not command._is_text(b"\x00\x01") and not command._is_text(b"\xff" * 9) and not command._is_text(b"\x1b[2J")
    assert command._hex(bytes(range(18))).splitlines() == [
        "00000000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  ................",
        "00000010  10 11                                            ..",
    ]


def test_dead_letters_of_a_file_that_was_replayed_are_refused_with_what_to_do() -> None:
    settings = Settings()

    def why(*headers: tuple[str, bytes]) -> str | None:
        return refusal_of(found(letter_of(topic="flows-replay", message_headers=headers)), settings)

    own = (HEADER_LANE, encode_header(LaneHeader(name="replay:x")))
    declared = (HEADER_LANE, encode_header(LaneHeader(name="default")))
    assert "correct the file and push it again under the same name" in (why(own) or "")
    assert "push the file again" in (why() or "")
    assert why(declared) is None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("fixed:acme", "acme"), ("field", "initech"), ("key", "k"), ("header:t", "h"), ("header:other", None)],
)
def test_the_tenant_is_told_by_the_topic_s_rule(rule: str, expected: str | None) -> None:
    guess = TenantGuess(Settings(flows=(FlowTopic(tenant_from=rule),)))
    letter = letter_of(payload=b'{"tenant":"initech"}', message_key=b"k", message_headers=(("t", b"h"),))
    assert guess.of(letter) == expected
    assert guess.of(letter_of(topic="another")) is None
    assert TenantGuess(Settings()).of(letter_of(payload=b"junk")) is None
