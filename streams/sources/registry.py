"""Every source format by its name. Adding one: its file, and its line here. Pure."""

from schemas.errors import ConfigurationError
from streams.sources.canonical import Canonical
from streams.sources.canonical_arrow import CanonicalArrow
from streams.sources.canonical_json import CanonicalJson
from streams.sources.format import SourceFormat

FORMATS: dict[str, SourceFormat] = {
    source_format.name: source_format
    for source_format in (
        Canonical(),
        CanonicalJson(),
        CanonicalArrow(),
    )
}


def source_format(name: str) -> SourceFormat:
    """Return the format of that name.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise ConfigurationError(f"unknown format {name!r}; known are {', '.join(sorted(FORMATS))}") from None
