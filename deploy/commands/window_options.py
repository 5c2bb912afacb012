"""Where `drift train`, `score` and `evaluate gnn` take closed windows from: what is stored of a tenant, or a file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from deploy.closed_windows import Progress, query_of, stored_windows, windows_of_file
from deploy.commands.options import Duration, TenantName
from models.gnn.windows import WindowEdges
from schemas.clickhouse_dsn import database_of
from schemas.errors import ConfigurationError
from schemas.settings import load_settings
from streams.replay import ReplayLane


@dataclass(frozen=True, slots=True)
class WindowSource:
    """What the options say. ``days``, ``lane``, ``data``: of what is stored; the rest: of a file."""

    tenant: str | None
    lane: str | None
    days: int
    data: Path
    flows: Path | None
    format_name: str
    window: int
    lateness: int

    def open(self, config: Path | None, progress: Progress | None) -> tuple[str, str, str, Iterator[WindowEdges]]:
        """Return what the windows are from, their tenant, their lane, and the windows.

        Raises:
            ConfigurationError: neither or too much is named, or it cannot be read.
        """
        if self.flows is not None:
            if self.lane is not None:
                raise ConfigurationError("--lane is of stored windows; a file's are its own")
            lane = ReplayLane(f"replay:{self.flows.name}", self.window, self.lateness, {}, self.tenant)
            windows = windows_of_file(self.flows, self.format_name, lane, progress)
            return f"file {self.flows.name}", self.tenant or "its own tenant", lane.name, windows
        if self.tenant is None:
            raise ConfigurationError("name what to read: --tenant NAME for stored windows, or --flows FILE")
        settings = load_settings(config)
        query, database = query_of(settings, self.data), database_of(settings.clickhouse)
        name, windows = stored_windows(query, database, self.tenant, self.lane, self.days, progress)
        return "edges_1m", self.tenant, name, windows


def window_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that ``source_of`` takes together."""
    for option in (
        click.option(
            "--lateness", type=Duration(), default="30s", show_default=True, help="Of FILE: allowed lateness."
        ),
        click.option(
            "--window", type=Duration(least_ms=1_000), default="60s", show_default=True, help="Of FILE: window length."
        ),
        click.option("--format", "format_name", default="canonical", show_default=True, help="How FILE is read."),
        click.option(
            "--flows",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="Take windows of this file of flows instead of stored ones.",
        ),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            default=Path("drift-data"),
            show_default=True,
            help="Folder of a running `drift run`.",
        ),
        click.option("--days", type=click.IntRange(1, 3650), default=14, show_default=True, help="Of what is stored."),
        click.option("--lane", help="Lane of stored windows; needed where a tenant has several."),
        click.option("--tenant", type=TenantName(), help="Whose windows."),
    ):
        command = option(command)
    return command


def source_of(options: dict[str, Any]) -> WindowSource:
    """Take the options of ``window_options`` out of all options."""
    return WindowSource(**{name: options.pop(name) for name in WindowSource.__slots__})
