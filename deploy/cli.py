"""`drift`: the command line. Groups the commands and turns expected errors into one line and exit code 2."""

import importlib
import logging
import sys
from pathlib import Path
from typing import Any

import click

from deploy.log_repeats import FewRepeats
from schemas.errors import DriftError

_COMMANDS = {
    "run": "deploy.commands.run:run",
    "worker": "deploy.commands.worker:worker",
    "api": "deploy.commands.api:api",
    "accounts": "deploy.commands.accounts:accounts",
    "replay": "deploy.commands.replay:replay",
    "backtest": "deploy.commands.backtest:backtest",
    "evaluate": "deploy.commands.evaluate:evaluate",
    "train": "deploy.commands.train:train",
    "score": "deploy.commands.score:score",
    "predict": "deploy.commands.predict:predict",
    "sources": "deploy.commands.sources:sources",
    "inventory": "deploy.commands.inventory:inventory",
    "policies": "deploy.commands.policies:policies",
    "sql": "deploy.commands.sql:sql",
    "migrate": "deploy.commands.migrate:migrate",
    "topics": "deploy.commands.topics:topics",
    "doctor": "deploy.commands.doctor:doctor",
    "dead-letters": "deploy.commands.dead_letters:dead_letters",
    "bench": "deploy.commands.bench:bench",
}


class _Commands(click.Group):
    """Imports a command when it is used: `drift --help` needs neither Faust nor ClickHouse."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: Any = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML settings; DRIFT_... variables win over it. Default: $DRIFT_CONFIG, else the built-in defaults.",
)
@click.option("--log-level", default="WARNING", help="DEBUG, INFO, WARNING or ERROR.")
@click.version_option(package_name="secureguard-drift", prog_name="drift")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, log_level: str) -> None:
    """Streaming drift detection on service graphs.

    \b
    Start here:  drift run                     everything on this machine, with a real sample
                 drift backtest FILE           what would have been raised, without Kafka
    """
    ctx.obj = config
    level = logging.getLevelName(log_level.upper())
    if not isinstance(level, int):
        raise click.BadParameter(
            f"{log_level!r} is no level; use DEBUG, INFO, WARNING or ERROR", param_hint="--log-level"
        )
    lines = FewRepeats() if level > logging.DEBUG else logging.StreamHandler()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[lines])


def main() -> None:
    """Entry point of the console command."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except DriftError as error:
        click.echo(f"drift: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
