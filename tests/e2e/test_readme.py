"""What a new user does: start everything, and type the README's HTTP lines as they stand, with curl alone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 900.0


def lines_of_readme() -> str:
    """Return the block of shell that logs in and asks."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    [block] = [one for one in blocks if "/v1/sessions" in one]
    return str(block)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """`drift run` after its sample: the API's address and the one-time password that it printed."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not there")
    log = tmp_path / "run.log"
    command = [sys.executable, "-m", "deploy.cli", "run", "--data", str(tmp_path / "data")]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--api-port", "0", "--kafka-port", "0"],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"DRIFT_API__QUERY_TIMEOUT_S": "300", "DRIFT_API__LIMITS__REQUEST_TIMEOUT_S": "600"},
        )
    try:
        end_s = time.monotonic() + DEADLINE_S
        while "Ctrl-C ends." not in log.read_text(errors="replace"):
            assert process.poll() is None and time.monotonic() < end_s, log.read_text(errors="replace")[-2_000:]
            time.sleep(0.2)
        said = log.read_text(errors="replace")
        address = re.search(r"API +(http://\S+)/openapi\.json", said)
        password = re.search(r"one-time password (\S+)", said)
        assert address is not None and password is not None, said[:2_000]
        yield address[1], password[1]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def test_an_incident_of_the_sample_with_the_lines_of_the_readme(running: tuple[str, str]) -> None:
    address, password = running
    script = lines_of_readme().replace("http://127.0.0.1:8080", address).replace("THE ONE-TIME PASSWORD", password)
    assert password in script and address in script
    # What each line answers is told apart by a line between. The live stream has no end: its first line is waited for.
    script, streams = re.subn(
        r"^(curl -sN .*?)( *#.*)?$",
        r"echo '@@'; exec 3< <(exec \1); head -n 1 <&3; kill $!",
        script,
        flags=re.MULTILINE,
    )
    assert streams == 1
    script = re.sub(r"^curl ", "echo '@@'; curl ", script, flags=re.MULTILINE)
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=DEADLINE_S)
    _, event, causes, radius, range_causes, live = [part.strip() for part in ended.stdout.split("@@")]
    detail = json.loads(event)
    assert (detail["severity"], detail["activity"]) == ("high", "create")
    assert detail["explanation"]["why"] and detail["explanation"]["checks"] and detail["history"]
    ranked = json.loads(causes)
    assert ranked["lane"] == "replay:sample" and ranked["causes"][0]["evidence"][0]["sentence"]
    assert json.loads(radius)["impacted"]
    assert json.loads(range_causes)["causes"][0]["service"] == "shippingservice"
    assert live.startswith("retry: 3000")
