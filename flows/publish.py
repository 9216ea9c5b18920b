"""`python -m flows publish/hub --set config.longcot=longcot/KEY --set config.repo=ORG/NAME`: push a data set.

The flow pushes LongCoT data and their card to the Hugging Face Hub. `show_longcot` shows both in Prefect's UI.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from pydantic import BaseModel, Field

from flows.stages.common import ALERTS
from flows.stages.run import TASK_RUNNER
from flows.stages.summary import run_folder
from infra.errors import BadInput
from infra.settings import Settings
from infra.steps.inputs import artifact_parts
from infra.store.manifest import Manifest, Ref
from infra.store.parts import find
from infra.store.store import Store
from tasks.report.dataset_card import ancestors, dataset_card
from tasks.report.plot import histogram_plot
from tasks.report.report import data_uri


class PublishConfig(BaseModel, frozen=True, extra="forbid"):
    """Parameters of the flow `publish`."""

    longcot: str = Field(pattern=r"^longcot/\w+$", description="LongCoT data to push: the artifact longcot/KEY.")
    repo: str = Field(
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="Data set ORG/NAME on the Hugging Face Hub; it is created if it does not exist. The token is read "
        "from the environment variable HF_TOKEN.",
    )
    private: bool = Field(True, description="Whether a data set that is created is private.")
    licence: str = Field(
        "other",
        pattern=r"^[\w.-]+$",
        description="Licence of the data set as the Hub spells it, e.g. apache-2.0. The sources' licences must "
        "allow it.",
    )
    dry_run: bool = Field(False, description="Print the card and what would be pushed, and stop.")


def show_longcot(store: Store, longcot: Ref) -> None:
    """Write the data set's card to `runs/RUN/longcot.md`, and show it and a histogram of the rewards in Prefect."""
    made = ancestors(store, longcot)
    card, table = dataset_card(made), made[-1]
    store.write_bytes(f"runs/{run_folder()}/longcot.md", card.encode())
    body = card.partition("\n---\n")[2]  # without the Hub's front matter
    create_markdown_artifact(body, key="bolt-longcot", description="The LongCoT data set")
    create_image_artifact(data_uri(scores_picture(table)), key="bolt-scores", description="Rewards and the threshold")


def scores_picture(longcot: Manifest) -> bytes:
    """The histogram of all rewards, with the threshold below which samples were dropped, from the table's manifest."""
    spread = longcot.counts["rewards"]
    return histogram_plot(spread["edges"], spread["samples"], longcot.counts["threshold"])


@flow(task_runner=TASK_RUNNER, **ALERTS)
def publish(config: PublishConfig) -> str | None:
    """Push a LongCoT data set and its card to the Hugging Face Hub.

    One commit replaces what was there. Returns its address, or None for a dry run.

    Raises:
        BadInput: there is no such artifact, or no token.
    """
    settings = Settings.load()
    store = Store.open(settings)
    step, _, key = config.longcot.partition("/")
    longcot = find(store, step, key)
    if longcot is None:
        raise BadInput(f"longcot: no whole artifact {config.longcot} in {store.root}")
    card = dataset_card(ancestors(store, longcot), config.licence)
    if config.dry_run:
        print(f"{card}\n{longcot.rows} rows of {longcot.uri} would be pushed to {config.repo}")
        return None
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise BadInput(f"no token to push to {config.repo}: set the environment variable HF_TOKEN")
    parts = artifact_parts(store, longcot, settings.work_dir)
    return pushed(config, card, parts, token)


def pushed(config: PublishConfig, card: str, parts: tuple[Path, ...], token: str) -> str:
    """Upload the card and the Parquet parts; returns the commit's address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(config.repo, repo_type="dataset", private=config.private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "README.md").write_text(card)
        (Path(folder) / "data").mkdir()
        for part in parts:
            (Path(folder) / "data" / re.sub(r"^part-", "train-", part.name)).symlink_to(part.resolve())
        commit = api.upload_folder(
            repo_id=config.repo,
            repo_type="dataset",
            folder_path=folder,
            commit_message=f"{config.longcot}",
            delete_patterns="data/*.parquet",
        )
    return str(commit.commit_url)
