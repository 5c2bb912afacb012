"""`drift topics`: creates the Kafka topics and shows or checks them."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from deploy.diagnosis.finding import Finding, Level
from deploy.diagnosis.topics import described, judge_topics
from schemas.settings import Settings, load_settings
from streams.kafka_clients import check_connection, make_admin
from streams.topics import PlannedTopic, TopicFacts, ensure_topics, planned_topics, topic_facts


@click.command(epilog="Example: DRIFT_KAFKA__BOOTSTRAP=broker:9092 drift topics --check")
@click.option("--check", is_flag=True, help="Create nothing; exit code 1 if a topic is missing or not as it has to be.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def topics(config: Path | None, check: bool, as_json: bool) -> int:
    """Create missing topics and show all; refuse internal ones whose partition count was changed."""
    settings = load_settings(config)
    planned = planned_topics(settings)
    found = asyncio.run(_look(settings, create=not check))
    findings = [f for f in judge_topics(settings, planned, found) if f.level is not Level.OK]
    if as_json:
        click.echo(json.dumps(_as_values(planned, found, findings)))
    else:
        for topic in planned:
            if topic.name in found:
                click.echo(f"{topic.name}  {described(found[topic.name])}")
        for finding in findings if check else []:
            click.echo(finding.line)
    return int(check and any(finding.level is Level.PROBLEM for finding in findings))


async def _look(settings: Settings, create: bool) -> dict[str, TopicFacts]:
    await check_connection(settings.kafka)
    if create:
        await ensure_topics(settings)
    admin = make_admin(settings.kafka)
    await admin.start()
    try:
        return await topic_facts(admin, [topic.name for topic in planned_topics(settings)])
    finally:
        await admin.close()


def _as_values(
    planned: list[PlannedTopic], found: Mapping[str, TopicFacts], findings: list[Finding]
) -> dict[str, list[dict[str, Any]]]:
    keys = ("retention.ms", "cleanup.policy", "max.message.bytes")
    return {
        "topics": [
            {
                "name": topic.name,
                "partitions": found[topic.name].partitions,
                "replicas": found[topic.name].replicas,
                "is_ours": topic.is_fixed,
                "message.timestamp.type": found[topic.name].timestamp_type,
                **{key: found[topic.name].config.get(key) for key in keys},
            }
            for topic in planned
            if topic.name in found
        ],
        "findings": [
            {"level": finding.level, "check": finding.check, "text": finding.text, "advice": finding.advice}
            for finding in findings
        ],
    }
