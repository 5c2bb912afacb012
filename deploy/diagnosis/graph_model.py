"""Looks at the graph model's folder, and which lanes have no model. Reads files, and asks ClickHouse where it may."""

from collections.abc import Callable, Iterable
from pathlib import Path

from clickhouse_connect.driver import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from deploy.diagnosis.finding import Finding, ok, problem, warning
from schemas.clickhouse_dsn import database_of
from schemas.errors import ConfigurationError
from schemas.settings import Settings
from streams.graph_scores.model_folder import SUFFIX, ModelFolder, load_model
from streams.graph_scores.status import NAMED, OFF
from streams.sinks.faults import describe

CHECK = "graph model"
MOST_LANES = 1_000
"""Lanes that are looked at."""
_LANES = """
SELECT DISTINCT tenant, lane FROM {database:Identifier}.windows
WHERE NOT startsWith(lane, 'replay:') ORDER BY tenant, lane LIMIT {limit:UInt32}
"""


def diagnose_graph_model(settings: Settings, connect: Callable[[], Client] | None) -> list[Finding]:
    """Return findings about the folder, its files, and the stored lanes without a model. Blocking."""
    folder = settings.gnn.models_dir
    if folder is None:
        return [ok(CHECK, OFF)]
    if not folder.is_dir():
        return [problem(CHECK, f"gnn.models_dir {folder} is no folder", "make it, or leave the setting out")]
    findings = [_file(file) for file in sorted(folder.glob(f"*{SUFFIX}"))]
    if connect is None:
        return findings or [ok(CHECK, f"{folder} holds no models yet")]
    try:
        client = connect()
        try:
            rows = client.query(
                _LANES, parameters={"database": database_of(settings.clickhouse), "limit": MOST_LANES}
            ).result_rows
        finally:
            client.close()
    except (ConfigurationError, ClickHouseError) as error:
        said = str(error) if isinstance(error, ConfigurationError) else describe(error)
        return [*findings, warning(CHECK, f"lanes cannot be asked for ({said})", "mend ClickHouse first")]
    return [*findings, *judge_lanes(ModelFolder(folder), [(str(tenant), str(lane)) for tenant, lane in rows])]


def _file(file: Path) -> Finding:
    check = f"{CHECK} {file.name}"
    try:
        model = load_model(file)
    except ConfigurationError as error:
        return warning(check, str(error), "its lanes are not scored until then")
    data = model.checkpoint.card.data
    return ok(check, f"version {model.version}, of tenant {data.tenant}, lane {data.lane}, {data.windows} windows")


def judge_lanes(models: ModelFolder, lanes: Iterable[tuple[str, str]]) -> list[Finding]:
    """Judge which of the lanes (tenant, lane) have a model that can be used."""
    found = [models.look(tenant, lane) for tenant, lane in lanes]
    told = [one.problem for one in found if one.model is None]
    findings = [warning(CHECK, text, "the lane is not scored until then") for text in told[:NAMED]]
    if len(told) > NAMED:
        findings.append(warning(CHECK, f"{len(told) - NAMED} more lanes have no usable model", "train them as well"))
    return findings or [ok(CHECK, f"{len(found)} lanes have a model")]
