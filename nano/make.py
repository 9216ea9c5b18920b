"""The steps that make the nano models. Each model is trained in a process of its own."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from evals import short_answer
from infra.processes.watchdog import GuardedProcess
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model, publish_model
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import read_rows, write_table
from nano.config import PretrainConfig, PretrainRecipe
from nano.corpus import documents
from nano.families import FAMILIES
from nano.problem import Habits, Problem
from nano.write_data import distinct
from tasks.queries.identity import query_id


class PretrainError(RuntimeError):
    """A pretraining process failed; the message has its last log lines."""


def pretrained(
    module: str, recipe: PretrainRecipe, folder: Path, start: Path | None, samples: Path | None
) -> dict[str, Any]:
    """Run a pretraining module, which writes its model to `folder/model`. Returns the last metrics that it logged.

    Raises:
        PretrainError: the process failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = PretrainConfig(**recipe.model_dump(), output=folder / "model", start=start, samples=samples)
    path = folder / "config.json"
    path.write_text(config.model_dump_json(indent=1))
    process = GuardedProcess(
        [sys.executable, "-m", module, str(path)], log_path=folder / "train.log", env={"OMP_NUM_THREADS": "1"}
    )
    try:
        status = process.wait()
    finally:
        process.stop()
    if status != 0:
        raise PretrainError(
            f"{module} ended with status {status}; log: {process.log_path}; its last lines:\n{process.tail()}"
        )
    last: dict[str, Any] = json.loads((folder / "model.metrics.jsonl").read_text().splitlines()[-1])
    return last


def corpus_digest(seed: int, count: int = 1000) -> str:
    """sha256 (hex) of the first `count` documents of the pretraining stream: identifies what the models read."""
    return hashlib.sha256("\n".join(islice(documents(seed), count)).encode()).hexdigest()


def write_made(model: Path, module: str, recipe: PretrainRecipe, figures: dict[str, Any], start: Path | None) -> None:
    """Write MADE.json: the training runs (`legs`) that made a model, including those of the model it started from."""
    before = json.loads((start / "MADE.json").read_text())["legs"] if start else []
    leg = {
        "command": "python -m flows nano/make",
        "module": module,
        "recipe": recipe.model_dump(mode="json"),
        "corpus": corpus_digest(recipe.seed),
        "figures": figures,
    }
    (model / "MADE.json").write_text(json.dumps({"legs": [*before, leg]}, indent=1) + "\n")


def made(
    plan: Plan,
    store: Store,
    folder: Path,
    module: str,
    recipe: PretrainRecipe,
    start: Path | None = None,
    samples: Path | None = None,
) -> Ref:
    """Train a model, write MADE.json beside it, and publish it."""
    figures = pretrained(module, recipe, folder, start, samples)
    write_made(folder / "model", module, recipe, figures, start)
    return publish_model(store, plan.step, plan.key, folder / "model", plan.provenance, counts=figures)


@step
def make_instruct(plan: Plan, store: Store, *, recipe: PretrainRecipe, servers: Servers) -> Ref:
    """Pretrain the plain instruct model."""
    return made(plan, store, servers.work_dir / "nano" / plan.key, "nano.pretrain", recipe)


def reward_problems(count: int) -> dict[str, Problem]:
    """`count` distinct problems of the split `reward` by query id; always the same ones."""
    return {query_id(problem.query): problem for problem in distinct(random.Random(7), "reward", count)}


@step
def reward_queries(plan: Plan, store: Store, *, count: int) -> Ref:
    """The `reward` problems as a table `queries`, for the instruct model to answer."""
    rows = [
        {"query_id": identity, "query": problem.query, "source": "nano", "source_row": row, "reference": problem.answer}
        | {"criteria": None, "difficulty": None, "topic": problem.family, "step_count": None}
        for row, (identity, problem) in enumerate(reward_problems(count).items())
    ]
    return write_table(store, plan.step, plan.key, QUERIES, [rows], plan.provenance)


@step
def make_reward(
    plan: Plan,
    store: Store,
    *,
    recipe: PretrainRecipe,
    instruct: Ref,
    queries: Ref,
    responses: Sequence[Ref],
    servers: Servers,
) -> Ref:
    """Grow the outcome reward model from the instruct model, on made-up mistakes and on its `responses`."""
    servers.release()
    folder = servers.work_dir / "nano" / plan.key
    samples = write_samples(store, queries, responses, folder / "samples.jsonl")
    start = fetch_model(store, instruct, servers.work_dir)
    return made(plan, store, folder, "nano.pretrain_reward", recipe, start, samples)


def write_samples(store: Store, queries: Ref, responses: Sequence[Ref], path: Path) -> Path:
    """Write the sampled solutions with their outcomes and the right solution, one problem per JSON line."""
    problems = reward_problems(queries.rows)
    solutions: dict[str, dict[str, bool]] = {identity: {} for identity in problems}
    for shard in responses:
        for row in read_rows(store, shard, ["query_id", "solution"]):
            if row["solution"]:
                right = short_answer.is_correct(short_answer.extract(row["solution"]), problems[row["query_id"]].answer)
                solutions[row["query_id"]][" ".join(row["solution"].split())] = right
    rng = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lines:
        for identity, problem in problems.items():
            clean = FAMILIES[problem.family].derive(problem, rng, Habits(0.0, careful=False)).solution
            found = [[solution, right] for solution, right in solutions[identity].items() if solution != clean]
            print(json.dumps({"query": problem.query, "right": clean, "solutions": found}), file=lines)
    return path
