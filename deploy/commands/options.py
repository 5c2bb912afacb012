"""Options that several commands share."""

import math
import re
from collections.abc import Callable
from typing import Any

import click

from schemas.detection import DetectionConfig
from schemas.flow import MAX_NAME_BYTES

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_MS = 366 * _UNITS_MS["d"]


class Duration(click.ParamType):
    """`10s`, `500ms`, `5m`, `1h`; a bare number is milliseconds. Converts to milliseconds."""

    name = "duration"

    def __init__(self, least_ms: int = 0) -> None:
        self._least_ms = least_ms

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return milliseconds."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)(ms|s|m|h|d)?", value)
        if match is None:
            self.fail(f"{value!r} is no duration; write 10s, 500ms, 5m or 1h", param, ctx)
        duration_ms = int(match[1]) * _UNITS_MS[match[2] or "ms"]
        if not self._least_ms <= duration_ms <= _LONGEST_MS:
            self.fail(
                f"{value} is not between {self._least_ms} ms and {_LONGEST_MS // _UNITS_MS['d']} days", param, ctx
            )
        return duration_ms


class Threshold(click.ParamType):
    """`name=value` of one detection setting."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Return name and value."""
        if isinstance(value, tuple):
            return value
        name, _, number = value.partition("=")
        if name not in DetectionConfig.__struct_fields__:
            self.fail(
                f"{name!r} is no detection setting; known: {', '.join(DetectionConfig.__struct_fields__)}", param, ctx
            )
        try:
            threshold = float(number)
        except ValueError:
            self.fail(f"{number!r} is no number", param, ctx)
        whole = not isinstance(getattr(DetectionConfig(), name), float)
        if not 0 <= threshold < math.inf or (whole and not threshold.is_integer()):
            self.fail(f"{name} takes a {'whole ' if whole else ''}number from 0, not {number}", param, ctx)
        return name, threshold


class TenantName(click.ParamType):
    """A name that a flow's tenant may have."""

    name = "tenant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        if not value or len(value.encode(errors="replace")) > MAX_NAME_BYTES:
            self.fail(f"a tenant has 1 to {MAX_NAME_BYTES} bytes", param, ctx)
        return str(value)


class ControlledTenant(TenantName):
    """A tenant that a control can be written for."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        name = super().convert(value, param, ctx)
        if ":" in name:
            self.fail("a tenant with a colon in its name can have no controls", param, ctx)
        return name


def lane_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe how a file is cut into windows and judged."""
    for option in (
        click.option(
            "--set", "thresholds", type=Threshold(), multiple=True, help="A detection setting, say z_threshold=8."
        ),
        click.option("--lateness", type=Duration(), default="30s", show_default=True, help="Allowed lateness."),
        click.option(
            "--window", type=Duration(least_ms=1_000), default="60s", show_default=True, help="Window length."
        ),
        click.option("--tenant", type=TenantName(), help="Owner of all flows; default: each flow's own `tenant`."),
        click.option("--format", "format_name", default="canonical", show_default=True, help="How the file is read."),
    ):
        command = option(command)
    return command
