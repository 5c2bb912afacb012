"""`drift worker` as a process of its own, with its output and its HTTP endpoint. Shell of tests."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from schemas.settings import Settings
from tests.e2e.pipeline import write_config

POLL_S = 0.05
DEADLINE_S = 600.0


class WorkerProcess:
    """One worker; killed by its pid when the block ends, if it has not ended itself."""

    def __init__(self, settings: Settings, folder: Path, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "worker.log"
        config = write_config(settings, folder / "config.yaml")
        self._command = [sys.executable, "-m", "deploy.cli", "--config", str(config), "worker", *arguments]
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "WorkerProcess":
        root = Path(__file__).resolve().parent.parent
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DRIFT_")}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=environment | {"PYTHONPATH": str(root)},
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """The child."""
        assert self.process is not None
        return self.process

    def said(self) -> str:
        """Return all output so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, condition: Any, what: str, deadline_s: float = DEADLINE_S) -> Any:
        """Poll until ``condition`` returns something true, and return it.

        Raises:
            AssertionError: the worker ended, or it took too long.
        """
        end_s = time.monotonic() + deadline_s
        while not (found := condition()):
            assert self.running.poll() is None, f"the worker ended before: {what}\n{self.said()}"
            if time.monotonic() > end_s:
                raise AssertionError(f"after {deadline_s:g} s still not: {what}\n{self.said()}\n{self.samples()}")
            time.sleep(POLL_S)
        return found

    def until_said(self, text: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait for a text in the output."""
        self.until(lambda: text in self.said(), f"said {text!r}", deadline_s)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        os.kill(self.running.pid, number)

    def wait(self, deadline_s: float) -> int:
        """Return the exit code."""
        try:
            return self.running.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s:g} s\n{self.said()}") from None

    def url(self) -> str | None:
        """Return the address of the HTTP endpoint as the worker said it."""
        for word in self.said().split():
            if word.startswith("http://"):
                return word
        return None

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return status and body of a JSON answer; ``(0, {})`` if nobody listens yet."""
        url = self.url()
        if url is None:
            return 0, {}
        try:
            with urllib.request.urlopen(url + path, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, {}

    def samples(self) -> str:
        """Return what is not 0 of the metrics, for error texts."""
        try:
            with urllib.request.urlopen(f"{self.url()}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except (OSError, ValueError) as error:
            return f"no metrics: {error}"
        return "\n".join(line for line in lines if line.startswith("drift_") and not line.endswith(" 0.0"))

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric summed over its labels; 0 if there is none, or nobody listens yet."""
        url = self.url()
        if url is None:
            return 0
        try:
            with urllib.request.urlopen(url + "/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            return 0
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
