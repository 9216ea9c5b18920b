"""`python -m flows study/nano`: run the whole method in several variants, each with several seeds, and compare them.

A variant (an *arm*) differs from the base in a few settings. A *cell* is an arm with a seed: a run of `bolt`, `still2`
or `still1`. Cells share every step whose inputs and settings are the same, so that arms that differ in stage 3 have one
SFT model per seed. A study that was interrupted goes on with what it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Annotated, Any, Self

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from flows.bolt import BoltConfig, bolt
from flows.stages.common import ALERTS
from flows.stages.run import TASK_RUNNER
from flows.stages.summary import run_folder
from flows.still1 import Still1Config, still1
from flows.still2 import Still2Config, still2
from infra.errors import BadInput, GuardError
from infra.processes.causes import LAST_LINES
from infra.processes.torchrun import TrainerError
from infra.settings import Settings
from infra.store.store import Store
from infra.text.markdown import short
from tasks.report.mutual_study import judges_of, searches_of, searches_plot
from tasks.report.study import by_steps_plot, cost_of, stages_of, study_page, study_plot
from tasks.responses.generate import QuarantineError, TruncationError

FAILURES = (BadInput, GuardError, TrainerError, TruncationError, QuarantineError)
"""What may end a cell and not the study: that a variant fails is a result."""


def method_of(base: Any) -> str:
    """Which method the parameters of a base are those of."""
    names = base if isinstance(base, dict) else getattr(type(base), "model_fields", {})
    return "still2" if "imitate" in names else "still1" if "adapt" in names else "bolt"


Config = Annotated[
    Annotated[BoltConfig, Tag("bolt")]
    | Annotated[Still2Config, Tag("still2")]
    | Annotated[Still1Config, Tag("still1")],
    Discriminator(method_of),
]


class Arm(BaseModel, frozen=True, extra="forbid"):
    """A variant of the method."""

    name: str = Field(pattern=r"^[\w.-]+$", description="Name of the variant in tables and plots.")
    settings: dict[str, Any] = Field(
        {},
        description="What differs from `base`, by path: {online.method: rloo}. An object takes the place of the whole "
        "object in `base`: what it does not set is at its default.",
    )
    seeds: tuple[int, ...] | None = Field(
        None, min_length=1, description="Seeds of this variant. Null: those of the study."
    )


class StudyConfig(BaseModel, frozen=True, extra="forbid"):
    """Parameters of the flow `study`."""

    arms: tuple[Arm, ...] = Field(min_length=1, description="The variants; each is compared with the first.")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="Seeds of sampling and training.")
    only: tuple[str, ...] = Field((), description="Cells to run, as ARM/SEED. Empty: all.")
    base: Config = Field(description="The parameters of `bolt`, `still2` or `still1` that all variants begin with.")
    dry_run: bool = Field(False, description="Print the plan of each cell and stop.")

    @model_validator(mode="after")
    def _cells_are_valid(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arms: {names}: each name must be unique")
        known = [cell for cell, _ in cells(self)]  # builds each configuration
        if unknown := [cell for cell in self.only if cell not in known]:
            raise ValueError(f"only: no cell {unknown[0]!r}; there are {', '.join(known)}")
        return self


def cells(config: StudyConfig) -> Iterator[tuple[str, Config]]:
    """The parameters of each cell by its name ARM/SEED: all arms with the first seed, then with the next.

    Raises:
        ValueError: the settings of an arm are wrong.
    """
    seeds = dict.fromkeys(seed for arm in config.arms for seed in (arm.seeds or config.seeds))
    for seed in seeds:
        for arm in config.arms:
            if seed in (arm.seeds or config.seeds):
                yield f"{arm.name}/{seed}", cell_config(config.base, arm, seed, dry_run=config.dry_run)


def cell_config(base: Config, arm: Arm, seed: int, *, dry_run: bool) -> Config:
    """The base with an arm's settings, and everything that is random seeded. Raises `ValueError`."""
    # What is not set stays unset: a default may depend on other settings.
    whole, parameters = base.model_dump(), base.model_dump(exclude_unset=True)
    if "dry_run" in arm.settings:
        raise ValueError(f"arms: {arm.name}: dry_run is set: set `config.dry_run` of the study")
    for path, value in {**arm.settings, "dry_run": dry_run}.items():
        place, name = found(whole, path)
        if name not in place:
            raise ValueError(f"arms: {arm.name}: there is no setting {path} in the parameters of the flow")
        put(whole, path, value)
        put(parameters, path, value)
    try:
        for path in seeded(type(base)(**parameters).model_dump()):
            if path in flat(arm.settings):
                raise ValueError(f"arms: {arm.name}: {path} is set, but the study seeds it: use `seeds`")
            put(parameters, path, seed)
        return type(base)(**parameters)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ValueError(f"arms: {arm.name}: {said}") from error


def seeded(parameters: dict[str, Any]) -> tuple[str, ...]:
    """The paths of all seeds in the parameters of a method."""
    if "online" in parameters:
        recipe = "online.dpo.seed" if parameters["online"]["method"] == "dpo" else "online.rl.seed"
        return ("serving.policy.seed", "bootstrap.generate.seed", "sft.seed", "online.generate.seed", recipe)
    if "adapt" in parameters:
        adapt = ("adapt.sampled.generate.seed",) if parameters["adapt"].get("sampled") is not None else ()
        improve = ("improve.generate.seed", "improve.choose.seed", "improve.reward.seed", "improve.dpo.seed")
        searches = () if parameters["search"] is None else ("search.sampling.seed",)
        if (data := parameters["improve"]["search"]) is not None:
            learns = data.get("learn", "both") != "pairs"
            searches += ("improve.search.sampling.seed", *(("improve.search.sft.seed",) if learns else ()))
        return ("serving.policy.seed", "sft.seed", *adapt, *improve, *searches)
    explore = ("explore.generate.seed", "explore.pick.seed", "improve.dpo.seed")
    return ("serving.policy.seed", "imitate.choose.seed", "sft.seed", *explore)


def found(parameters: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The object that a path in the parameters leads to, empty if it leads nowhere, and the last name of the path."""
    *folders, name = path.split(".")
    place: Any = parameters
    for folder in folders:
        place = place.get(folder) if isinstance(place, dict) else None
    return place if isinstance(place, dict) else {}, name


def flat(settings: dict[str, Any], place: str = "") -> set[str]:
    """The paths of all values in settings, those in objects included."""
    paths: set[str] = set()
    for name, value in settings.items():
        paths |= flat(value, f"{place}{name}.") if isinstance(value, dict) else {f"{place}{name}"}
    return paths


def put(parameters: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path in the parameters; objects on the way are added if they are missing."""
    *folders, name = path.split(".")
    for folder in folders:
        parameters = parameters.setdefault(folder, {})
    parameters[name] = deepcopy(value)


@flow(task_runner=TASK_RUNNER, **ALERTS)
def study(config: StudyConfig) -> dict[str, Any] | None:
    """Compare variants of the method over seeds.

    Raises:
        BadInput: a dry run found a cell that cannot be run.
    """
    rows: list[dict[str, Any]] = []
    costs: dict[str, dict[str, int]] = {}
    failed: dict[str, str] = {}
    searches, judges = list[dict[str, Any]](), list[dict[str, Any]]()
    for cell, parameters in cells(config):
        if config.only and cell not in config.only:
            continue
        print(f"\ncell {cell}")
        summary: dict[str, Any] | None = None
        try:
            summary = run_cell(parameters)
        except FAILURES as error:
            failed[cell] = f"{type(error).__name__}: {reason(str(error))}"
            print(f"cell {cell} failed: {failed[cell]}")
            summary = error.summary if isinstance(error, GuardError) else None
        if summary is not None:
            arm, _, seed = cell.rpartition("/")
            rows += stages_of(summary, arm, int(seed))
            if isinstance(parameters, Still1Config):
                searches += searches_of(summary, arm, int(seed))
                judges += judges_of(summary, arm, int(seed))
            costs[cell] = cost_of(Store.open(Settings.load()), summary)
    if config.dry_run:
        if failed:
            raise BadInput("\n".join(f"cell {cell} cannot be run: {why}" for cell, why in failed.items()))
        return None
    made = {"rows": rows, "cells": costs, "failed": failed, "searches": searches, "judges": judges}
    return publish_study(config, made)


def run_cell(parameters: Config) -> dict[str, Any] | None:
    """Run the method of a cell."""
    if isinstance(parameters, BoltConfig):
        return bolt(parameters)
    return still2(parameters) if isinstance(parameters, Still2Config) else still1(parameters)


def reason(text: str) -> str:
    """What went wrong: of a trainer's failure, its cause without the log."""
    named = text.partition("; cause: ")[2].partition(LAST_LINES)[0]
    return short(named or text, 500)


def publish_study(config: StudyConfig, results: dict[str, Any]) -> dict[str, Any]:
    """Write `runs/RUN/study.json`, `study.md` and plots (`study.svg`, `by-steps.svg` if the problems state their
    numbers of steps, `searches.svg` if the method searches) to the store. Returns the study and its path.

    Raises:
        BadInput: no cell has a result.
    """
    rows = results["rows"]
    if not rows:
        raise BadInput(f"study: no cell has a result: {results['failed']}: correct the settings of the arms")
    store = Store.open(Settings.load())
    arms = {arm.name: arm.settings for arm in config.arms}
    made = {"arms": arms, **results}
    folder = f"runs/{run_folder()}"
    store.write_bytes(f"{folder}/study.json", json.dumps(made, indent=1).encode())
    store.write_bytes(f"{folder}/study.svg", study_plot(rows))
    if (plot := by_steps_plot(rows, config.arms[0].name)) is not None:
        store.write_bytes(f"{folder}/by-steps.svg", plot)
    if (plot := searches_plot(results["searches"], config.arms[0].name)) is not None:
        store.write_bytes(f"{folder}/searches.svg", plot)
    page = study_page(made)
    store.write_bytes(f"{folder}/study.md", page.encode())
    create_markdown_artifact(page, key="bolt-study", description="Variants of the method, over seeds")
    print(f"\n{page}")
    return {**made, "path": store.uri(f"{folder}/study.json")}
