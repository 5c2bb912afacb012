"""Faults on real processes, for as long as you like, and a report.

python -m tests.faults [--minutes 30] [--rate 20000] [--workers 3] [--kills 50] [--seed N] [--report FILE]
"""

import argparse
import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import uuid
from pathlib import Path

from deploy.brokers.kafka import resolve_classpath, tool
from schemas.errors import ConfigurationError
from tests import brokers
from tests.faults.choreography import Disks
from tests.faults.cluster import Size
from tests.faults.plan import ON_THE_BROKER, Plan, make_plan
from tests.faults.processes import ROOT
from tests.faults.report import write_report
from tests.faults.run import run

_MIB = 1 << 20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of load, at least")
    parser.add_argument("--rate", type=float, default=20_000, help="flows a second")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--edges", type=int, default=50_000)
    parser.add_argument("--tenants", type=int, default=40)
    parser.add_argument("--kills", type=int, default=50, help="at least; more if time is left")
    parser.add_argument("--each", type=int, default=2, help="how often every other fault")
    parser.add_argument("--scale", type=float, default=1.0, help="of how long faults last that go on beside others")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without", default="", help="leave out faults whose name contains one of these, by comma")
    parser.add_argument("--folder", type=Path, help="where everything goes and stays; default: a temporary one")
    parser.add_argument("--clickhouse-mib", type=int, default=3_072, help="size of ClickHouse's small disk; 0: none")
    parser.add_argument("--temporary-mib", type=int, default=64, help="of the temporary directory; 0: none")
    parser.add_argument("--broker-mib", type=int, default=0, help="of the broker's log directory; 0: none")
    parser.add_argument("--report", type=Path, default=Path("fault-report.md"))
    return parser.parse_args()


def foreign_broker(stack: contextlib.ExitStack, folder: Path, cache: Path) -> str | None:
    """Return the address of a broker that others run, where one is named or we cannot have our own; else ``None``."""
    if named := os.environ.get("KAFKA_BOOTSTRAP"):
        return named
    try:
        tool("java")
        resolve_classpath(cache)
    except ConfigurationError as reason:
        print(f"no Apache Kafka of our own, so no faults on the broker: {reason}", flush=True)
        return stack.enter_context(brokers.chosen_broker(folder / "brokers", cache)).address
    return None


def main() -> int:
    """Run and return 0 if all was exact."""
    options = _arguments()
    names = ("workers", "partitions", "rate", "edges", "tenants", "seed")
    run_name = f"drift-faults-{uuid.uuid4().hex[:6]}"  # a broker of others may still hold the topics of another run
    size = Size(**{name: getattr(options, name) for name in names}, name=run_name)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="drift-faults-"))
    seconds = options.minutes * 60
    unwanted = [text for text in options.without.split(",") if text]

    cache = ROOT / ".pytest_cache" / "d" / "kafka"

    def plan_for(disks: Disks) -> Plan:
        everything = make_plan(0, seconds, 1, 1)
        known = {*everything.in_turn, *(kind for _, kind, _ in everything.beside)}
        without = frozenset(kind for kind in known if any(text in kind for text in unwanted))
        without |= ON_THE_BROKER if bootstrap is not None else frozenset()
        return make_plan(options.seed, seconds, options.kills, options.each, without | disks.missing(), options.scale)

    sizes = {
        "clickhouse": options.clickhouse_mib * _MIB,
        "temporary": options.temporary_mib * _MIB,
        "broker": options.broker_mib * _MIB,
    }
    wanted = {role: size_bytes for role, size_bytes in sizes.items() if size_bytes}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up, small disks above all
    # Brokers go away on purpose here: what clients say about it in this process is no news.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    def say(text: str) -> None:
        print(text, flush=True)

    say(f"seed {size.seed}; everything is in {folder}")
    with contextlib.ExitStack() as stack:
        bootstrap = foreign_broker(stack, folder, cache)
        say(f"broker: {bootstrap or 'our own Apache Kafka'}")
        outcome = asyncio.run(run(folder, cache, size, seconds, plan_for, wanted, say, bootstrap))
    command = shlex.join(["python", "-m", "tests.faults", *sys.argv[1:]])
    facts = write_report(outcome, options.report, command)
    say("\n".join(outcome.problems))
    say(outcome.verdict.line if outcome.verdict is not None else "not judged")
    say(f"recovery {facts['recovery']}; report in {options.report}")
    if options.folder is None and outcome.is_clean:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if outcome.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
