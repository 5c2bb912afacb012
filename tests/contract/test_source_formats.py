"""Producers' formats are what their examples and docs/sources/README.md say; none lets anything but a verdict out."""

import json
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from deploy.source_catalogue import IS_CARRIED, message_of
from schemas.flow import MAX_MEASURE, UNKNOWN
from streams.sources.format import Decoded
from streams.sources.registry import ARGUMENTS, AUTO, FORMATS, format_of_file, source_format
from tests.bench.fuzz_sources import FUZZED, Violation, as_seen, check, fuzz
from tests.bench.mutations import messages

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "schemas/examples/sources"
PAGES = ROOT / "docs/sources"
PRODUCERS = [name for name in FORMATS if not name.startswith("canonical") and name != AUTO]
CASES = [json.loads(line) for path in sorted(EXAMPLES.glob("*.jsonl")) for line in path.read_text().splitlines()]
PLAIN = {("calls", 1), ("sampling", 1), ("continued", 0)}
"""Marks, and a count, that go without saying."""


class Targets(dict[str | None, int]):
    def __missing__(self, tenant: str | None) -> int:
        return 0


def flows_of(decoded: Decoded) -> list[dict[str, Any]]:
    """Rows as the examples write them: what is unknown left out."""
    found = []
    for run in decoded.runs:
        grouping = run.group("t", Targets())
        for row in range(len(run.message)):
            _, src, dst, port, protocol = grouping.edges[int(grouping.edge[row])]
            known = {name: int(column[row]) for name, column in run.columns.items() if column[row] != UNKNOWN}
            known = {name: value for name, value in known.items() if (name, value) not in PLAIN}
            found.append({"src": src, "dst": dst, "port": port, "protocol": protocol, **known})
    return found


def cases_of(name: str) -> list[dict[str, Any]]:
    return [case for case in CASES if case["format"].partition("?")[0] == name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['format'].partition('?')[0]}: {case['name']}")
def test_an_example_is_read_as_it_says(case: dict[str, Any]) -> None:
    value = message_of(case)
    decoded = source_format(case["format"]).decode([value])
    assert flows_of(decoded) == case["flows"]
    assert dict(decoded.skipped) == case["skipped"]
    signals = [{"kind": s.kind, "host": s.host, "count": s.count, "time_ms": s.time_ms} for s in decoded.signals]
    assert signals == case["signals"]
    assert [{"reason": bad.reason, "detail": bad.detail} for bad in decoded.rejected] == case["rejected"]
    check(decoded, [value])
    assert case["source"] and case["origin"]


@pytest.mark.parametrize("name", PRODUCERS)
def test_no_example_changes_what_becomes_of_its_neighbours(name: str) -> None:
    values = [message_of(case) for case in cases_of(name)] * 2
    reading = source_format(name)
    alone = [(n, *entry[1:]) for n, value in enumerate(values) for entry in as_seen(reading.decode([value]))]
    assert as_seen(reading.decode(values)) == alone
    backwards = [(n, *entry[1:]) for n, value in enumerate(values[::-1]) for entry in as_seen(reading.decode([value]))]
    assert as_seen(reading.decode(values[::-1])) == backwards


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("behind", [b'{"a":1}', b"\x0a\x02", b"\xff\xff\xff\xff"])
def test_a_schema_registrys_prefix_is_named(name: str, behind: bytes) -> None:
    decoded = source_format(name).decode([b"\0\0\0\0\7" + behind])
    assert [bad.reason for bad in decoded.rejected] == ["malformed"] and not decoded.runs
    assert "Confluent wire prefix (schema id 7)" in decoded.rejected[0].detail


def test_every_format_has_examples_good_and_bad() -> None:
    for name in PRODUCERS:
        cases = cases_of(name)
        assert any(case["flows"] for case in cases) and any(case["rejected"] for case in cases)
        assert any(case["skipped"] for case in cases)


# -- the table ---------------------------------------------------------------------------------------------------------


def table() -> dict[str, dict[str, bool]]:
    """The table of docs/sources/README.md: format, then what it carries."""
    lines = [line for line in (PAGES / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    names = [cell.strip() for cell in lines[0].strip("|").split("|")][1:]
    rows = {}
    for line in lines[2:]:
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        match = re.fullmatch(r"\[`([a-z-]+)`\]\([a-z-]+\.md\)", first)
        if match is not None:
            assert set(cells) <= {"yes", "–"}
            rows[match[1]] = {name: cell == "yes" for name, cell in zip(names, cells, strict=True)}
    return rows


@pytest.mark.parametrize("name", PRODUCERS)
@pytest.mark.parametrize("what", [*IS_CARRIED, "loss reports"])
def test_the_table_says_what_a_format_carries(name: str, what: str) -> None:
    cases = cases_of(name)
    if what == "loss reports":
        carries = any(case["signals"] for case in cases)
    else:
        carries = any(IS_CARRIED[what](flow) for case in cases for flow in case["flows"])
    assert table()[name][what] is carries


@pytest.mark.parametrize("name", PRODUCERS)
def test_the_page_says_where_a_formats_records_are_from(name: str) -> None:
    page = (PAGES / "README.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    origins = [case["origin"] for case in cases_of(name)]
    kinds = ("documentation", "the tool's own tests", "made for this repository after")
    assert all(origin.startswith(kinds) for origin in origins)
    said = [cell.strip() == "yes" for cell in row.strip("|").split("|")[1:4]]
    assert said == [any(origin.startswith(kind) for origin in origins) for kind in kinds]


def test_every_format_has_a_page_that_names_its_arguments() -> None:
    assert set(table()) == set(PRODUCERS)
    for name in PRODUCERS:
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert f"format: {name}" in page
        assert all(f"`{argument}`" in page for argument in ARGUMENTS.get(name, ())), name


# -- auto --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRODUCERS)
def test_auto_takes_a_format_and_keeps_to_it(name: str) -> None:
    good = [message_of(case) for case in cases_of(name) if case["flows"] and case["format"] == name]
    other = next(case for case in CASES if case["flows"] and case["format"] not in (name, "aws-vpc", "zeek-conn"))
    reading = source_format(AUTO)
    assert reading.name == "auto"
    decoded = reading.decode([b"\0\0\0\0\7{}", b"", *good, message_of(other)])
    assert reading.name == f"auto:{name}"
    assert [(bad.message, bad.reason) for bad in decoded.rejected if bad.message < 2] == [
        (0, "malformed"),
        (1, "empty"),
    ]
    assert "Confluent wire prefix (schema id 7)" in decoded.rejected[0].detail
    assert decoded.rejected[-1].message == len(good) + 2
    assert flows_of(decoded) == [flow for case in cases_of(name) if case["format"] == name for flow in case["flows"]]
    again = reading.decode([message_of(other), good[0]])
    assert [bad.message for bad in again.rejected] == [0] and len(again.runs) == 1
    assert source_format(AUTO).name == "auto"


@pytest.mark.parametrize("name", PRODUCERS)
def test_auto_knows_a_file_by_its_first_lines(name: str) -> None:
    good = [case.get("value", "\n") for case in cases_of(name) if case["flows"] and case["format"] == name]
    head = "\n".join(value for value in good if "\n" not in value).encode()
    assert format_of_file(AUTO, head).partition("?")[0] == name
    assert format_of_file(AUTO, head[:-20]).partition("?")[0] == name


# -- fuzzing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUZZED)
def test_mutated_records_get_a_verdict_and_nothing_else(name: str) -> None:
    counts = fuzz(name, 2_000, seed=4)
    assert counts["messages"] == 2_000 and counts["flows"] > 60 and counts["dead"] > 60


class Broken:
    """A format with a fault that only a verdict's laws show."""

    name = "broken"

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._reading = source_format("zeek-conn")

    def decode(self, values: Sequence[bytes]) -> Decoded:
        decoded = self._reading.decode(values)
        if self._fault == "raises" and len(decoded.rejected) > 2:
            raise KeyError("x")
        for run in decoded.runs:
            if self._fault == "bounds" and "bytes_out" in run.columns:
                run.columns["bytes_out"] = run.columns["bytes_out"] + (MAX_MEASURE + 1)
            if self._fault == "silence" and len(run.message) > 1:
                run.message = run.message[:1]
            if self._fault == "neighbours" and len(values) > 50:
                run.columns["time_ms"] = run.columns["time_ms"] // 1_000 * 1_000
        return decoded


@pytest.mark.parametrize("fault", ["raises", "bounds", "silence", "neighbours"])
def test_a_fault_of_a_decoder_is_a_violation(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.fuzz_sources.source_format", lambda _name: Broken(fault))
    with pytest.raises(Violation, match="zeek-conn, seed 4, batch"):
        fuzz("zeek-conn", 2_000, seed=4)


def test_the_same_seed_gives_the_same_mutations() -> None:
    pool = list(map(message_of, CASES))
    one, again = (list(islice(messages("1", pool), 2_000)) for _ in range(2))
    assert one == again and len(set(one)) > 1_000 and list(islice(messages("2", pool), 2_000)) != one
