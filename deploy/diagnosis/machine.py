"""This machine and the settings themselves: disks and choices that will hurt. Asks the file system only."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from deploy.diagnosis.finding import Finding, ok, or_ok, problem, warning
from schemas.clickhouse_dsn import chdb_path, is_embedded
from schemas.settings import Settings

FULL_BYTES, LOW_BYTES = 256 << 20, 2 << 30


def diagnose_machine(settings: Settings, free_bytes: Callable[[Path], int] | None = None) -> list[Finding]:
    """Return findings about the settings and the folders that they name."""
    findings = judge_choices(settings)
    folders = {}
    if settings.worker.state_directory is not None:
        folders["worker.state_directory"] = settings.worker.state_directory
    if is_embedded(settings.clickhouse):
        folders["clickhouse.dsn"] = Path(chdb_path(settings.clickhouse))
    for name, folder in folders.items():
        findings.append(_folder(name, folder, free_bytes or _free_bytes))
    return findings


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _folder(name: str, folder: Path, free_bytes: Callable[[Path], int]) -> Finding:
    check = f"folder {folder}"
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    if not os.access(there, os.W_OK | os.X_OK):
        return problem(check, "is not writable", f"change its owner, or choose another in {name}")
    free = free_bytes(there)
    text = f"{free / (1 << 30):.1f} GiB free"
    if free < FULL_BYTES:
        return problem(check, text, f"make room: checkpoints and inserts stop when it is full ({name})")
    return warning(check, text, "make room before it is full") if free < LOW_BYTES else ok(check, text)


def judge_choices(settings: Settings) -> list[Finding]:
    """Judge settings that are allowed and will hurt. Pure."""
    found, worker = [], settings.worker
    if worker.accept_loss:
        advice = "take it out again once the start that needed it is over"
        found.append(warning("settings", "worker.accept_loss is set: losses pass with a mark in the log", advice))
    if worker.metrics_port is None:
        advice = "set worker.metrics_port"
        found.append(warning("settings", "nobody can see lag or readiness: the worker has no HTTP endpoint", advice))
    elif worker.metrics_host not in ("127.0.0.1", "::1", "localhost"):
        text = f"worker.metrics_host is {worker.metrics_host}: anybody who reaches it reads the metrics"
        found.append(warning("settings", text, "let only Prometheus and the probes reach it"))
    if settings.topics.replication == 1:
        text = "topics.replication is 1: a broker's disk that fails takes tenant-log and state with it"
        found.append(warning("settings", text, "3 on a cluster; it holds for topics that are created"))
    for lane in settings.lanes:
        if lane.max_wait_ms == 0:
            text = f"lane {lane.name} waits for ever for a source partition that falls silent"
            found.append(warning("settings", text, "set max_wait_ms"))
    return or_ok(found, "settings", "can be read and fit together")
