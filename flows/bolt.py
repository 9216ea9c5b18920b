"""`python -m flows bolt/nano`: the whole method (BOLT, arXiv 2502.03860), with every stage evaluated.

Bootstrap LongCoT data from an instruct model, fine-tune it on them, and train it online on its own samples.
"""

from __future__ import annotations

from typing import Any, Self, TypeVar

from prefect import flow
from pydantic import Field, model_validator

from flows.bootstrap import BootstrapStage, bootstrap_stage, curated_for
from flows.evaluate import EvaluateStage, Grades, evaluate_stage, stage_gains, stage_summary, steps_of
from flows.online import OnlineStage, online_iteration, online_queries
from flows.publish import show_longcot
from flows.sft import sft_stage
from flows.stages.common import A_MODEL, A_REWARD_MODEL, ALERTS, Trains
from flows.stages.guards import Watch
from flows.stages.mining import mine_stage, publish_mining
from flows.stages.problems import problems_for
from flows.stages.run import TASK_RUNNER, begin
from flows.stages.sampling import check_rewards, reward_model_of, rewardable
from flows.stages.summary import publish_report, publish_summary, show_training
from infra.errors import GuardError
from infra.training.config import Recipe, SftRecipe
from tasks.report.bolt_page import bolt_content


class BoltBootstrap(BootstrapStage):
    """Stage 1 as a part of the whole method."""

    model: str | None = Field(
        None,
        description=f"Instruct model that writes the data: {A_MODEL}. Null: the model that is trained (BOLT: a 70B "
        "model writes the data of all).",
    )


Stage = TypeVar("Stage", BoltBootstrap, OnlineStage)


class BoltConfig(Trains):
    """Parameters of the flow `bolt`. The defaults are the paper's figures."""

    model: str = Field(description=f"Instruct model: {A_MODEL}.")
    reward_model: str | None = Field(description=A_REWARD_MODEL)
    bootstrap: BoltBootstrap = Field(description="Stage 1: LongCoT bootstrapping.")
    sft: SftRecipe = Field(SftRecipe(), description="Stage 2: LongCoT supervised fine-tuning.")
    online: OnlineStage = Field(description="Stage 3: iterative online training.")
    evaluate: EvaluateStage = Field(description="Held-out evaluation of every stage.")

    @model_validator(mode="after")
    def _rewards(self) -> Self:
        check_rewards(self.reward_model, self.bootstrap.score, "bootstrap.score")
        check_rewards(self.reward_model, self.online.score, "online.score")
        return self

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        """The policy learns to write one format, and everything that reads its samples must expect that format."""
        if self.online.generate.format != self.bootstrap.select.format:
            raise ValueError(
                f"online.generate.format is {self.online.generate.format}, but the policy learns "
                f"bootstrap.select.format, {self.bootstrap.select.format}: set both to the same format"
            )
        return self


def prepared(stage: Stage, config: BoltConfig) -> Stage:
    """The stage with the evaluation problems held out of its queries, all of which can be rewarded."""
    queries = rewardable(stage.queries.without(config.evaluate.problems), config.reward_model)
    return stage.model_copy(update={"queries": queries})


@flow(task_runner=TASK_RUNNER, **ALERTS)
def bolt(config: BoltConfig) -> dict[str, Any] | None:
    """Teach a plain instruct model to think, and evaluate the model of every stage."""
    with begin(config) as run:
        trains: dict[str, Recipe] = {"config.sft": config.sft}
        trains |= {config.online.setting: config.online.recipe} if config.online.iterations else {}
        written, learned = config.bootstrap.generate.format, config.bootstrap.select.format
        formats = (learned,) if config.bootstrap.model else (learned, written)
        instruct = run.model(config.model, trains=trains, formats=formats)
        writer = run.model(config.bootstrap.model, formats=(written,)) if config.bootstrap.model else instruct
        reward_model = reward_model_of(run, config.reward_model, on_server=config.online.on_policy)
        stage_1, stage_3 = prepared(config.bootstrap, config), prepared(config.online, config)

        # Whatever is wrong with the user's files is found here, before a GPU is used.
        problems = problems_for(run, config.evaluate.benchmark, config.evaluate.problems)
        examples = curated_for(run, stage_1, writer, config.serving.policy.max_model_len)
        queries, later_queries = mine_stage(run, stage_1.queries), online_queries(run, stage_3)
        publish_mining(run, [queries, *later_queries.values()])
        grades: dict[str, Grades] = {}

        # Each model is evaluated just before it is sampled from next, so that its server is started once.
        grades["instruct"] = evaluate_stage(run, config.evaluate, "instruct", problems, instruct, format="plain")
        grades["in-context"] = evaluate_stage(
            run,
            config.evaluate,
            "in-context",
            problems,
            writer,
            format=written,
            prompt=stage_1.prompt,
            examples=examples,
        )

        longcot = bootstrap_stage(run, stage_1, examples, queries, writer, reward_model)  # stage 1

        reference = policy = sft_stage(run, config.sft, longcot, instruct)  # stage 2
        show_training(run, policy)
        grades["sft"] = evaluate_stage(run, config.evaluate, "sft", problems, policy, format=learned)

        watch = Watch(run, stage_3.guards, stage_3.recipe.guards, config.sft.guards)
        watch.grades[0] = grades["sft"]["sampled"]
        for iteration in range(1, stage_3.iterations + 1):  # stage 3
            asked = later_queries[iteration]
            policy = online_iteration(run, stage_3, iteration, asked, policy, reference, reward_model, watch)
            show_training(run, policy)
            name = f"online-{iteration}"
            grades[name] = evaluate_stage(run, config.evaluate, name, problems, policy, format=learned)
            watch.grades[iteration] = grades[name]["sampled"]
        watch.measure(stage_3.iterations, policy)

        if run.dry:
            return None
        steps = steps_of(run, problems)
        stages = [stage_summary(run, name, found, steps) for name, found in grades.items()]
        summary = publish_summary(run, config.evaluate.benchmark, stages, stage_gains(run, grades), policy, watch.rows)
        publish_report(run.store, summary, bolt_content(run.store, summary))
        show_longcot(run.store, longcot)
        try:
            watch.stop_if_tripped()  # the last policy: what was done is shown first
        except GuardError as error:
            error.summary = summary
            raise
        return summary
