"""Label selectors of Kubernetes, over labels that may be unknown. Pure.

Source: Kubernetes API, ``meta/v1 LabelSelector``: all of ``matchLabels`` and ``matchExpressions`` must hold; an empty
selector selects everything.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from models.prediction.documents import mapping, sequence

Labels = Mapping[str, str]
NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""Label that the API server gives every namespace."""


def selects(selector: Mapping[str, Any], labels: Labels | None) -> bool | None:
    """Say whether a selector takes something with these labels; ``None`` where its labels are unknown and matter."""
    equal = mapping(selector.get("matchLabels"))
    expressions = [one for one in sequence(selector.get("matchExpressions")) if isinstance(one, Mapping)]
    if not equal and not expressions:
        return True
    if labels is None:
        return None
    return all(labels.get(str(key)) == str(value) for key, value in equal.items()) and all(
        _holds(one, labels) for one in expressions
    )


def _holds(expression: Mapping[str, Any], labels: Labels) -> bool:
    value = labels.get(str(expression.get("key", "")))
    among = {str(one) for one in sequence(expression.get("values"))}
    operator = expression.get("operator")
    if operator == "In":
        return value in among
    if operator == "NotIn":
        return value not in among
    if operator == "Exists":
        return value is not None
    return operator == "DoesNotExist" and value is None


def all_of(answers: Sequence[bool | None]) -> bool | None:
    """Return the conjunction where some answers are unknown."""
    if False in answers:
        return False
    return None if None in answers else True


def any_of(answers: Sequence[bool | None]) -> bool | None:
    """Return the disjunction where some answers are unknown."""
    if True in answers:
        return True
    return None if None in answers else False
