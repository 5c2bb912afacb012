"""`drift policies` writes documents, lists them, prints them so that they can be pushed again, and takes them away."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.commands import policies as command
from schemas.policies import POLICIES, read_policies

TEXT = 'rules:\n  - {name: no-test-in-prod, action: deny, from: test/*, to: "prod/*"}\n'


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Stand in for `drift-controls` of one tenant."""
    kept: dict[str, bytes] = {"broken": b"{"}

    async def read(_: object, tenant: str, kind: str) -> dict[str, bytes]:
        assert (tenant, kind) == ("acme", POLICIES)
        return dict(sorted(kept.items()))

    async def write(_: object, tenant: str, kind: str, values: dict[str, bytes]) -> None:
        assert (tenant, kind) == ("acme", POLICIES)
        kept.update(values)
        for name in [name for name, value in kept.items() if not value]:
            del kept[name]

    async def connected(_: object) -> None:
        return None

    monkeypatch.setattr(command, "read_controls", read)
    monkeypatch.setattr(command, "write_controls", write)
    monkeypatch.setattr(command, "check_connection", connected)
    return kept


def drift(*arguments: str) -> str:
    result = CliRunner().invoke(command.policies, [*arguments, "--tenant", "acme"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_document_goes_there_and_back(topic: dict[str, bytes], tmp_path: Path) -> None:
    file = tmp_path / "policies.yaml"
    file.write_text(TEXT, encoding="utf-8")
    assert drift("push", str(file)) == "document main of tenant acme holds from now on: 1 rule\n"
    assert read_policies(topic["main"]).rules[0].dst == ("prod/*",)
    assert json.loads(drift("list", "--json")) == [{"document": "main", "rules": 1}], "what is broken holds nowhere"
    again = tmp_path / "again.yaml"
    again.write_text(drift("show"), encoding="utf-8")
    before = topic["main"]
    drift("push", str(again))
    assert topic["main"] == before
    assert drift("remove", "--document", "main") == "document main of tenant acme is gone\n"
    assert "main" not in topic
    assert drift("list") == "tenant acme has no policies\n"


def test_what_is_not_there_is_one_clear_line(topic: dict[str, bytes]) -> None:
    for arguments in (["show"], ["remove", "--document", "other"]):
        result = CliRunner().invoke(command.policies, [*arguments, "--tenant", "acme"])
        assert result.exit_code != 0
        assert "see drift policies list" in str(result.exception)
