"""Running a trainer as a process group: one rank per device under torchrun, watched, logged, and always ended."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from infra.processes.causes import last_words
from infra.processes.openmp import short_spin, thread_count
from infra.processes.watchdog import GuardedProcess, tail
from infra.settings import PROJECT_ROOT

METRICS_VARIABLE = "BOLT_TRAINER_METRICS"
"""Environment variable with the path that a trainer appends its metrics to (JSON lines)."""
_TAIL_LINES = 40
_TORCHRUN = re.compile(r"torch/distributed/elastic/(agent/server|multiprocessing)/api\.py")


class TrainerError(RuntimeError):
    """A training process failed or took too long; with its exit status, last log lines and the log's path."""


def metrics_path(log_path: Path) -> Path:
    """The path of a trainer's metrics, one JSON object per line: `step`, `epoch`, `loss`, `learning_rate`, ..."""
    return log_path.with_suffix(".metrics.jsonl")


@dataclass(frozen=True)
class Place:
    """Where a torchrun stands among those of a training, one per machine.

    Attributes:
        node: number of this machine, from 0.
        nodes: number of machines.
        address: address of machine 0 as the others reach it, and a free `port` there, which all ranks meet at.
    """

    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    def options(self) -> list[str]:
        """torchrun's options. On one machine it picks the port itself, and its ranks meet at the loopback address:
        torchrun would look up the machine's own name, which not every network knows."""
        if self.nodes == 1:
            meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", "bolt"]
            return ["--nnodes", "1", "--local-addr", "127.0.0.1", *meeting]
        host = f"[{self.address}]" if ":" in self.address else self.address
        meeting = ["--rdzv-backend", "static", "--rdzv-endpoint", f"{host}:{self.port}", "--rdzv-id", "bolt"]
        return ["--nnodes", str(self.nodes), "--node-rank", str(self.node), *meeting]


ALONE = Place()


def launch(module: str, config: BaseModel, *, ranks: int, log_path: Path, timeout_s: float | None = None) -> None:
    """Run `python -m MODULE CONFIG.json` on `ranks` ranks of this machine and wait for success.

    The configuration is written beside the log, which gets all output. The metrics of an earlier attempt are removed.
    The processes end with this one, however it ends.

    Raises:
        TrainerError: a rank failed, or `timeout_s` seconds passed.
    """
    metrics = metrics_path(log_path)
    process = start(module, written(config, log_path), ranks=ranks, log_path=log_path, metrics=metrics)
    try:
        status = process.wait(timeout_s)
    except TimeoutError as error:
        raise TrainerError(
            f"{module} on {ranks} ranks is {error}; {last_log_lines(log_path, process.log_start)}"
        ) from error
    finally:
        process.stop()
    if status != 0:
        words = last_log_lines(log_path, process.log_start)
        raise TrainerError(f"{module} on {ranks} ranks ended with status {status}; {words}")


def written(config: BaseModel, log_path: Path) -> Path:
    """The file beside the log to which a trainer's configuration was written. An earlier attempt's metrics are gone."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    config_path = log_path.with_suffix(".config.json")
    config_path.write_text(config.model_dump_json(indent=2))
    metrics_path(log_path).unlink(missing_ok=True)
    return config_path


def start(
    module: str,
    config_path: Path,
    *,
    ranks: int,
    log_path: Path,
    metrics: Path,
    place: Place = ALONE,
    env: Mapping[str, str] | None = None,
) -> GuardedProcess:
    """Start `python -m MODULE CONFIG.json` on `ranks` ranks of this machine, which log to `log_path`.

    Args:
        metrics: where the trainer appends its metrics.
        place: which of several machines this is.
        env: further environment variables of the ranks.
    """
    torchrun = ["-m", "torch.distributed.run", *place.options(), "--nproc-per-node", str(ranks)]
    command = [sys.executable, *torchrun, "-m", module, str(config_path)]
    environment = {**_environment(ranks), METRICS_VARIABLE: str(metrics), **(env or {})}
    return GuardedProcess(command, log_path=log_path, env=environment)


def last_log_lines(log_path: Path, start: int = 0) -> str:
    """The cause, and the log's last lines before torchrun's own report, which does not show it.

    Only what follows the first `start` bytes is read.
    """
    lines = tail(log_path, 200, start).splitlines()
    report = next((row for row, line in enumerate(lines) if _TORCHRUN.search(line)), len(lines))
    shown = lines[:report] or lines
    return last_words(log_path, "\n".join(shown), "\n".join(shown[-_TAIL_LINES:]))


def _environment(ranks: int) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0))
    paths = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": thread_count(max(1, cores // ranks)),
        **short_spin(os.environ),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # no pickle runs code, in DeepSpeed's checkpoints either
    }
