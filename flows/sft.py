"""`python -m flows sft/nano --set config.longcot=longcot/KEY`: stage 2 alone, LongCoT SFT (BOLT section 3.2)."""

from __future__ import annotations

from prefect import flow
from pydantic import Field

from flows.stages.common import A_MODEL, ALERTS, Trains
from flows.stages.run import TASK_RUNNER, Run, begin
from flows.stages.summary import show_training
from infra.store.manifest import Ref
from infra.training.config import SftRecipe
from tasks.training.render import format_of
from tasks.training.sft import train_sft
from tasks.training.train import check_table


class SftFlowConfig(Trains):
    """Parameters of the flow `sft`."""

    model: str = Field(description=f"Instruct model to fine-tune: {A_MODEL}.")
    longcot: str = Field(description="LongCoT data: the artifact longcot/KEY that a run of `bootstrap` returned.")
    sft: SftRecipe = Field(SftRecipe(), description="LongCoT supervised fine-tuning.")


def sft_stage(run: Run, config: SftRecipe, longcot: Ref, model: Ref) -> Ref:
    """The instruct model fine-tuned on LongCoT data: pi_0."""
    expected = int(longcot.rows * run.estimates.tokens_per_response * config.epochs)
    return run.do(
        train_sft, "sft", expected_tokens=expected, config=config, longcot=longcot, model=model, hosts=run.hosts
    )


@flow(task_runner=TASK_RUNNER, **ALERTS)
def sft(config: SftFlowConfig) -> Ref:
    """Fine-tune an instruct model on the LongCoT data of another run."""
    with begin(config) as run:
        longcot = run.table(config.longcot)
        check_table(longcot, "sft")
        formats = (format_of(run.store, longcot),)
        instruct = run.model(config.model, trains={"config.sft": config.sft}, formats=formats)
        trained = sft_stage(run, config.sft, longcot, instruct)
        show_training(run, trained)
        return trained
