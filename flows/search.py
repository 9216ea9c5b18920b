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
from flows.stages.run import TASK_RUNNER, Run, begin
from flows.stages.sampling import check_seeds
from flows.stages.searching import SearchStage, all_graded, publish_trees, search_stage, unfit
from flows.stages.summary import run_folder
from infra.text.markdown import markdown_table
from tasks.evaluation.grade import references_of
from tasks.mutual.adapt import StepFormat
from tasks.mutual.judge import JudgeConfig
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
        for reason in unfit(self.serving, self.sampling, scores=bool(scoring)):
            raise ValueError(reason)
        if self.reward_model is None and self.judge is not None:
            raise ValueError("judge is set, but reward_model is null: leave it out")
        return self


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
        if not run.dry and all_graded(run, problems):
            references_of(run.store, problems, config.verifier)
        given: dict[str, Any] = {"format": config.steps, "judge": config.judge}
        found, trees = search_stage(run, config, problems, policy, judge, **given)
        if run.dry:
            return None
        result = publish_search(run, found)
        publish_trees(run, result["run"], config, trees, problems)
        return result


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
