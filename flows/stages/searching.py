"""Several ways of searching side by side: their figures, and a page of trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any, Self

from prefect.artifacts import create_link_artifact
from pydantic import BaseModel, Field, model_validator

from flows.stages.run import Run
from infra.serving.servers import ServingConfig
from infra.store.manifest import Ref, expect
from infra.store.tables import read_table
from tasks.evaluation.grade import grade
from tasks.evaluation.summarise import interval
from tasks.mutual.adapt import StepFormat
from tasks.mutual.judge import JudgeConfig
from tasks.report.tree_page import PROBLEMS, tree_page, trees_of
from tasks.rewards.verify import Verifier
from tasks.search.answers import searched_answers
from tasks.search.ask import SearchSampling
from tasks.search.search_problems import search_problems
from tasks.search.strategies import SearchConfig
from tasks.search.vote import Vote


def unfit(serving: ServingConfig, sampling: SearchSampling, *, scores: bool, elsewhere: bool = False) -> Iterator[str]:
    """Why a search cannot run on these servers.

    Args:
        scores: whether it asks a reward model.
        elsewhere: whether no policy that is searched has a GPU of the reward model: all are at `serving.policy_urls`,
            where no trained one is, or a cluster deals out the GPUs.
    """
    if scores and serving.share_devices:
        yield (
            "serving.share_devices is true, but a search asks policy and reward model in turn: set it to false, and "
            "serving.policy.gpu_memory_utilization and that of serving.reward to shares of the GPU's memory"
        )
    beside = beside_reward(serving)
    taken = beside * serving.policy.gpu_memory_utilization + serving.reward.gpu_memory_utilization
    if scores and not elsewhere and taken > 1:
        yield (
            f"serving.policy.gpu_memory_utilization (of {beside} servers) and that of serving.reward add up to "
            f"{taken:g}, but all are on the GPU at once: lower them"
        )
    lengths = [("step_tokens", "policy"), ("solution_tokens", "policy")]
    lengths += [("solution_tokens", "reward")] if scores else []
    for setting, role in lengths:
        limit = getattr(serving, role).max_model_len
        if getattr(sampling, setting) >= limit:
            yield (
                f"sampling.{setting} is {getattr(sampling, setting):,}, but serving.{role}.max_model_len is {limit:,}, "
                "which leaves no room for the problem: lower the first, or raise the second"
            )


def beside_reward(serving: ServingConfig) -> int:
    """How many servers of the policy are at most on one of the reward model's GPUs, which are the first ones of the
    machine, since its server sees all. A GPU that is not named by its number may be one of them."""
    if not serving.policy_devices:
        return serving.policy_servers
    rewards = {str(number) for number in range(serving.reward.tensor_parallel_size)}
    named = [each.replace(" ", "").split(",") for each in serving.policy_devices]
    unknown = any(not gpu.isdigit() for gpus in named for gpu in gpus)
    return max(int(unknown), *(sum(gpu in gpus for gpus in named) for gpu in rewards))


class Searched(BaseModel, frozen=True, extra="forbid"):
    """One way of searching."""

    name: str = Field(pattern=r"^[\w.-]+$", description="Name of the search in tables and step names.")
    search: SearchConfig = Field(SearchConfig(), description="How problems are searched.")
    answers: tuple[Vote, ...] = Field(
        ("weighted",),
        min_length=1,
        description="Which of the solutions found is the answer; each gets a row of the table. `best`: the one with "
        "the highest reward. `majority`: one with the most frequent answer (self-consistency). `weighted`: one with "
        "the answer whose rewards have the highest sum.",
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


class SearchStage(BaseModel, frozen=True, extra="forbid"):
    """Ways of searching, side by side."""

    searches: tuple[Searched, ...] = Field(
        min_length=1, description="The ways of searching, in the order of the table."
    )
    sampling: SearchSampling = Field(SearchSampling(), description="How steps and solutions are sampled.")
    verifier: Verifier = Field("math500", description="How the answer of a solution is read and graded.")
    shards: int = Field(1, ge=1, le=400, description="Number of shards that the problems are split into.")

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [each.name for each in self.searches]
        if len(set(names)) < len(names):
            raise ValueError(f"searches: {names}: each name must be unique")
        return self


def all_graded(run: Run, problems: Ref) -> bool:
    """Whether all problems have a reference, so that answers are graded."""
    return all(row["reference"] is not None for row in run.rows(problems, ["reference"]))


def search_stage(
    run: Run,
    config: SearchStage,
    problems: Ref,
    policy: Ref,
    reward_model: Ref | None,
    *,
    format: StepFormat,
    judge: JudgeConfig | None,
    name: str = "",
) -> tuple[list[dict[str, Any]], dict[str, list[Ref]]]:
    """Search the problems with a policy in several ways.

    Args:
        reward_model: scores solutions; None if no search asks for it.
        judge: how a generative reward model is asked; None for a sequence classifier.
        name: the policy's, a part of the steps' names.

    Returns the figures of each search and vote (none in a dry run), and the trees by search. Answers are graded if all
    problems have a reference.
    """
    graded = all_graded(run, problems)
    found, made = list[dict[str, Any]](), dict[str, list[Ref]]()
    for each in config.searches:
        step = "-".join(filter(None, (name, each.name)))
        trees = made[each.name] = run.do_shards(
            search_problems,
            f"search-{step}",
            config.shards,
            expected_tokens=problems.rows * each.search.tokens,
            config=each.search,
            sampling=config.sampling,
            format=format,
            judge=judge if each.scores else None,
            verifier=config.verifier,
            queries=problems,
            policy=policy,
            reward_model=reward_model if each.scores else None,
        )
        for vote in each.answers:
            answers = run.do(searched_answers, f"answers-{step}-{vote}", searched=trees, vote=vote, policy=policy)
            grades = None
            if graded:
                given: dict[str, Any] = {"responses": [answers], "problems": problems, "benchmark": config.verifier}
                grades = run.do(grade, f"grades-{step}-{vote}", **given)
            if not run.dry:
                seconds = next(record.seconds for record in run.steps if record.name == f"search-{step}")
                found.append({"policy": name, **figures_of(run, each, vote, trees, grades), "seconds": seconds})
    return found, made


def figures_of(run: Run, each: Searched, vote: Vote, trees: list[Ref], grades: Ref | None) -> dict[str, Any]:
    """What a search cost, and the accuracy of its answers if they were graded. `cut_off` is the share of the solutions
    sampled that were cut off; None if all were written step by step."""
    counts = [expect(run.store, tree).counts for tree in trees]
    total: Counter[str] = Counter()
    for shard in counts:
        total.update(shard)
    problems = max(1, total["problems"])
    shown = {"name": each.name, "search": each.search.model_dump(), "answer": vote, "problems": total["problems"]}
    shown |= {"tokens": total["completion_tokens"] / problems, "solutions": total["solutions"] / problems}
    shown["without_a_solution"] = total["without a solution"]
    rollouts = total["solutions sampled"]
    shown["cut_off"] = total["cut at solution_tokens"] / rollouts if rollouts else None
    shown["corrected"] = total["calculations corrected"]
    if grades is None:
        return {**shown, "accuracy": None, "accuracy_low": None, "accuracy_high": None}
    right = read_table(run.store, grades, ["correct"]).column("correct").to_numpy().astype(float)
    low, high = interval(right)
    return {**shown, "accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}


def publish_trees(run: Run, name: str, config: SearchStage, trees: dict[str, list[Ref]], problems: Ref) -> None:
    """Write `runs/NAME/trees.html` to the store, and a link to it as a Prefect artifact; nothing without a tree that is
    small enough to be shown."""
    path = f"runs/{name}/trees.html"
    shown = (
        trees_of(run.store, each.name, trees[each.name], each.answers[0], problems, config.verifier)
        for each in config.searches
    )
    page = tree_page(name, chain.from_iterable(shown))
    if page is None:
        return
    run.store.write_bytes(path, page)
    address = run.store.local_path(path).as_uri() if run.store.is_local else run.store.uri(path)
    described = f"The trees of the first {PROBLEMS} problems: `{run.store.uri(path)}`"
    create_link_artifact(address, key="bolt-search-trees", link_text="trees.html", description=described)
    print(f"trees: {run.store.uri(path)}")
