"""Text of YAML or JSON to documents that know their lines. Pure: plain values alone, whatever tags the text has."""

from typing import Any

import yaml

from models.prediction.documents import LINE, Document
from schemas.errors import WireFormatError

MAX_ALIASES = 1_000
"""Anchors a text may repeat: a few lines of them can stand for gigabytes."""

# PyYAML's constructors raise these on scalars that are not what their tag says: !!int "", !!timestamp x, 4,301 digits.
_UNREADABLE = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError, OverflowError)


def documents_of(text: str, name: str, max_aliases: int = MAX_ALIASES) -> list[Document]:
    """Return the mappings among the documents of a text; ``name`` is where their locations point.

    Raises:
        WireFormatError: it is no YAML, or repeats more than ``max_aliases`` anchors; the text names the line.
    """

    class Loader(_Loader):
        most_aliases = max_aliases

    try:
        values = list(yaml.load_all(text, Loader))  # a safe loader
    except _UNREADABLE as error:
        raise WireFormatError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    return [Document(name, value) for value in values if isinstance(value, dict)]


class _Loader(yaml.SafeLoader):
    """Keeps the line at which each mapping starts."""

    most_aliases = MAX_ALIASES
    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > self.most_aliases:
                raise yaml.YAMLError("too many aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        found = super().construct_mapping(node, deep=deep)
        found[LINE] = node.start_mark.line + 1
        return found
