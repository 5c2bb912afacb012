"""Policy files become documents, or say in one line why not; the example in the manual is one."""

import re
from pathlib import Path

import pytest

from deploy.policy_files import read_policy_file
from schemas.errors import ConfigurationError
from schemas.policies import encode_policies, read_policies

MANUAL = Path(__file__).parents[3] / "docs" / "policies.md"


def test_the_example_of_the_manual_is_read_and_survives_the_way_to_kafka(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", MANUAL.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "policies.yaml"
    file.write_text(example, encoding="utf-8")
    policies = read_policy_file(file)
    assert [rule.name for rule in policies.rules][:2] == ["db-from-backend", "db-from-nobody-else"]
    assert policies.rules[1].src == ("*",), "one name stands for a list"
    assert read_policies(encode_policies(policies)) == policies


@pytest.mark.parametrize(
    "text",
    [
        "rules: [{name: a, action: perhaps}]",
        "rules: [",
        "[]",
        "rules: {a: 1}",
        "rules: [{name: a, action: deny, from: 3}]",
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "policies.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=re.escape("policies.yaml")) as caught:
        read_policy_file(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_policy_file(tmp_path / "none.yaml")
