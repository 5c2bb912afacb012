"""Whether a JSON Schema stays compatible with a released one: additive changes only. Pure.

Knows the part of JSON Schema that our generated schemas use; anything it does not know must be equal.
"""

from typing import Any

Json = dict[str, Any]

_ANNOTATIONS = frozenset({"$schema", "$id", "title", "description", "default", "examples", "$defs", "deprecated"})


def incompatibilities(old: Json, new: Json, *, is_input: bool) -> list[str]:
    """List what ``new`` breaks of ``old``; empty if it may follow it under the same version.

    Attributes:
        is_input: others write such messages, so what was valid must stay valid. Otherwise others read them, so what was
            always there must stay there. In both, no property may vanish, change its type or become required.
    """
    problems: list[str] = []
    _compare(old, new, old, new, "", is_input, problems, frozenset())
    return problems


def _resolve(schema: Json, root: Json) -> tuple[Json, str]:
    reference = schema.get("$ref", "")
    if not reference:
        return schema, ""
    name = reference.rpartition("/")[2]
    found: Json = root["$defs"][name]
    return found, name


def _compare(
    old: Json,
    new: Json,
    old_root: Json,
    new_root: Json,
    path: str,
    is_input: bool,
    problems: list[str],
    seen: frozenset[str],
) -> None:
    old, name = _resolve(old, old_root)
    new, _ = _resolve(new, new_root)
    if name and name in seen:
        return
    seen = seen | {name} if name else seen
    where = path or "the message"

    def descend(before: Json, after: Json, at: str) -> None:
        _compare(before, after, old_root, new_root, at, is_input, problems, seen)

    old_properties, new_properties = old.get("properties", {}), new.get("properties", {})
    for key, before in old_properties.items():
        if key in new_properties:
            descend(before, new_properties[key], f"{path}.{key}")
        else:
            problems.append(f"{path}.{key} has vanished")
    old_required, new_required = set(old.get("required", ())), set(new.get("required", ()))
    # A message written before must stay valid to a reader that validates with the new schema, in both directions.
    problems += [f"{path}.{key} has become required" for key in sorted(new_required - old_required)]
    if not is_input:
        problems += [f"{path}.{key} is no longer always there" for key in sorted(old_required - new_required)]
    if isinstance(old.get("items"), dict) and isinstance(new.get("items"), dict):
        descend(old["items"], new["items"], f"{path}[]")
    elif old.get("items") != new.get("items"):
        problems.append(f"{where} has other items")
    old_choices, new_choices = old.get("anyOf", ()), new.get("anyOf", ())
    if len(old_choices) == len(new_choices):
        for before, after in zip(old_choices, new_choices, strict=True):
            descend(before, after, path)
    else:
        problems.append(f"{where} has {len(new_choices)} alternatives, had {len(old_choices)}")
    problems += _changed_values(old, new, where, is_input)
    for key in sorted((old.keys() | new.keys()) - _ANNOTATIONS - _COMPARED):
        if old.get(key) != new.get(key):
            problems.append(f"{where}: {key} was {old.get(key)!r}, is {new.get(key)!r}")


_COMPARED = frozenset(
    {"properties", "required", "items", "anyOf", "enum", "minimum", "maximum", "minLength", "maxLength"}
)


def _changed_values(old: Json, new: Json, where: str, is_input: bool) -> list[str]:
    """Say which values vanished, and which bounds changed: of input they may only widen, of output only narrow."""
    problems = []
    gone = [value for value in old.get("enum", ()) if value not in new.get("enum", ())]
    if gone and "enum" in new:
        problems.append(f"{where} may no longer be {gone}")
    if is_input and "enum" in new and "enum" not in old:
        problems.append(f"{where} may no longer be anything")
    for key, sign in (("minimum", 1), ("minLength", 1), ("maximum", -1), ("maxLength", -1)):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        is_wider = after is None or (before is not None and (after - before) * sign < 0)
        if is_input != is_wider:
            problems.append(f"{where}: {key} was {before}, is {after}")
    return problems
