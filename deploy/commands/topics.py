"""`drift topics`: creates the Kafka topics and shows them."""

import asyncio
from pathlib import Path

import click

from schemas.settings import load_settings
from streams.kafka_clients import check_connection
from streams.topics import ensure_topics


@click.command(epilog="Example: DRIFT_KAFKA__BOOTSTRAP=broker:9092 drift topics")
@click.pass_obj
def topics(config: Path | None) -> None:
    """Create missing topics; refuse internal ones whose partition count was changed."""
    settings = load_settings(config)

    async def ensure() -> dict[str, int]:
        await check_connection(settings.kafka)
        return await ensure_topics(settings)

    for name, partitions in sorted(asyncio.run(ensure()).items()):
        click.echo(f"{name}  {partitions} partitions")
