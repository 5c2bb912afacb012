"""The public contract: documents are current, later versions stay compatible, examples mean what they say."""

import base64
import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from schemas.compatibility import incompatibilities
from schemas.drift import Activity, DriftKind
from schemas.flow import Flow
from schemas.ids import MAX_RECORDS_PER_MESSAGE
from schemas.ocsf import cloudevents_headers, decode_event, encode_event
from schemas.public import DOCUMENTS, FOLDER, asyncapi, broken_promises, drift_event_schema, flow_schema, main, stale
from schemas.topics import DEAD_LETTER, DRIFT_CONTROLS, DRIFT_EVENTS
from streams.sources.canonical import Canonical
from tests.unit.schemas.events import make_event

EXAMPLES = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "schemas/examples/flows.jsonl").read_text(encoding="utf-8").splitlines()
]
GOOD_JSON = [case for case in EXAMPLES if not case["rejected"] and "value" in case]


def test_documents_are_current() -> None:
    assert stale() == [], "run python -m schemas.public"


def test_check_notices_what_is_not_current(tmp_path: Path) -> None:
    assert stale(tmp_path) == list(DOCUMENTS)
    for name in DOCUMENTS:
        (tmp_path / name).write_text((FOLDER / name).read_text(encoding="utf-8"), encoding="utf-8")
    assert stale(tmp_path) == []
    (tmp_path / "flow.json").write_text("{}", encoding="utf-8")
    assert stale(tmp_path) == ["flow.json"]
    assert main(["--check"]) == 0


def test_nothing_released_is_broken() -> None:
    assert broken_promises() == []


def changed(schema: dict[str, Any], change: str) -> dict[str, Any]:
    new = copy.deepcopy(schema)
    properties = new["properties"]
    match change:
        case "vanish":
            del properties["calls" if "calls" in properties else "message"]
        case "type":
            properties["calls" if "calls" in properties else "message"] = {"type": "boolean"}
        case "require":
            properties["colour"] = {"type": "string"}
            new["required"].append("colour")
        case "no longer there":
            new["required"].remove("src" if "src" in properties else "message")
        case "add":
            properties["colour"] = {"type": "string"}
        case "narrow":
            properties["calls"]["maximum"] = 10
        case "widen":
            properties["calls"]["maximum"] = 1 << 40
        case "nested type":
            new["$defs"]["Endpoint"]["properties"]["port"]["anyOf"][0]["type"] = "string"
        case "nested require":
            new["$defs"]["Metadata"]["required"].append("colour")
        case "new kind":
            new["$defs"]["DriftKind"]["enum"].append("zz_new")
        case "lost kind":
            new["$defs"]["DriftKind"]["enum"].remove("new_edge")
        case "lost protocol":
            properties["protocol"]["anyOf"][0]["enum"].remove("udp")
        case "new protocol":
            properties["protocol"]["anyOf"][0]["enum"].append("quic")
    return new


@pytest.mark.parametrize(
    ("change", "breaks_flow", "breaks_event"),
    [
        ("vanish", True, True),
        ("type", True, True),
        ("require", True, True),
        ("no longer there", False, True),
        ("add", False, False),
        ("narrow", True, None),
        ("widen", False, None),
        ("lost protocol", True, None),
        ("new protocol", False, None),
        ("nested type", None, True),
        ("nested require", None, True),
        ("new kind", None, False),
        ("lost kind", None, True),
    ],
)
def test_compatibility_rules(change: str, breaks_flow: bool | None, breaks_event: bool | None) -> None:
    if breaks_flow is not None:
        schema = flow_schema()
        assert bool(incompatibilities(schema, changed(schema, change), is_input=True)) == breaks_flow
    if breaks_event is not None:
        schema = drift_event_schema()
        assert bool(incompatibilities(schema, changed(schema, change), is_input=False)) == breaks_event


@pytest.mark.parametrize("make", [flow_schema, drift_event_schema])
def test_schemas_are_json_schema(make: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(make())


@pytest.mark.parametrize("kind", DriftKind)
@pytest.mark.parametrize("activity", Activity)
def test_events_fit_their_published_schema(kind: DriftKind, activity: Activity) -> None:
    published = json.loads((FOLDER / "drift-event.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(encode_event(make_event(kind, activity))), published)


def bytes_of(case: dict[str, Any]) -> bytes:
    return base64.b64decode(case["base64"]) if "base64" in case else case["value"].encode()


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: str(case["name"]))
def test_examples_are_read_as_they_say(case: dict[str, Any]) -> None:
    decoded = Canonical().decode([bytes_of(case)])
    assert sum(len(run.message) for run in decoded.runs) == case["flows"]
    rejected = [
        {"reason": item.reason, "index": None if item.index == MAX_RECORDS_PER_MESSAGE else item.index}
        for item in decoded.rejected
    ]
    assert rejected == case["rejected"]


def test_examples_leave_their_neighbours_alone() -> None:
    decoded = Canonical().decode([bytes_of(case) for case in EXAMPLES])
    assert sum(len(run.message) for run in decoded.runs) == sum(case["flows"] for case in EXAMPLES)
    assert len(decoded.rejected) == sum(len(case["rejected"]) for case in EXAMPLES)


def records_of(case: dict[str, Any]) -> list[Any]:
    text = bytes_of(case).decode("utf-8-sig")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = [json.loads(line) for line in text.splitlines()]
    return value if isinstance(value, list) else [value]


def test_published_flow_schema_agrees_with_the_decoder() -> None:
    validator = jsonschema.Draft202012Validator(json.loads((FOLDER / "flow.json").read_text(encoding="utf-8")))
    good = [record for case in GOOD_JSON for record in records_of(case)]
    assert len(good) >= 10
    for record in good:
        validator.validate(record)
    bad = [case for case in EXAMPLES if any(r["reason"] == "invalid-value" for r in case["rejected"])]
    assert len(bad) >= 5
    for case in bad:
        assert not validator.is_valid(records_of(case)[0]), case["name"]


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for item in value.values() for found in references(item)]
    return [found for item in value for found in references(item)] if isinstance(value, list) else []


def test_asyncapi_is_whole() -> None:
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0" and document["info"]["title"] and document["info"]["version"]
    for reference in references(document):
        if reference.startswith("#/"):
            place: Any = document
            for step in reference.removeprefix("#/").split("/"):
                place = place[step]
        else:
            assert (FOLDER / reference).is_file()
    assert {operation["action"] for operation in document["operations"].values()} == {"send", "receive"}
    used = {message for channel in document["channels"].values() for message in channel["messages"]}
    assert used == set(document["components"]["messages"])


def test_asyncapi_names_the_declared_topics() -> None:
    channels = {channel["address"]: channel for channel in asyncapi()["channels"].values()}
    assert set(channels) == {"flows", *(t.default_name for t in (DEAD_LETTER, DRIFT_EVENTS, DRIFT_CONTROLS))}
    kafka = channels["drift-controls"]["bindings"]["kafka"]
    assert kafka["topicConfiguration"]["cleanup.policy"] == ["compact"]
    assert channels["drift-events"]["bindings"]["kafka"]["topicConfiguration"]["retention.ms"] == 604_800_000


def test_asyncapi_headers_are_those_that_are_sent() -> None:
    described = asyncapi()["components"]["messages"]["driftEvent"]["headers"]
    headers = {name: value.decode() for name, value in cloudevents_headers(make_event())}
    jsonschema.validate(headers, described)
    assert set(headers) == set(described["properties"])


def test_flow_schema_has_every_field() -> None:
    assert set(flow_schema()["properties"]) == set(Flow.__struct_fields__)
    assert set(flow_schema()["required"]) == {"time_ms", "src", "dst"}


SIEM_PAGE = (Path(__file__).parents[2] / "docs/siem.md").read_text(encoding="utf-8")


def test_siem_page_shows_an_event_as_it_is_sent() -> None:
    example = SIEM_PAGE.split("```json\n")[1].split("```")[0]
    assert json.loads(example) == json.loads(encode_event(make_event()))
    assert decode_event(example.encode()) == make_event()


def test_siem_page_names_every_header_and_fields_that_exist() -> None:
    for name, _ in cloudevents_headers(make_event()):
        assert f"| `{name}` |" in SIEM_PAGE
    schema = drift_event_schema()
    ours = set(schema["$defs"]["DriftDetails"]["properties"])
    mapping = SIEM_PAGE.split("## Where things stand")[1].split("## A whole event")[0]
    for field in set(re.findall(r"unmapped\.drift\.([a-z_]+)", SIEM_PAGE)):
        assert field in ours, field
    for field in set(re.findall(r"`([a-z_]+)(?:\[\d?\])?\.", mapping)) - {"unmapped"}:
        assert field in schema["properties"] or field in ("observations",), field
    missing = {field for field in schema["properties"] if field.partition("_")[0] not in mapping}
    assert missing <= {"category_uid", "category_name", "class_uid", "class_name"}, missing
