"""A tenant's inventory on a real broker: pushed from the command line, in force from that point of the log on."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli import cli
from schemas.errors import ConfigurationError
from schemas.inventory import INVENTORY
from schemas.settings import LaneSettings, Settings
from streams.controls import read_controls, write_controls
from streams.topics import ensure_topics
from tests.e2e.pipeline import running, send_all, write_config

pytestmark = pytest.mark.kafka
MakeSettings = Callable[..., Settings]
TENANT = "acme"


def flow(number: int) -> bytes:
    now_ms = time.time_ns() // 1_000_000
    values = {"time_ms": now_ms, "tenant": TENANT, "src": "shop/web", "dst": f"ip:10.0.0.{number % 3}", "port": 443}
    return json.dumps(values).encode()


async def drift(settings: Settings, folder: Path, *arguments: str) -> str:
    """Run `drift inventory` with these settings; return what it printed."""
    config = write_config(settings, folder / "drift.yaml")
    command = ["--config", str(config), "inventory", *arguments]
    result = await asyncio.to_thread(CliRunner().invoke, cli, command, standalone_mode=False, catch_exceptions=False)
    return result.output


def small(settings: Settings) -> Settings:
    worker = settings.worker.model_copy(update={"lag_every_ms": 200, "checkpoint_every_ms": 500})
    return settings.model_copy(update={"worker": worker})


async def test_a_pushed_inventory_renames_from_that_point_on(
    kafka_bootstrap: str, settings_for: MakeSettings, tmp_path: Path
) -> None:
    # No window closes, however slow this machine is: it would be the sinks', who have no ClickHouse here.
    lane = LaneSettings(name="default", lateness_ms=3_600_000)
    settings = small(settings_for(kafka_bootstrap, partitions=2, lanes=(lane,)))
    topic = settings.flows[0].topic
    await ensure_topics(settings)
    rules = tmp_path / "rules.yaml"
    rules.write_text("addresses:\n  - {cidr: 10.0.0.0/24, name: shop/db}\n", encoding="utf-8")

    async with running(settings) as worker:

        def pairs() -> set[tuple[str, str]]:
            assert worker.worker.graph is not None
            lanes = [p.machine.lanes.get("default") for p in worker.worker.graph.partitions.values()]
            edges = [i for lane in lanes if lane is not None for i in lane.registry.edge_number]
            return {(src, dst) for _, src, dst, _, _ in edges}

        await send_all(settings, topic, [(number % 2, flow(number)) for number in range(12)])
        await worker.until(lambda: worker.total("drift_rows_folded_total") == 12, "the first flows are folded")
        assert pairs() == {("shop/web", f"ip:10.0.0.{number}") for number in range(3)}
        said = await drift(settings, tmp_path, "push", str(rules), "--tenant", TENANT)
        assert "document main of tenant acme holds from now on: 1 ranges" in said
        await worker.until(lambda: pairs() == {("shop/web", "shop/db")}, "what is known is renamed")
        await send_all(settings, topic, [(number % 2, flow(number)) for number in range(9)])
        await worker.until(lambda: worker.total("drift_rows_folded_total") == 21, "further flows are folded")
        assert pairs() == {("shop/web", "shop/db")}
    async with running(settings) as worker:  # from the checkpoint
        await send_all(settings, topic, [(0, flow(1))])
        await worker.until(lambda: worker.total("drift_rows_folded_total") >= 1, "folded after a restart")
        assert pairs() == {("shop/web", "shop/db")}
        assert worker.total("drift_dead_letters_total") == 0


async def test_documents_are_listed_explained_shown_and_removed(
    kafka_bootstrap: str, settings_for: MakeSettings, tmp_path: Path
) -> None:
    settings = settings_for(kafka_bootstrap, partitions=2)
    with pytest.raises(ConfigurationError, match="does not exist"):
        await read_controls(settings, TENANT, INVENTORY)
    await ensure_topics(settings)
    rules, table = tmp_path / "rules.csv", tmp_path / "ip-ranges.json"
    rules.write_text("cidr,name\n10.0.0.0/24,shop/db\n", encoding="utf-8")
    prefixes = [{"ip_prefix": "52.216.0.0/15", "region": "us-east-1", "service": "S3"}]
    table.write_text(json.dumps({"prefixes": prefixes}), encoding="utf-8")
    of_tenant = ("--tenant", TENANT)
    assert await drift(settings, tmp_path, "list", *of_tenant) == "tenant acme has no inventory\n"
    await drift(settings, tmp_path, "push", str(rules), *of_tenant)
    assert "was there already" in await drift(settings, tmp_path, "push", str(rules), *of_tenant)
    await drift(settings, tmp_path, "import", "aws", str(table), *of_tenant)
    await write_controls(settings, "other", INVENTORY, {"main": b"{}"})
    await write_controls(settings, TENANT, INVENTORY, {"broken": b"[]"})
    listed = json.loads(await drift(settings, tmp_path, "list", *of_tenant, "--json"))
    assert [(entry["document"], entry["ranges"]) for entry in listed] == [("aws", 1), ("main", 1)]
    await write_controls(settings, TENANT, "tenant-settings", {"detection": b'{"outside_prefix_v4": 8}'})
    told = await drift(settings, tmp_path, "explain", *of_tenant, "10.0.0.7", "52.217.1.1", "8.8.8.8")
    assert told.splitlines() == [
        "ip:10.0.0.7 -> shop/db: address rule 10.0.0.0/24 of document main",
        "ip:52.217.1.1 -> ext:aws/s3: address rule 52.216.0.0/15 of document aws",
        "ip:8.8.8.8 -> ext:net/8.0.0.0/8: no rule: an address of the internet, named by its prefix",
    ]
    again = tmp_path / "again.yaml"
    again.write_text(await drift(settings, tmp_path, "show", *of_tenant), encoding="utf-8")
    assert "was there already" in await drift(settings, tmp_path, "push", str(again), *of_tenant)
    assert await drift(settings, tmp_path, "remove", *of_tenant, "--document", "main") == (
        "document main of tenant acme is gone\n"
    )
    assert list(await read_controls(settings, TENANT, INVENTORY)) == ["aws", "broken"]
    with pytest.raises(ConfigurationError, match="has no document 'main'"):
        await drift(settings, tmp_path, "remove", *of_tenant, "--document", "main")


async def test_parts_that_a_document_no_longer_has_are_taken_away(
    kafka_bootstrap: str, settings_for: MakeSettings, tmp_path: Path
) -> None:
    settings = settings_for(kafka_bootstrap, partitions=2)
    await ensure_topics(settings)
    names = tmp_path / "rules.yaml"

    async def push(count: int) -> str:
        rules = "".join(f"  - {{match: pod-{number}, name: pod}}\n" for number in range(count))
        names.write_text(f"names:\n{rules}", encoding="utf-8")
        return await drift(settings, tmp_path, "push", str(names), "--tenant", TENANT)

    assert "in 3 parts" in await push(2_500)
    assert list(await read_controls(settings, TENANT, INVENTORY)) == ["main", "main/2", "main/3"]
    await push(10)
    assert list(await read_controls(settings, TENANT, INVENTORY)) == ["main"]
