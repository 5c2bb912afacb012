"""A finding of `drift doctor`: one line that says how something is and, where it is wrong, what to do. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        check: what was looked at, say ``topic tenant-log``.
        text: how it is. advice: what to do about it; empty where nothing is to be done.
    """

    level: Level
    check: str
    text: str
    advice: str = ""

    @property
    def line(self) -> str:
        """Return it as one line."""
        return f"{self.level.value:8}{self.check}: {self.text}" + (f": {self.advice}" if self.advice else "")


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, check, text)


def warning(check: str, text: str, advice: str) -> Finding:
    """It works now, but will not in every case."""
    return Finding(Level.WARNING, check, text, advice)


def problem(check: str, text: str, advice: str) -> Finding:
    """It does not work, or loses data."""
    return Finding(Level.PROBLEM, check, text, advice)


def or_ok(found: Iterable[Finding], check: str, text: str) -> list[Finding]:
    """Return what was found, or that all is well."""
    return list(found) or [ok(check, text)]


def span(ms: float) -> str:
    """Write a time for people: ``90 s``, ``2.5 h``, ``3 d``."""
    for name, unit_ms in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if ms >= 2 * unit_ms or (name == "s" and ms >= unit_ms):
            return f"{ms / unit_ms:.3g} {name}"
    return f"{ms:.0f} ms"
