"""What all trainings share: run a trainer in a folder of its own and publish the model with the trainer's figures."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from cot_formats import detect
from cot_formats.responses import Format, LongFormat
from infra.errors import BadInput
from infra.processes.torchrun import metrics_path
from infra.serving.servers import Servers
from infra.steps.progress import progress
from infra.steps.step import Plan
from infra.store.manifest import Ref
from infra.store.models import fetch_model, publish_model
from infra.store.parts import find
from infra.store.store import Store
from infra.store.tables import scan
from infra.training.attempts import attempt_folder, finish_attempt, is_finished, model_path
from infra.training.checkpoint_copies import drop, kept_copied, latest, place
from infra.training.checkpoints import check_settings, checkpoints_folder, read
from infra.training.config import WITHOUT_EFFECT, Recipe, TrainingConfig, resumable_settings, trained_path
from infra.training.hosts import Hosts
from infra.training.inputs import check_reference
from infra.training.nodes import launch
from infra.training.switches import decided, ranks_of
from infra.training.trackers import events_folder
from tasks.training.card import CARD, check_format, judged, model_card
from tasks.training.guards import stop_shown
from tasks.training.watch import last_figures, logged, steps_done, steps_in_all

log = logging.getLogger(__name__)

LOOKED_AT = 100  # responses whose format is recognised
OUTSIDE_KEY = ("hosts", *(f"config.{name}" for name in (*WITHOUT_EFFECT, "ranks")))
"""What is not in a training's cache key. Over other ranks and hosts only the last bits of sums differ."""


def train_and_publish(
    plan: Plan,
    store: Store,
    servers: Servers,
    module: str,
    make_config: Callable[..., TrainingConfig],
    recipe: Recipe,
    hosts: Hosts,
    format: Format | None,
    keep: Callable[[Path], dict[str, Any]] = lambda _: {},
) -> Ref:
    """Free the devices, run the trainer `module` on `make_config(output=...)`, and publish the model that it wrote.

    A training that was killed goes on from its last checkpoint, which another host finds in the store. If another run
    published the same artifact in the meantime, that model is returned. A training that finished but was not published
    (the store was unreachable, the process was killed) is not repeated.

    Args:
        recipe: the settings that `make_config` puts into the trainer's configuration.
        format: the format of the data, which the trained model's answer is compared with; None if it is not known.
        keep: publishes what else the trainer made beside the folder of the model, and returns counts of it.

    Raises:
        infra.processes.torchrun.TrainerError: the trainer failed; the message has its last log lines, its folder stays.
        BadInput: the last checkpoint was made over another number of ranks; the model's answer is off the format, and
            `require_format` is set (its folder stays); or as `decided`.
    """
    servers.release()
    with attempt_folder(servers.work_dir / "training", f"{plan.step}-{plan.key}") as folder:
        model, log_path = model_path(folder), folder / "train.log"
        name, tracking = f"{plan.step}-{plan.key}", servers.work_dir / "tracking"
        if not is_finished(folder):
            config = make_config(output=model).model_copy(update={"name": name, "tracking": tracking})
            ranks = ranks_of(recipe, nodes=hosts.nodes)
            train(plan, store, module, config, ranks, log_path, hosts, servers.work_dir)
            finish_attempt(folder)
        report = training_report(folder)
        report["answer"] = judged(report["answer"], format)
        if recipe.require_format:
            check_format(report["answer"], plan.step, recipe.sample_tokens)
        report |= keep(model)
        (model / CARD).write_text(model_card(store, plan, report), encoding="utf-8")
        shutil.rmtree(checkpoints_folder(model), ignore_errors=True)
        made = find(store, plan.step, plan.key) or publish_model(
            store, plan.step, plan.key, model, plan.provenance, report, events_folder(tracking, name)
        )
    drop(store, plan.step, plan.key)
    return made


def train(
    plan: Plan,
    store: Store,
    module: str,
    config: TrainingConfig,
    ranks: int,
    log_path: Path,
    hosts: Hosts,
    shared: Path,
) -> None:
    """Run the trainer `module` from the last checkpoint, or from the beginning. Raises as `train_and_publish`.

    `shared` is the folder that all `hosts` see.
    """
    config, _ = decided(config)  # the trainer would decide so too; a checkpoint has what was decided
    checkpoints, metrics = checkpoints_folder(config.output), metrics_path(log_path)
    if resume := latest(store, plan.step, plan.key, checkpoints):
        places = f"{checkpoints} and {store.uri(place(plan.step, plan.key))}"
        check_settings(resume, resumable_settings(config, ranks * hosts.nodes), places)
        checkpoint = read(resume)
        log.info("%s: resumed at step %d of %d", plan.step, checkpoint.step, checkpoint.steps)
        config = config.model_copy(update={"resume": resume})
    with (
        stop_shown(plan.step, config),
        progress(
            plan.step,
            lambda: steps_done(metrics),
            lambda: steps_in_all(metrics),
            "steps",
            detail=lambda: last_figures(metrics),
        ),
        kept_copied(store, plan.step, plan.key, checkpoints, config.checkpoint_copy_minutes),
    ):
        launch(module, config, ranks=ranks, log_path=log_path, hosts=hosts, folder=shared)


def policies(store: Store, servers: Servers, policy: Ref, reference: Ref) -> tuple[Path, Path]:
    """The folders of a policy and its reference policy. Raises `BadInput` if the reference has another vocabulary."""
    model, fixed = (fetch_model(store, each, servers.work_dir) for each in (policy, reference))
    check_reference(model, fixed)
    return model, fixed


def check_table(table: Ref, what: str) -> None:
    """Refuse to train on a table without rows. Raises `BadInput`."""
    if not table.rows:
        raise BadInput(f"{what}: the table {table.step}/{table.key} has no rows to train on: make it from more data")


def format_in(store: Store, table: Ref, column: str) -> LongFormat | None:
    """The format that most of the first responses in a column are in; None if no format is recognised."""
    batch = next(scan(store, table, [column], batch_rows=LOOKED_AT))
    found = Counter(detect(text) for text in batch.column(column).to_pylist() if text)
    return cast(LongFormat | None, found.most_common(1)[0][0] if found else None)


def training_report(folder: Path) -> dict[str, Any]:
    """The trainer's report (written last, after the reload checks) and its logged curve, from a training folder."""
    found: dict[str, Any] = json.loads(trained_path(folder / "model").read_text())
    for tracker, why in found.get("untracked", {}).items():
        log.warning("the training was not wholly reported to %s: %s", tracker, why)
    return {**found, "curve": [line for line in logged(metrics_path(folder / "train.log")) if "steps" not in line]}
