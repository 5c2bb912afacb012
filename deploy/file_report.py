"""What `drift replay` and `drift backtest` say of the file they read."""

from collections.abc import Mapping
from pathlib import Path

from schemas.errors import ConfigurationError
from streams.log_files import format_for
from streams.replay import Tally
from streams.sources.registry import AUTO, split_spelling


def format_line(given: str, spelling: str) -> str:
    """Return which format a file is read as: as given, or recognised, and what of it the file itself says."""
    name, arguments = split_spelling(spelling)
    given_name, given_arguments = split_spelling(given)
    from_file = sorted(set(arguments) - set(given_arguments))
    recognised = ", recognised" if given_name == AUTO else ""
    return f"format: {name}{recognised}" + (f"; {', '.join(from_file)} as its first lines say" if from_file else "")


def tally_line(tally: Tally) -> str:
    """Return how many records became what."""
    losses = f"; loss reported: {_counts(tally.losses)}" if tally.losses else ""
    return (
        f"{tally.records:,} records: {tally.flows:,} flows, "
        f"{tally.not_flows.total():,} not flow records{_bracketed(tally.not_flows)}, "
        f"{tally.dead.total():,} dead letters{_bracketed(tally.dead)}{losses}"
    )


def hint_line(file: Path, spelling: str, tally: Tally) -> str | None:
    """Return a word on the format where it made nothing of any record, and the file looks like another."""
    if tally.flows or tally.not_flows or not tally.dead:
        return None
    try:
        other = split_spelling(format_for(file, AUTO))[0]
    except ConfigurationError:
        return None
    return None if other == split_spelling(spelling)[0] else f"the file looks like {other}: try --format {other}"


def _bracketed(counts: Mapping[str, int]) -> str:
    return f" ({_counts(counts)})" if counts else ""


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{what} {count:,}" for what, count in ordered)
