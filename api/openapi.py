"""What FastAPI leaves unsaid in the OpenAPI document: problems, 304, and an example of every answer."""

from typing import Any

from fastapi import FastAPI

from api.conditional import is_cacheable
from api.problems import MEDIA_TYPE

Json = dict[str, Any]

_EXAMPLES: Json = {
    "src": "checkout",
    "dst": "payment",
    "service": "payment",
    "port": 50051,
    "protocol": 6,
    "lane": "default",
    "series_lane": "default",
    "generation": 0,
    "kind": "latency_increase",
    "activity": "create",
    "severity": "high",
    "worst_severity": "high",
    "subject": "checkout -> payment:50051",
    "message": "Calls from checkout to payment took 584 ms (p95), usually 6.9 ms.",
    "what": "Calls from checkout to payment took 584 ms (p95), usually 6.9 ms.",
    "why": ["latency_p95_us is 584.4 ms, expected 6.89 ms, a score of 414.8 (from 211 against 58 windows before)."],
    "checks": ["Look at the CPU of payment"],
    "event_id": "3f0d6c1b9a2e4d5f8c7b6a5948372615",
    "finding_id": "9b1c2d3e4f5061728394a5b6c7d8e9f0",
    "status": "open",
    "origin": ["payment"],
    "path": ["frontend", "checkout", "payment"],
    "entry_points": ["frontend"],
    "notes": [],
    "reasons": ["shop/web would call data/db:5432 for the first time: container web, variable DATABASE."],
    "effect": "adds",
    "file": "web.yaml",
    "line": 4,
    "drift_kinds": ["new_edge"],
    "bucket_ms": 60_000,
    "window_start_ms": 1_769_860_800_000,
    "account": "ann",
    "tenant": "acme",
    "role": "viewer",
    "incomplete": [],
    "next_cursor": None,
    "signal": "latency_p95_us",
    "unit": "us",
    "detector": "robust_z",
    "lanes": ["default"],
    "model": "3b9d7e5c2a10",
}
"""What fields are usually called and hold; others take their own examples, or a plain value of their type."""
_PLAIN: Json = {"string": "", "integer": 1, "number": 1.0, "boolean": False, "null": None}
_START_MS, _END_MS = 1_769_860_800_000, 1_769_864_400_000


def example_of(schema: Json, parts: Json, name: str = "") -> Any:
    """Return a value that a JSON Schema of this API allows. ``parts``: the document's schemas by name."""
    if "$ref" in schema:
        return example_of(parts[schema["$ref"].rpartition("/")[2]], parts, name)
    if schema.get("examples"):
        given, fields = schema["examples"][0], schema.get("properties", {})
        if not isinstance(given, dict):
            return given
        # A model that extends another has the other's example, too.
        return {key: example_of(one, parts, key) for key, one in fields.items() if key not in given} | given
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if "anyOf" in schema:
        known = _EXAMPLES.get(name, ...)
        return known if known is not ... else example_of(schema["anyOf"][0], parts, name)
    kind = schema.get("type")
    if kind == "object":
        return {key: example_of(one, parts, key) for key, one in schema.get("properties", {}).items()}
    known = _EXAMPLES.get(name, ...)
    if kind == "array":
        items = schema.get("items", {})
        is_plain = "$ref" not in items
        return known if is_plain and isinstance(known, list) else [example_of(items, parts, name)]
    if known is not ... and not isinstance(known, list):
        return known
    if name.endswith("_ms"):
        return _END_MS if "until" in name or "end" in name or "last" in name else _START_MS
    return _PLAIN.get(kind or "", None)


def complete_openapi(app: FastAPI) -> None:
    """Have the application's OpenAPI document say that errors are problems, which answers can be 304, and examples."""
    generate = app.openapi

    def openapi() -> Json:
        document = generate()
        parts = document["components"]["schemas"]
        for path, item in document["paths"].items():
            for method, operation in item.items():
                responses = operation["responses"]
                for status, response in responses.items():
                    _complete(status, response, parts)
                if is_cacheable(method.upper(), path) and "application/json" in responses["200"].get("content", {}):
                    _say_unchanged(operation, responses)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(status: str, response: Json, parts: Json) -> None:
    content = response.get("content", {})
    if status >= "400":
        if "application/json" in content:
            content[MEDIA_TYPE] = content.pop("application/json")
    elif "application/json" in content and "example" not in content["application/json"]:
        answer = content["application/json"]
        answer["example"] = example_of(answer["schema"], parts)


def _say_unchanged(operation: Json, responses: Json) -> None:
    tag = {"description": "Send it as `If-None-Match`: 304 says that nothing changed.", "schema": {"type": "string"}}
    responses["200"].setdefault("headers", {})["ETag"] = tag
    responses["304"] = {"description": "As the answer whose ETag `If-None-Match` names."}
