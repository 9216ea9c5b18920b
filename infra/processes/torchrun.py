"""Running a trainer as a process group: one rank per device under torchrun, watched, logged, and always ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from infra.processes.causes import last_words
from infra.processes.watchdog import GuardedProcess
from infra.settings import PROJECT_ROOT

METRICS_VARIABLE = "BOLT_TRAINER_METRICS"
"""Environment variable with the path that a trainer appends its metrics to (JSON lines)."""
_TAIL_LINES = 40
_TORCHRUN = "torch/distributed/elastic/multiprocessing/api.py"


class TrainerError(RuntimeError):
    """A training process failed or took too long; with its exit status, last log lines and the log's path."""


def metrics_path(log_path: Path) -> Path:
    """The path of a trainer's metrics, one JSON object per line: `step`, `epoch`, `loss`, `learning_rate`, ..."""
    return log_path.with_suffix(".metrics.jsonl")


def launch(module: str, config: BaseModel, *, ranks: int, log_path: Path, timeout_s: float | None = None) -> None:
    """Run `python -m MODULE CONFIG.json` on `ranks` ranks of this machine and wait for success.

    The configuration is written beside the log, which gets all output. The metrics of an earlier attempt are removed.
    The processes end with this one, however it ends.

    Raises:
        TrainerError: a rank failed, or `timeout_s` seconds passed.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    config_path = log_path.with_suffix(".config.json")
    config_path.write_text(config.model_dump_json(indent=2))
    metrics_path(log_path).unlink(missing_ok=True)
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(ranks)]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-id", "bolt"]
    command = [sys.executable, *torchrun, *rendezvous, "-m", module, str(config_path)]
    process = GuardedProcess(command, log_path=log_path, env=_environment(log_path, ranks))
    try:
        status = process.wait(timeout_s)
    except TimeoutError as error:
        raise TrainerError(f"{module} on {ranks} ranks is {error}; {_last_words(process)}") from error
    finally:
        process.stop()
    if status != 0:
        raise TrainerError(f"{module} on {ranks} ranks ended with status {status}; {_last_words(process)}")


def _last_words(process: GuardedProcess) -> str:
    """The cause, and the log's last lines before torchrun's own report, which does not show it."""
    lines = process.tail(200).splitlines()
    report = next((row for row, line in enumerate(lines) if _TORCHRUN in line), len(lines))
    shown = lines[:report] or lines
    return last_words(process.log_path, "\n".join(shown), "\n".join(shown[-_TAIL_LINES:]))


def _environment(log_path: Path, ranks: int) -> Mapping[str, str]:
    cores = len(os.sched_getaffinity(0))
    paths = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // ranks)),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # no pickle runs code, in DeepSpeed's checkpoints either
        METRICS_VARIABLE: str(metrics_path(log_path)),
    }
