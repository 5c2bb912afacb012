"""Generates the documents of the public contract: JSON Schemas of messages, and the AsyncAPI document of the topics.

`python -m schemas.public` writes schemas/json/v1/, `--check` says what is not current, `--release` also keeps the
result as the version that later ones must stay compatible with (schemas/json/v1/released/).
"""

import argparse
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from schemas.compatibility import incompatibilities
from schemas.dead_letter import KEPT_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES, Reason
from schemas.flow import Flow
from schemas.ocsf import EVENT_SCHEMA, EVENT_TYPE, EVENT_VERSION
from schemas.ocsf_types import DetectionFinding
from schemas.topics import DEAD_LETTER, DRIFT_CONTROLS, DRIFT_EVENTS, HEADER_TENANT, TopicDeclaration

Json = dict[str, Any]

FOLDER = Path(__file__).parent / "json" / f"v{EVENT_VERSION}"
RELEASED = FOLDER / "released"
FLOW_SCHEMA = f"urn:secureguard:drift:schema:v{EVENT_VERSION}:flow"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
KAFKA_BINDING = "0.5.0"


def _schema_of(record: type[msgspec.Struct], identity: str, title: str) -> Json:
    """Return the JSON Schema of a struct, its own definition at the root."""
    (root,), definitions = msgspec.json.schema_components([record])
    own = definitions.pop(root["$ref"].rpartition("/")[2]) if "$ref" in root else root
    schema = {"$schema": DIALECT, "$id": identity, **own, "title": title}
    if definitions:
        schema["$defs"] = definitions
    plain: Json = _plain(schema)
    return plain


def _plain(value: Any) -> Any:
    """Take the indentation of docstrings out of descriptions."""
    if isinstance(value, dict):
        return {
            key: inspect.cleandoc(item) if key == "description" and isinstance(item, str) else _plain(item)
            for key, item in value.items()
        }
    return [_plain(item) for item in value] if isinstance(value, list) else value


def flow_schema() -> Json:
    """Return the JSON Schema of one canonical flow record."""
    return _schema_of(Flow, FLOW_SCHEMA, "Canonical flow record")


def drift_event_schema() -> Json:
    """Return the JSON Schema of one message of `drift-events`."""
    return _schema_of(DetectionFinding, EVENT_SCHEMA, "Drift event: OCSF 1.8.0 Detection Finding")


def _text(description: str, **more: Any) -> Json:
    return {"type": "string", "description": description, **more}


def _channel(declaration: TopicDeclaration, description: str, *messages: str) -> Json:
    configuration: Json = {}
    for name, value in declaration.config.items():
        configuration[name] = [value] if name == "cleanup.policy" else int(value) if value.isdigit() else value
    return {
        "address": declaration.default_name,
        "description": description,
        "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in messages},
        "bindings": {"kafka": {"topicConfiguration": configuration, "bindingVersion": KAFKA_BINDING}},
    }


def _operation(action: str, channel: str, summary: str) -> Json:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


def _message(
    title: str, content_type: str, payload: Json | bool, key: str, headers: Json, required: tuple[str, ...]
) -> Json:
    message: Json = {
        "title": title,
        "contentType": content_type,
        "payload": payload,
        "bindings": {"kafka": {"key": _text(key), "bindingVersion": KAFKA_BINDING}},
    }
    if headers:
        message["headers"] = {"type": "object", "properties": headers}
        if required:
            message["headers"]["required"] = list(required)
    return message


def _messages() -> Json:
    any_key = "anything, or none"
    tenant = {HEADER_TENANT: _text("the tenant, where the topic's configuration takes it from this header")}
    flow = {"$ref": "./flow.json"}
    cloudevents = {
        "ce_specversion": _text("CloudEvents", const="1.0"),
        "ce_id": _text("the event's id: drop repeats by it"),
        "ce_type": _text("kind of message", const=EVENT_TYPE),
        "ce_source": _text("/secureguard-drift/<tenant>/<lane>, percent-encoded"),
        "ce_time": _text("event time, RFC 3339 UTC", format="date-time"),
        "ce_subject": _text("the finding's id, the same in Create, Update and Close"),
        "ce_dataschema": _text("$id of the payload's JSON Schema", const=EVENT_SCHEMA),
        "content-type": _text("of the payload", const="application/json"),
    }
    dead_letter = {
        "reason": _text("why the record could not be used", enum=[reason.value for reason in Reason]),
        "detail": _text("what was wrong with it"),
        "source": _text("topic:partition:offset:index"),
        "format": _text("the format the topic is configured for"),
    }
    kept = f"over {MAX_PAYLOAD_BYTES} bytes: the first {KEPT_PAYLOAD_BYTES}, and headers with length and SHA-256"
    control = {"type": "object", "description": "JSON by kind; an empty value removes"}
    return {
        "flow": _message("One flow", "application/json", flow, any_key, tenant, ()),
        "flows": _message(
            "Several flows: a JSON array; or NDJSON, one flow a line",
            "application/json",
            {"type": "array", "items": flow, "minItems": 1},
            any_key,
            tenant,
            (),
        ),
        "flowColumns": _message(
            "Several flows as an Arrow IPC stream whose columns have the names of a flow's fields",
            "application/vnd.apache.arrow.stream",
            {"type": "string", "format": "binary"},
            any_key,
            tenant,
            (),
        ),
        "deadLetter": _message(
            f"The original bytes ({kept})",
            "application/octet-stream",
            {"type": "string", "format": "binary"},
            DEAD_LETTER.key,
            dead_letter,
            tuple(dead_letter),
        ),
        "driftEvent": _message(
            "Create, Update or Close of a finding",
            "application/json",
            {"$ref": "./drift-event.json"},
            DRIFT_EVENTS.key,
            cloudevents,
            tuple(cloudevents),
        ),
        "control": _message("A control record", "application/json", control, DRIFT_CONTROLS.key, {}, ()),
    }


def asyncapi() -> Json:
    """Return the AsyncAPI 3.0 document of the public topics, with Kafka bindings, as this application sees them."""
    flows = TopicDeclaration("flows", "flows", "any", "flows in the producer's format")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "SecureGuard Drift",
            "version": f"{EVENT_VERSION}.0.0",
            "description": "Topics that producers of flows and consumers of drift events use. Names are defaults.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "flows": _channel(flows, "Flows of services, as observed.", "flow", "flows", "flowColumns"),
            "deadLetters": _channel(DEAD_LETTER, "Records that could not be used.", "deadLetter"),
            "driftEvents": _channel(DRIFT_EVENTS, "Findings, in order per key; at least once.", "driftEvent"),
            "driftControls": _channel(DRIFT_CONTROLS, "What operators decide; compacted.", "control"),
        },
        "operations": {
            "readFlows": _operation("receive", "flows", "Flows are read."),
            "keepDeadLetters": _operation("send", "deadLetters", "Records that could not be used are kept."),
            "sendDriftEvents": _operation("send", "driftEvents", "Drift is told."),
            "readControls": _operation("receive", "driftControls", "Decisions of operators are read."),
        },
        "components": {"messages": _messages()},
    }


DOCUMENTS: dict[str, Callable[[], Json]] = {
    "flow.json": flow_schema,
    "drift-event.json": drift_event_schema,
    "asyncapi.json": asyncapi,
}
IS_INPUT = {"flow.json": True, "drift-event.json": False}
"""Schemas under the promise of compatibility, and whether others write (input) or read (output) what they describe."""


def rendered() -> dict[str, str]:
    """Return every document by file name."""
    return {name: json.dumps(make(), indent=1, ensure_ascii=False) + "\n" for name, make in DOCUMENTS.items()}


def stale(folder: Path = FOLDER) -> list[str]:
    """Name the documents in ``folder`` that are missing or differ from what the code says."""
    return [
        name
        for name, text in rendered().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def broken_promises(released: Path = RELEASED) -> list[str]:
    """Say what the current schemas break of the released ones."""
    problems = []
    for name, is_input in IS_INPUT.items():
        old = json.loads((released / name).read_text(encoding="utf-8"))
        problems += [f"{name}: {problem}" for problem in incompatibilities(old, DOCUMENTS[name](), is_input=is_input)]
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Write or check the documents; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m schemas.public", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a document is not current")
    parser.add_argument("--release", action="store_true", help="also keep the schemas as the released version")
    options = parser.parse_args(arguments)
    if options.check:
        problems = [f"{name} is not current: run python -m schemas.public" for name in stale()] + broken_promises()
        for problem in problems:
            print(problem, file=sys.stderr)
        return 1 if problems else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    RELEASED.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        if options.release and name in IS_INPUT:
            (RELEASED / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
