"""`python -m flows search/nano --set config.model=dpo-2/KEY`: search with a policy and a reward model (STILL-1).

Any policy that writes solutions in steps, any reward model, and any problems; several ways of searching are compared at
the tokens that each of them sampled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from typing import Any, Self

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from pydantic import BaseModel, Field, model_validator

from flows.evaluate import graded_frame
from flows.stages.common import A_MODEL, ALERTS, Common
from flows.stages.mining import ProblemsConfig, problems_stage
from flows.stages.run import TASK_RUNNER, Run, begin
from flows.stages.sampling import check_seeds
from flows.stages.searching import unfit
from flows.stages.summary import run_folder
from infra.store.manifest import Ref, expect
from infra.text.markdown import markdown_table
from tasks.evaluation.grade import grade
from tasks.evaluation.summarise import interval
from tasks.mutual.adapt import StepFormat
from tasks.mutual.judge import JudgeConfig
from tasks.report.searches import search_rows, tokens_plot
from tasks.report.tree_page import PROBLEMS, trees_of, write_trees
from tasks.rewards.score import Verifier
from tasks.search.answers import searched_answers
from tasks.search.ask import SearchSampling
from tasks.search.search_problems import search_problems
from tasks.search.strategies import SearchConfig
from tasks.search.vote import Vote


class Searched(BaseModel, frozen=True, extra="forbid"):
    """One way of searching."""

    name: str = Field(pattern=r"^[\w.-]+$", description="Name of the search in tables and step names.")
    search: SearchConfig = Field(SearchConfig(), description="How problems are searched.")
    answers: tuple[Vote, ...] = Field(
        ("weighted",),
        min_length=1,
        description="Which of the solutions found is the answer; each gets a row of the table. `best`: the one with "
        "the highest reward. `majority`: one with the most frequent answer (self-consistency). `weighted`: one with "
        "the answer whose rewards add up to most.",
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if len(set(self.answers)) < len(self.answers):
            raise ValueError(f"answers: {', '.join(self.answers)}: name each once")
        if self.search.patience is not None and not self.scores:
            raise ValueError("patience is set, but no reward is asked for: use `agree`, or other `answers`")
        return self

    @property
    def scores(self) -> bool:
        """Whether the reward model is asked at all."""
        return self.search.strategy != "sampling" or set(self.answers) != {"majority"}


class SearchFlowConfig(Common):
    """Parameters of the flow `search`."""

    model: str = Field(description=f"Policy, which writes solutions in steps: {A_MODEL}.")
    reward_model: str | None = Field(
        description=f"Reward model: {A_MODEL}. Null: none; then only `sampling` with answers `majority` is possible."
    )
    judge: JudgeConfig | None = Field(
        None,
        description="How a generative reward model is asked about a solution. Null: the reward model is a one-label "
        "sequence classifier.",
    )
    steps: StepFormat = Field(StepFormat(), description="How a solution is written step by step.")
    problems: ProblemsConfig = Field(description="Problems to search. They are graded if all have a `reference`.")
    verifier: Verifier = Field("short-answer", description="How the answer of a solution is read and graded.")
    searches: tuple[Searched, ...] = Field(
        min_length=1, description="The ways of searching, in the order of the table."
    )
    sampling: SearchSampling = Field(SearchSampling(), description="How steps and solutions are sampled.")
    shards: int = Field(1, ge=1, le=400, description="Number of shards that the problems are split into.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [each.name for each in self.searches]
        if len(set(names)) < len(names):
            raise ValueError(f"searches: {names}: each name must be unique")
        scoring = [each.name for each in self.searches if each.scores]
        if scoring and self.reward_model is None:
            raise ValueError(
                f"reward_model is null, but search {scoring[0]} needs one: name it, or leave the search out"
            )
        for reason in unfit(self.serving, self.sampling, scores=bool(scoring)):
            raise ValueError(reason)
        if self.reward_model is None and self.judge is not None:
            raise ValueError("judge is set, but reward_model is null: leave it out")
        return self


def searched(
    run: Run, config: SearchFlowConfig, each: Searched, problems: Ref, policy: Ref, judge: Ref | None
) -> list[Ref]:
    """The trees of all problems by one way of searching, a table per shard."""
    return run.do_shards(
        search_problems,
        f"search-{each.name}",
        config.shards,
        expected_tokens=problems.rows * each.search.tokens,
        config=each.search,
        sampling=config.sampling,
        format=config.steps,
        judge=config.judge if each.scores else None,
        verifier=config.verifier,
        queries=problems,
        policy=policy,
        reward_model=judge if each.scores else None,
    )


def figures_of(run: Run, each: Searched, vote: Vote, trees: list[Ref], grades: Ref | None) -> dict[str, Any]:
    """What a search cost, and the accuracy of its answers if they were graded."""
    counts = [expect(run.store, tree).counts for tree in trees]
    total = {name: sum(shard[name] for shard in counts) for name in counts[0]}
    problems = max(1, total["problems"])
    shown = {"name": each.name, "search": each.search.model_dump(), "answer": vote, "problems": total["problems"]}
    shown |= {"tokens": total["completion_tokens"] / problems, "solutions": total["solutions"] / problems}
    shown["without_a_solution"] = total["without a solution"]
    shown["seconds"] = next(record.seconds for record in run.steps if record.name == f"search-{each.name}")
    if grades is None:
        return {**shown, "accuracy": None, "accuracy_low": None, "accuracy_high": None}
    right = graded_frame(run, grades)["correct"].to_numpy(dtype=float)
    low, high = interval(right)
    return {**shown, "accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}


@flow(task_runner=TASK_RUNNER, **ALERTS)
def search(config: SearchFlowConfig) -> dict[str, Any] | None:
    """Search problems in several ways, and compare them at the tokens that each sampled."""
    with begin(config) as run:
        policy = run.model(config.model)
        judge = None
        if config.reward_model is not None:
            judge = run.model(config.reward_model, role="judge" if config.judge else "reward", on_server=True)
        check_seeds(run, "search", config.sampling.request_seeds, policy, "sampling")
        problems = problems_stage(run, config.problems)
        graded = all(row["reference"] is not None for row in run.rows(problems, ["reference"]))
        found, made = [], dict[str, list[Ref]]()
        for each in config.searches:
            trees = searched(run, config, each, problems, policy, judge)
            made[each.name] = trees
            for vote in each.answers:
                answers = run.do(
                    searched_answers, f"answers-{each.name}-{vote}", searched=trees, vote=vote, policy=policy
                )
                grades = None
                if graded:
                    given: dict[str, Any] = {"responses": [answers], "problems": problems, "benchmark": config.verifier}
                    grades = run.do(grade, f"grades-{each.name}-{vote}", **given)
                if not run.dry:
                    found.append(figures_of(run, each, vote, trees, grades))
        if run.dry:
            return None
        result = publish_search(run, found)
        asked = (problems, config.verifier)
        shown = (trees_of(run.store, each.name, made[each.name], each.answers[0], *asked) for each in config.searches)
        publish_trees(run, result["run"], chain.from_iterable(shown))
        return result


def publish_trees(run: Run, name: str, trees: Iterable[dict[str, Any]]) -> None:
    """Write `runs/NAME/trees.html` to the store, and a link to it as a Prefect artifact."""
    path = f"runs/{name}/trees.html"
    with run.store.open_write(path) as page:
        write_trees(page.write, name, trees)
    address = run.store.local_path(path).as_uri() if run.store.is_local else run.store.uri(path)
    described = f"The trees of the first {PROBLEMS} problems: `{run.store.uri(path)}`"
    create_link_artifact(address, key="bolt-search-trees", link_text="trees.html", description=described)
    print(f"trees: {run.store.uri(path)}")


def publish_search(run: Run, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Write `runs/RUN/search.json` and `search.svg` to the store, and a Prefect artifact.

    Returns the result and its path.
    """
    name = run_folder()
    result: dict[str, Any] = {"run": name, "searches": found, "steps": [record.model_dump() for record in run.steps]}
    path = f"runs/{name}/search.json"
    run.store.write_bytes(path, json.dumps(result, indent=1).encode())
    if found[0]["accuracy"] is not None:
        run.store.write_bytes(f"runs/{name}/search.svg", tokens_plot(found))
    table = markdown_table(search_rows(found))
    if not run.store.is_local:
        create_link_artifact(run.store.uri(path), key="bolt-search-file", link_text="search.json")
    create_markdown_artifact(f"# Search\n\n{table}\n", key="bolt-search", description="Accuracy and tokens by search")
    print(f"\n{table}")
    return {**result, "path": run.store.uri(path)}
