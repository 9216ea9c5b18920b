"""The experiment trackers that a training can report to: which there are, and their settings. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path

from infra.errors import BadInput
from infra.training.config import Tracker, TrainingConfig

PACKAGES: Mapping[Tracker, str] = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow-skinny",
    "trackio": "trackio",
}
"""The package that each tracker needs. The module has the tracker's name; any other package with it is as good."""
PROJECT = "bolt"
"""The project (MLflow: experiment) that trainings belong to, unless the environment names another."""
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def is_installed(tracker: str) -> bool:
    """Whether a tracker's module can be imported. A folder of its name (W&B leaves `wandb/`) does not count."""
    found = find_spec(tracker)
    return found is not None and found.origin is not None


def check_trackers(report_to: Collection[str], setting: str) -> None:
    """Refuse trackers that are not installed. `setting` is where they are named, for the message.

    Raises:
        BadInput: a package is missing.
    """
    for tracker, package in PACKAGES.items():
        if tracker in report_to and not is_installed(tracker):
            raise BadInput(
                f"{setting}: {tracker} is not installed here: run `.venv/bin/pip install --constraint constraints.txt "
                f"{package}`, or leave {tracker} out"
            )


def events_folder(tracking: Path, name: str) -> Path:
    """The folder of TensorBoard's files of the training `name`: in `TENSORBOARD_LOGGING_DIR`, else in `tracking`."""
    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    return (Path(given).expanduser() if given else tracking / "tensorboard") / name


def environment(config: TrainingConfig) -> dict[str, str]:
    """The environment variables of the trackers. What is set already stays, but for two.

    TensorBoard's folder gets one for each training in it, and W&B uploads no model: it would save one with DeepSpeed's
    weights on rank 0 alone, and wait for the other ranks forever. Waits are bounded, so that a server that cannot be
    reached delays a training by minutes at most.
    """
    folder = (config.tracking or config.output.with_name("tracking")).absolute()
    ours = {"TENSORBOARD_LOGGING_DIR": str(events_folder(folder, config.name)), "WANDB_LOG_MODEL": "false"}
    defaults = {
        "WANDB_PROJECT": PROJECT,
        "WANDB_DIR": str(folder),
        "WANDB_RUN_ID": re.sub(r"[^\w-]", "-", config.output.parent.name)[-64:],
        "WANDB_RESUME": "allow",
        "WANDB_INIT_TIMEOUT": "60",
        "WANDB_FINISH_TIMEOUT": "60",
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",  # for a MLFLOW_TRACKING_URI that is a folder: MLflow prefers databases
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    return {**defaults, **{name: os.environ[name] for name in defaults if name in os.environ}, **ours}


def without_secrets(text: str) -> str:
    """A text without the values of environment variables that name a secret, and without users in addresses."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return _USER_IN_ADDRESS.sub("***", text)
