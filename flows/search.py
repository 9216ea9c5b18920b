"""`python -m flows search/nano --set config.model=dpo-2/KEY --set config.reward_model=sft-reward-2/KEY` (STILL-1).

Any policy that writes solutions in steps, any reward model, and any problems; several ways of searching are compared at
the tokens that each of them sampled.
"""

from __future__ import annotations

import json
from typing import Any, Self

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from pydantic import Field, model_validator

from flows.stages.common import A_MODEL, ALERTS, Common
from flows.stages.mining import ProblemsConfig, problems_stage
from flows.stages.run import PENDING, TASK_RUNNER, Run, begin
from flows.stages.sampling import check_seeds
from flows.stages.searching import SearchStage, all_graded, publish_trees, search_stage, unfit
from flows.stages.summary import run_folder
from infra.errors import BadInput
from infra.serving.model_checks import loaded_tokenizer
from infra.store.manifest import Ref
from infra.store.model_files import ModelFiles
from infra.text.markdown import markdown_table
from tasks.evaluation.grade import references_of
from tasks.mutual.adapt import StepFormat
from tasks.mutual.judge import JudgeConfig, answer_tokens
from tasks.report.searches import search_rows, tokens_plot


class SearchFlowConfig(SearchStage, Common):
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

    @model_validator(mode="after")
    def _whole(self) -> Self:
        scoring = [each.name for each in self.searches if each.scores]
        if scoring and self.reward_model is None:
            raise ValueError(
                f"reward_model is null, but search {scoring[0]} needs one: name it, or leave the search out"
            )
        # Unless the policy at `policy_urls` turns out to have been trained here. On a cluster each has its own GPUs.
        elsewhere = bool(self.serving.policy_urls) or self.cluster is not None
        for reason in unfit(self.serving, self.sampling, scores=self.scores, elsewhere=elsewhere):
            raise ValueError(reason)
        if self.reward_model is None and self.judge is not None:
            raise ValueError("judge is set, but reward_model is null: leave it out")
        for name, instead in (("in_flight", "in_flight"), ("max_quarantined_share", "max_refused_share")):
            if self.judge and getattr(self.judge, name) != JudgeConfig.model_fields[name].default:
                raise ValueError(
                    f"judge.{name} is set, but a search does not use it: leave it out, and set sampling.{instead}, "
                    "which is for policy and reward model"
                )
        return self

    @property
    def scores(self) -> bool:
        """Whether the reward model is asked at all."""
        return any(each.scores for each in self.searches)


@flow(task_runner=TASK_RUNNER, **ALERTS)
def search(config: SearchFlowConfig) -> dict[str, Any] | None:
    """Search problems in several ways, and compare them at the tokens that each sampled."""
    with begin(config) as run:
        policy = run.model(config.model)
        judge = None
        if config.reward_model is not None:
            judge = run.model(config.reward_model, role="judge" if config.judge else "reward", on_server=True)
            if config.judge:
                check_judge(run, config.judge, judge)
        elsewhere = run.servers.is_remote(policy) or config.cluster is not None
        for reason in unfit(config.serving, config.sampling, scores=config.scores, elsewhere=elsewhere):
            raise BadInput(reason)
        check_seeds(run, "search", config.sampling.request_seeds, policy, "sampling")
        problems = problems_stage(run, config.problems)
        if not run.dry and all_graded(run, problems):
            references_of(run.store, problems, config.verifier)
        given: dict[str, Any] = {"format": config.steps, "judge": config.judge}
        found, trees = search_stage(run, config, problems, policy, judge, **given)
        if run.dry:
            return None
        result = publish_search(run, found)
        publish_trees(run, result["run"], config, trees, problems)
        return result


def check_judge(run: Run, config: JudgeConfig, model: Ref) -> None:
    """Refuse a question or answers that the reward model cannot be asked, before a server starts. In a dry run, the
    answers are looked at unless the model is still on the hub.

    Raises:
        BadInput: the template cannot be read or lacks a field, or the answers cannot be told apart.
    """
    config.question("", "")
    if model.digest.startswith(PENDING):
        return
    folder = run.folders.get(model.digest)
    files = ModelFiles.in_folder(folder) if folder else ModelFiles.of(run.store, model)
    with files.without_weights() as own:
        answer_tokens(loaded_tokenizer(files, own), config)


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
