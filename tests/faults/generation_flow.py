"""Generation alone, as the stages do it: `generation_flow.py PARAMETERS.json` prints the tables of the shards."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from prefect import flow

from flows.bootstrap import curated
from flows.stages.common import Common
from flows.stages.mining import MineStage, mine_stage
from flows.stages.run import TASK_RUNNER, begin
from flows.stages.sampling import sample
from infra.store.manifest import Ref
from tasks.examples.read import ExamplesConfig
from tasks.responses.generate import GenerateConfig
from tasks.responses.prompt import PromptConfig


class Config(Common):
    """The fields of `flows.bootstrap.BootstrapConfig` that generation needs."""

    model: str
    examples: ExamplesConfig
    queries: MineStage
    prompt: PromptConfig
    generate: GenerateConfig
    shards: int


@flow(task_runner=TASK_RUNNER)
def generation(config: Config) -> list[Ref]:
    with begin(config) as run:
        model, examples = run.model(config.model), curated(run, config.examples)
        queries = mine_stage(run, config.queries)
        return sample(
            run,
            "responses",
            config.generate,
            queries,
            model,
            shards=config.shards,
            prompt=config.prompt,
            examples=examples,
        )


if __name__ == "__main__":
    logging.getLogger("infra").setLevel(logging.INFO)
    for ref in generation(Config(**json.loads(Path(sys.argv[1]).read_text()))):
        print(f"made {ref.step}/{ref.key}", flush=True)
