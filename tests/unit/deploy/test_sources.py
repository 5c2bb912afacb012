"""`drift sources`: lists what the documentation's table says, and explains a record by what its fields really do."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from deploy.source_catalogue import CARRIES, OPTIONS, catalogue, examples_of, message_of
from deploy.source_explanation import FLOW_KEYS, columns_of, explain, verdict_of
from streams.sources.registry import ARGUMENTS, AUTO, FORMATS, source_format
from tests.command import drift

PAGE = Path(__file__).parents[3] / "docs/sources/README.md"
PRODUCERS = [name for name in FORMATS if not name.startswith("canonical") and name != AUTO]
CASES = [case for name in PRODUCERS for case in examples_of(name)]
CONN = {
    "ts": 1591367999.305988,
    "uid": "CMdzit1AMNsmfAIiQc",
    "id.orig_h": "192.168.4.76",
    "id.orig_p": 36844,
    "id.resp_h": "192.168.4.1",
    "id.resp_p": 53,
    "proto": "udp",
    "duration": 0.066851,
    "orig_bytes": 62,
    "resp_bytes": 141,
    "conn_state": "SF",
    "orig_pkts": 1,
    "resp_pkts": 1,
}
DNS = {"_path": "dns", "ts": 1.0}
SHOWN = (
    ("client      ip:192.168.4.76  <- id.orig_h", "server      ip:192.168.4.1  <- id.resp_h"),
    ("port        53  <- id.resp_p", "time        2020-06-05T14:39:59.371+00:00  <- ts, duration"),
    ("bytes_out   62  <- orig_bytes", "latency_us  66851  <- duration"),
    ("errors      unknown", "another id.resp_p would turn it round"),
    ("without id.orig_h: dead letter: malformed", "a flow: ip:192.168.4.76 -> ip:192.168.4.1:53 (udp)"),
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "sensor.log"
    wrong = {**CONN, "id.resp_p": 70_000}
    path.write_text("".join(json.dumps(record) + "\n" for record in (DNS, CONN, wrong)) + "\x1b[31mred\n")
    return path


# -- the list ----------------------------------------------------------------------------------------------------------


def page_table() -> dict[str, set[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    names = [cell.strip() for cell in lines[0].strip("|").split("|")][1:]
    assert names == list(CARRIES)
    table = {}
    for line in lines[2:]:
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if first.startswith("[`") and len(cells) == len(names):
            table[first[2:].partition("`")[0]] = {
                name for name, cell in zip(names, cells, strict=True) if cell == "yes"
            }
    return table


def test_the_list_is_the_table_of_the_documentation() -> None:
    listed = {entry.name: entry for entry in catalogue()}
    assert set(listed) == set(FORMATS)
    assert {name: set(listed[name].carries) for name in PRODUCERS} == page_table()
    for name, entry in listed.items():
        assert tuple(entry.options) == ARGUMENTS.get(name, ())
        assert all(entry.options.values()) and set(entry.options) <= set(OPTIONS)


def test_the_list_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = drift(capsys, monkeypatch, "sources", "--json")
    entries = json.loads(out)
    assert code == 0 and {entry["format"] for entry in entries} == set(FORMATS)
    assert all(set(entry) == {"format", "carries", "options", "note"} for entry in entries)
    _, out, _ = drift(capsys, monkeypatch, "sources")
    assert all(name in out for name in FORMATS) and "time=  event time" in out


# -- one record --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['format'].partition('?')[0]}: {case['name']}")
def test_what_is_explained_is_what_the_format_makes_of_it(case: dict[str, Any]) -> None:
    value = message_of(case)
    examples = [message_of(other) for other in examples_of(case["format"].partition("?")[0])][:10]
    found = explain(case["format"], value, examples)
    assert len(found.verdict.flows) == len(case["flows"])
    for flow, expected in zip(found.verdict.flows, case["flows"], strict=True):
        assert set(flow) == set(FLOW_KEYS)
        assert (flow["src"], flow["dst"], flow["port"] or -1) == (expected["src"], expected["dst"], expected["port"])
        assert flow["time_ms"] == expected["time_ms"]
        assert [flow[key] for key in ("bytes_out", "errors", "latency_us")] == [
            expected.get(key) for key in ("bytes_out", "errors", "latency_us")
        ]
    assert dict(found.verdict.skipped) == case["skipped"]
    assert found.verdict.dead == [(bad["reason"], bad["detail"]) for bad in case["rejected"]]
    names = {name for name, _ in found.fields or ()}
    told = {name for source in found.sources.values() for name in (*source.fields, *source.also)}
    assert told | set(found.needed) | set(found.turned_by) | set(found.decided_by) <= set(found.used) <= names
    if len(found.verdict.flows) == 1 and found.fields is not None:  # a time does not come from nowhere
        assert "time_ms" in found.sources or any("time" in why for why in found.needed.values())


def test_fields_give_what_they_hold() -> None:
    found = explain("zeek-conn", json.dumps(CONN).encode())
    sources = {key: source.fields for key, source in found.sources.items()}
    assert sources["src"] == ["id.orig_h"] and sources["dst"] == ["id.resp_h"]
    assert sources["time_ms"] == ["ts", "duration"]
    assert sources["bytes_out"] == ["orig_bytes"] and sources["latency_us"] == ["duration"]
    assert "uid" not in found.used and "proto" in found.used
    at_start = explain("zeek-conn?time=start", json.dumps(CONN).encode())
    assert at_start.sources["time_ms"].fields == ["ts"]


def test_direction_is_told_by_the_fields_that_turn_it() -> None:
    record = {**CONN, "id.orig_p": 53, "id.resp_p": 36844}
    found = explain("zeek-conn", json.dumps(record).encode())
    assert found.verdict.flows[0]["src"] == "ip:192.168.4.1" and found.sources["src"].fields == ["id.resp_h"]
    assert "id.orig_p" in found.turned_by


def test_records_in_a_shippers_envelope_and_lines_of_columns_are_taken_apart() -> None:
    wrapped = json.dumps({"message": json.dumps(CONN), "agent": "filebeat"}).encode()
    found = explain("zeek-conn", wrapped)
    assert found.sources["src"].fields == ["id.orig_h"] and "agent" not in found.used
    line = "2 1 eni-1 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK"
    for value in (line, json.dumps({"message": line})):
        found = explain("aws-vpc", value.encode())
        assert found.sources["src"].fields == ["srcaddr"] and found.sources["bytes_out"].fields == ["bytes"]


def test_a_field_put_back_as_it_was_changes_nothing() -> None:
    from deploy.source_explanation import _parts

    for case in CASES:
        value = message_of(case)
        expected = verdict_of(source_format(case["format"]), value)
        for part in _parts(value, columns_of(case["format"])) or ():
            again = verdict_of(source_format(case["format"]), part.put(part.value))
            assert (again.flows, again.skipped, len(again.dead)) == (
                expected.flows,
                expected.skipped,
                len(expected.dead),
            )


def test_the_first_flow_is_explained_step_by_step(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = drift(capsys, monkeypatch, "sources", "explain", str(log))
    assert code == 0 and "format zeek-conn, recognised" in out and "record 2" in out
    for line in (line for pair in SHOWN for line in pair):
        assert line in out


@pytest.mark.parametrize(
    ("number", "says"),
    [
        ("1", "not a flow record: dns"),
        ("3", "dead letter: invalid-value: Expected `int` <= 65535"),
        ("4", "neither JSON nor a line"),
    ],
)
def test_what_is_no_flow_is_explained(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: str, says: str
) -> None:
    code, out, _ = drift(capsys, monkeypatch, "sources", "explain", str(log), "--record", number)
    assert code == 0 and says in out and "\x1b" not in out
    if number == "3":
        assert "with another value in id.resp_p it would be something else" in out


def test_of_a_file_without_flows_the_first_dead_letter_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sensor.log"
    wrong = {**CONN, "id.resp_p": 70_000}
    path.write_text("".join(json.dumps(record) + "\n" for record in (DNS, DNS, wrong, DNS)))
    out = drift(capsys, monkeypatch, "sources", "explain", str(path), "--format", "zeek-conn")[1]
    assert "record 3, " in out and "4. became    a dead letter" in out and "<= 65535" in out
    path.write_text("".join(json.dumps(record) + "\n" for record in (DNS, DNS)))
    out = drift(capsys, monkeypatch, "sources", "explain", str(path), "--format", "zeek-conn")[1]
    assert "record 1, " in out and "not a flow record: dns" in out


def test_an_explanation_is_one_json_object(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("sources", "explain", "--format", "zeek-conn", str(log), "--record", "2", "--json")
    _, out, _ = drift(capsys, monkeypatch, *arguments)
    told = json.loads(out)
    assert set(told) == {
        *("file", "packing", "layout", "format", "options", "is_recognised", "record", "bytes", "became", "fields"),
        *("flows", "counts_as", "from", "turned_by", "needed", "decided_by", "not_flow", "losses", "dead_letters"),
    }
    assert (told["became"], told["record"], told["is_recognised"]) == ("flow", 2, False)
    assert told["from"]["src"] == {"fields": ["id.orig_h"], "also": []}
    assert told["counts_as"] == [{"src": "ip:192.168.4.76", "dst": "ip:192.168.4.1"}]
    assert {field["name"] for field in told["fields"] if not field["is_used"]} == {"uid", "id.orig_p"}


def test_an_explanation_names_the_ends_as_an_inventory_does(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = log.with_name("rules.yaml")
    rules.write_text("addresses: [{cidr: 192.168.4.1, name: home/router}]", encoding="utf-8")
    arguments = ("sources", "explain", str(log), "--record", "2", "--inventory", str(rules))
    _, out, _ = drift(capsys, monkeypatch, *arguments)
    assert "5. counts as ip:192.168.4.76 -> home/router" in out
    assert "ip:192.168.4.1 -> home/router: address rule 192.168.4.1/32 of document main" in out


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("sensor.log", ["--record", "9"], "sensor.log has 4 records"),
        ("empty.log", ["--format", "zeek-conn"], "empty.log has no records"),
        ("a.arrow", [], "nothing is to be explained"),
        ("absent.log", [], "cannot be read"),
    ],
)
def test_what_cannot_be_explained_is_named(
    log: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: list[str],
    says: str,
) -> None:
    (log.parent / "empty.log").touch()
    table = pa.Table.from_pylist([{"time_ms": 1, "src": "a", "dst": "b"}])
    with pa.OSFile(str(log.parent / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    code, _, err = drift(capsys, monkeypatch, "sources", "explain", str(log.parent / name), *arguments)
    assert code == 2 and says in err


def test_spans_of_a_message_are_explained_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = next(case for case in examples_of("otlp-traces") if case["name"].startswith("a trace: "))
    path = tmp_path / "traces.json"
    path.write_text(json.dumps(json.loads(trace["value"]), indent=2), encoding="utf-8")
    code, out, _ = drift(capsys, monkeypatch, "sources", "explain", str(path))
    assert code == 0 and "JSON value by value; format otlp-traces, recognised" in out
    assert all(f"record 1, span {number} of 6" in out for number in range(1, 7))
    assert "server      opentelemetry-demo/frontend  <- resource[service.namespace]" in out
    assert "not a flow record: nested" in out and "not a flow record: internal" in out
    code, out, _ = drift(capsys, monkeypatch, "sources", "explain", str(path), "--part", "6")
    assert code == 0 and out.count("2. read") == 1 and "valkey-cart:6379" in out
    code, out, _ = drift(capsys, monkeypatch, "sources", "explain", str(path), "--json", "--part", "2")
    told = json.loads(out)
    assert (told["parts_total"], [part["part"] for part in told["parts"]]) == (6, [2])
    assert told["parts"][0]["from"]["time_ms"]["fields"] == ["startTimeUnixNano"]
    assert drift(capsys, monkeypatch, "sources", "explain", str(path), "--part", "7")[0] != 0


def test_of_a_message_of_many_spans_the_first_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(
        next(case["value"] for case in examples_of("otlp-traces") if case["name"] == "a server's half")
    )
    document["resourceSpans"] *= 12
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")
    code, out, _ = drift(capsys, monkeypatch, "sources", "explain", str(path))
    assert code == 0 and out.count("2. read") == 10 and "2 spans more: --part N explains one of them" in out


def test_parts_are_for_messages_of_many_spans(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = drift(capsys, monkeypatch, "sources", "explain", str(log), "--part", "2")
    assert code != 0 and "--part is for messages of many spans (otlp-traces)" in err
