"""`drift doctor`: checks a configuration and what it points to, and says what is wrong."""

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from deploy.diagnosis.clickhouse import diagnose_clickhouse
from deploy.diagnosis.finding import Finding, Level
from deploy.diagnosis.graph_model import diagnose_graph_model
from deploy.diagnosis.kafka import diagnose_kafka
from deploy.diagnosis.machine import diagnose_machine
from schemas.settings import Settings, load_settings
from streams.clickhouse import connect
from streams.clock import SystemClock


@click.command(epilog="Example: DRIFT_KAFKA__BOOTSTRAP=broker:9092 drift doctor")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--quick", is_flag=True, help="Do not read the saved state (a million edges take a minute).")
@click.option("--no-clickhouse", is_flag=True, help="Do not ask ClickHouse: for workers with --no-sinks.")
@click.pass_obj
def doctor(config: Path | None, as_json: bool, quick: bool, no_clickhouse: bool) -> int:
    """Check settings, brokers, topics, offsets, saved state, ClickHouse, clocks and disks.

    One line for each finding, with what to do. Changes nothing. Exit code 1 if there is a problem.
    """
    settings = load_settings(config)
    findings = asyncio.run(diagnose(settings, quick=quick, with_clickhouse=not no_clickhouse))
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    if as_json:
        click.echo(json.dumps({"problems": problems, "warnings": warnings, "findings": _as_values(findings)}))
    else:
        for finding in findings:
            click.echo(finding.line)
        click.echo(f"{_counted(problems, 'problem')}, {_counted(warnings, 'warning')}")
    return int(problems > 0)


async def diagnose(settings: Settings, *, quick: bool = False, with_clickhouse: bool = True) -> list[Finding]:
    """Return all findings: settings and machine, Kafka, ClickHouse, the graph model."""
    clock, opened = SystemClock(), partial(connect, settings.clickhouse)
    findings = diagnose_machine(settings)
    findings += await diagnose_kafka(settings, clock.now_ms(), quick)
    if with_clickhouse:
        findings += await asyncio.to_thread(diagnose_clickhouse, settings, opened, clock.now_ms)
    findings += await asyncio.to_thread(diagnose_graph_model, settings, opened if with_clickhouse else None)
    return findings


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _as_values(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [{"level": f.level, "check": f.check, "text": f.text, "advice": f.advice} for f in findings]
