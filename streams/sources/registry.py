"""Every source format by its name. Adding one: its file, and its line here. Pure.

A format is spelled ``name``, ``name?key=value&key=value``, or ``name:value`` where it has one main argument.
"""

from collections.abc import Mapping
from typing import Any

from schemas.errors import ConfigurationError
from streams.sources.auto import Auto, recognised_in
from streams.sources.aws_vpc import AwsVpc
from streams.sources.canonical import Canonical
from streams.sources.canonical_arrow import CanonicalArrow
from streams.sources.canonical_json import CanonicalJson
from streams.sources.format import SourceFormat
from streams.sources.hubble import Hubble
from streams.sources.istio_access import IstioAccess
from streams.sources.netobserv import NetObserv
from streams.sources.otlp_traces import OtlpTraces
from streams.sources.suricata_eve import SuricataEve
from streams.sources.zeek_conn import ZeekConn

FORMATS: dict[str, SourceFormat] = {
    source_format.name: source_format
    for source_format in (
        Canonical(),
        CanonicalJson(),
        CanonicalArrow(),
        NetObserv(),
        Hubble(),
        IstioAccess(),
        AwsVpc(),
        ZeekConn(),
        SuricataEve(),
        OtlpTraces(),
    )
}
"""Each format without arguments, and ``auto``, which takes one of them."""

_RECOGNISED = {name: FORMATS[name] for name in FORMATS if name not in ("canonical-json", "canonical-arrow")}
AUTO = "auto"
FORMATS[AUTO] = Auto(_RECOGNISED)

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "netobserv": ("cluster", "time"),
    "hubble": ("cluster", "calls"),
    "istio-access": ("cluster",),
    "aws-vpc": ("fields", "time"),
    "zeek-conn": ("fields", "time"),
    "suricata-eve": ("time",),
    "otlp-traces": ("cluster", "encoding"),
}
"""Arguments that formats take, the main one first."""


def source_format(spelling: str) -> SourceFormat:
    """Return the format of that name, with the arguments given.

    Raises:
        ConfigurationError: there is none, or an argument is not one of its own.
    """
    name, arguments = split_spelling(spelling)
    if name not in FORMATS:
        raise ConfigurationError(f"unknown format {name!r}; known are {', '.join(sorted(FORMATS))}")
    if not arguments:
        return Auto(_RECOGNISED) if name == AUTO else FORMATS[name]  # what it took is one topic's or file's own
    known = ARGUMENTS.get(name, ())
    for key in arguments:
        if key not in known:
            what = f"takes {', '.join(known)}" if known else "takes no arguments"
            raise ConfigurationError(f"format {name}: no argument {key!r}; it {what}")
    kind: Any = type(FORMATS[name])
    configured: SourceFormat = kind.configured(arguments)
    return configured


def split_spelling(spelling: str) -> tuple[str, dict[str, str]]:
    """Return a format's name and arguments.

    Raises:
        ConfigurationError: an argument has no value, or is given twice.
    """
    name, question, query = spelling.partition("?")
    if not question:
        name, colon, value = spelling.partition(":")
        main = ARGUMENTS.get(name, ())
        if colon and name in FORMATS and not main:
            raise ConfigurationError(f"format {name}: takes no arguments")
        return name, {main[0]: value} if colon and main else {}
    arguments: dict[str, str] = {}
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if not equals or not key or key in arguments:
            raise ConfigurationError(f"format {name}: write arguments as {name}?key=value&key=value, each once")
        arguments[key] = value
    return name, arguments


def format_of_file(spelling: str, head: bytes) -> str:
    """Return how to spell the format for one file: with what its first bytes say, such as the columns of a header.

    Raises:
        ConfigurationError: as `source_format`, or ``auto`` does not recognise the file.
    """
    if source_format(spelling).name == AUTO:
        spelling = recognised_in(_RECOGNISED, head)
    for_file: Any = getattr(source_format(spelling), "for_file", None)
    found: Mapping[str, str] = for_file(head) if for_file is not None else {}
    if not found:
        return spelling
    name, arguments = split_spelling(spelling)
    joined = "&".join(f"{key}={value}" for key, value in {**arguments, **found}.items())
    return f"{name}?{joined}"
