"""Running a trainer as a process group: one rank per device under torchrun, watched, logged, and always ended."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel

from infra.processes.causes import last_words
from infra.processes.watchdog import GuardedProcess
from infra.settings import PROJECT_ROOT

METRICS_VARIABLE = "BOLT_TRAINER_METRICS"
"""Environment variable with the path that a trainer appends its metrics to (JSON lines)."""
_FINISHED = "finished"
_TAIL_LINES = 40
_TORCHRUN = "torch/distributed/elastic/multiprocessing/api.py"


class TrainerError(RuntimeError):
    """A training process failed or took too long; with its exit status, last log lines and the log's path."""


def metrics_path(log_path: Path) -> Path:
    """The path of a trainer's metrics, one JSON object per line: `step`, `epoch`, `loss`, `learning_rate`, ..."""
    return log_path.with_suffix(".metrics.jsonl")


@contextmanager
def attempt_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder `NAME-...` in `parent` for one attempt at a training: removed if the block succeeds, kept if it raises.

    It is new, or the folder of an earlier attempt at `name` that is marked as finished but was not published (see
    `finish_attempt`). Folders of other attempts that have ended, killed ones included, are removed first. Those of
    living attempts are locked and stay.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with _locked(parent):  # so that no other process sees the new folder before it is locked
            folder: Path | None = None
            for other in sorted(parent.glob(f"{name}-*")):
                with suppress(BlockingIOError, FileNotFoundError), ExitStack() as lock:
                    lock.enter_context(_locked(other, fcntl.LOCK_NB))
                    if folder is None and is_finished(other):
                        folder = other
                        held.push(lock.pop_all())
                    else:
                        _remove(other)
            if folder is None:
                folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
                held.enter_context(_locked(folder))
        yield folder
        _remove(folder)


def _remove(folder: Path) -> None:
    (folder / _FINISHED).unlink(missing_ok=True)  # first: half of a folder is not a finished training
    shutil.rmtree(folder, ignore_errors=True)


def finish_attempt(folder: Path) -> None:
    """Mark a training as finished, once all its files are on disk. A failure after this costs no second training."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    (folder / _FINISHED).touch()


def is_finished(folder: Path) -> bool:
    """Whether the training in an attempt's folder is marked as finished."""
    return (folder / _FINISHED).exists()


@contextmanager
def _locked(folder: Path, flags: int = 0) -> Iterator[None]:
    """Hold a kernel lock on a folder, among threads and processes, until the block or the process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(descriptor)


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
        METRICS_VARIABLE: str(metrics_path(log_path)),
    }
