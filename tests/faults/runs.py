"""Flow runs in processes of their own: the real command line, or one flow with faked answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3_for_tests import KEY, SECRET

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_flow.py")


@dataclass(frozen=True)
class PrefectServer:
    home: Path
    url: str

    def environment(self) -> dict[str, str]:
        return {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }


def on_s3(url: str, bucket: str) -> dict[str, str]:
    """The settings for a store in a bucket."""
    keys = {"BOLT_ACCESS_KEY_ID": KEY, "BOLT_SECRET_ACCESS_KEY": SECRET, "BOLT_REGION": "us-east-1"}
    return keys | {"BOLT_STORE": f"s3://{bucket}/some/prefix", "BOLT_ENDPOINT_URL": url}


def started(command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process in the checkout, in a session of its own; its output goes to `log`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "BOLT_", "AWS_"))}
    env = {**kept, "PREFECT_LOGGING_EXTRA_LOGGERS": "infra,tasks", "PYTHONPATH": str(ROOT), **environment}
    with log.open("a") as out:
        return subprocess.Popen(
            # A shell's background jobs ignore SIGINT. `env` resets it: `preexec_fn` may deadlock beside other threads.
            ["env", "--default-signal=INT", sys.executable, *map(str, command)],
            cwd=ROOT,
            env=env,
            stdout=out,
            stderr=out,
            text=True,
        )


def fake(flow: str, config: Mapping[str, Any], place: Path, environment: Mapping[str, str], name: str = "run") -> Any:
    """Start `flow` with `config` and faked answers; its log is `place/NAME.log`."""
    place.mkdir(parents=True, exist_ok=True)
    parameters = place / f"{name}.json"
    parameters.write_text(json.dumps(config))
    return started([FAKE, flow, parameters, place / "asked.txt"], place / f"{name}.log", environment)


def ended(run: subprocess.Popen[str], seconds: float = 120) -> int:
    """Wait for a run to end; returns its exit status."""
    try:
        return run.wait(seconds)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGKILL)
        run.wait()
        raise


def wait_for(condition: Callable[[], Any], seconds: float = 60, every: float = 0.05) -> Any:
    """Wait for a true value of `condition`, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true after {seconds} s"
        time.sleep(every)
    return found


def made(*logs: Path) -> list[str]:
    """The artifacts that these runs began to make, according to their logs."""
    lines = [line for log in logs for line in log.read_text().splitlines() if line.endswith(": making it")]
    return sorted(line.removesuffix(": making it").split()[-1] for line in lines)
