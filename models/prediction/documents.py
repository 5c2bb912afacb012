"""Values of YAML documents, read without trust: what is not of the shape expected is empty. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.prediction import Location

LINE = "\0line"
"""Key under which a mapping holds the line it starts at; no YAML key is spelled so."""


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document of a file."""

    file: str
    value: Mapping[str, Any]

    def location(self, value: Any = None) -> Location:
        """Return where a mapping of the document, or the document, starts."""
        at = value if isinstance(value, Mapping) and LINE in value else self.value
        return Location(self.file, int(at.get(LINE, 0)))


def mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping without what says its line; empty for anything else."""
    if not isinstance(value, Mapping):
        return {}
    return {key: one for key, one in value.items() if key != LINE}


def sequence(value: object) -> Sequence[Any]:
    """Return a sequence; empty for anything else."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def texts(value: object) -> dict[str, str]:
    """Return a mapping of scalars as text, as labels are."""
    return {str(key): str(one) for key, one in mapping(value).items()}
