"""Trainer of stage 3 by a policy gradient that samples while it trains: run under torchrun.

Each optimiser step samples, has the samples rewarded, and makes one update. The rewards are composed as in
`tasks/rewards/score.py`. TRL's trainers sample with transformers' own `generate`: TRL 1.16 supports vLLM up to 0.31.0
inside of a trainer, and the project's is 0.32.0.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import GenerationConfig
from trl.models.utils import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head

from infra.text.chat import load_tokenizer
from infra.training import trainer as training
from infra.training.batches import Batches
from infra.training.gate import stop_tokens
from infra.training.limits import is_finite
from infra.training.log_probs import REFERENCE
from infra.training.policy_gradient import PolicyGradient
from infra.training.rl import arguments, no_reward
from infra.training.switches import decided
from infra.training.without_vllm import GRPOTrainer, RLOOTrainer
from tasks.training.on_policy_config import ROLLOUTS, OnPolicyConfig, rollouts_path
from tasks.training.rewarder import Rewarder, RewardError

WITHOUT_SIGNAL = 256
"""Queries in a row whose samples teach nothing, after which a training is stopped."""


class Queries(Sampler[int]):  # type: ignore[misc]
    """The rows of an epoch as TRL reads them: each step's queries, each `samples` times, `repeats` times over.

    A last step with too few queries takes the first ones again. The order depends on the seed and the epoch alone.
    """

    def __init__(self, rows: int, trainer: Any, *, queries: int, samples: int, repeats: int, seed: int) -> None:
        self.rows, self.trainer, self.queries = rows, trainer, queries
        self.samples, self.repeats, self.seed = samples, repeats, seed

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-self.rows // self.queries)

    def __len__(self) -> int:
        return self.steps * self.queries * self.samples * self.repeats

    def __iter__(self) -> Iterator[int]:
        epoch = self.trainer.state.global_step // self.steps
        order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        order = np.resize(order, self.steps * self.queries)
        for start in range(0, len(order), self.queries):
            step = np.repeat(order[start : start + self.queries], self.samples)
            yield from np.tile(step, self.repeats).tolist()


class OnPolicy(PolicyGradient):
    """What TRL's policy-gradient trainers inherit first: prompts as token ids, our rewards, resuming, and a record."""

    config: OnPolicyConfig
    rewarder: Rewarder

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Queries:
        config, repeats = self.config, self.args.steps_per_generation
        queries = config.batch // config.samples_per_query
        return Queries(
            len(self.train_dataset),
            self,
            queries=queries,
            samples=config.samples_per_query,
            repeats=repeats,
            seed=config.seed,
        )

    def _tokenize_prompts(self, prompts: list[list[int]]) -> Any:
        return prompts, None, {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.random = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        self.tokens_before = self.state.num_input_tokens_seen
        made: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.beta:
            made[REFERENCE] = self.reference_log_probs
        return made

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """Each sample's reward, on all ranks; for those without a score, the lowest of the training so far."""
        device, problem, rows = self.accelerator.device, "", []
        try:
            rows = self.rewarder.rows([row["query_id"] for row in inputs], completion_ids_list)
        except RewardError as error:
            problem = str(error)
        problems = [each for each in gather_object([problem]) if each]
        if problems:
            self._give_up(problems[0])
        every = gather_object([{**row, "step": self.state.global_step + 1} for row in rows])
        if self.is_world_process_zero():
            with rollouts_path(self.config.output).open("a") as out:
                out.writelines(f"{json.dumps(row)}\n" for row in every)
        known = [row["reward"] for row in every if row["reward"] is not None] + self._last("lowest_reward")
        lowest = min(known, default=0.0)
        if known:
            self._metrics["train"]["lowest_reward"] = [lowest]
        rewards = [lowest if row["reward"] is None else row["reward"] for row in every]
        self._check_signal(rewards)
        self.rewards = torch.tensor(rewards, dtype=torch.float32, device=device)
        return self.rewards[:, None]

    def _last(self, figure: str) -> list[float]:
        """The figure as it was logged last, also before a resumed training was killed; empty if it never was."""
        return next(([line[figure]] for line in reversed(self.state.log_history) if figure in line), [])

    def _check_signal(self, rewards: Sequence[float]) -> None:
        """Count the queries in a row whose samples teach nothing. Raises `RewardError` after `WITHOUT_SIGNAL`."""
        size = self.config.samples_per_query
        compared = [rewards[start : start + size] for start in range(0, len(rewards), size)]
        if self.config.method == "reinforce":  # which compares with other queries, and with the step before
            compared = [[*rewards, *self._last("last_reward")]]
            self._metrics["train"]["last_reward"] = [rewards[-1]]
        signal = any(len(set(each)) > 1 for each in compared)
        found = 0 if signal else sum(self._last("queries_without_signal")) + len(rewards) // size
        self._metrics["train"]["queries_without_signal"] = [found]
        if found >= WITHOUT_SIGNAL:
            raise RewardError(
                f"step {self.state.global_step + 1} of {self.state.max_steps}: the samples of each of the last "
                f"{found:.0f} queries had equal rewards, or none, so that there is nothing to learn from them: look at "
                "the samples; raise generate.max_tokens if they are cut; use other queries, more samples, or a higher "
                "generate.temperature"
            )

    def _give_up(self, problem: str) -> NoReturn:
        """Keep the work so far in a checkpoint, as it was before this step's samples, and stop."""
        own, on_gpu = self.random
        torch.set_rng_state(own)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)
        self.state.num_input_tokens_seen = self.tokens_before
        if self.state.global_step and is_finite(self.state.log_history[-1]):
            self._save_checkpoint(self.model, None)
        raise RewardError(
            f"step {self.state.global_step + 1} of {self.state.max_steps}: its samples cannot be rewarded: {problem}. "
            "What was trained is kept in a checkpoint: run again once the cause is gone"
        )

    def prepare_resuming(self, config: Any, settings: dict[str, Any]) -> None:
        super().prepare_resuming(config, settings)
        if self.is_world_process_zero():
            path = rollouts_path(config.output)
            path.unlink(missing_ok=True)
            if config.resume:
                shutil.copyfile(config.resume / ROLLOUTS, path)

    def _write(self, target: Path) -> list[Path]:
        written = super()._write(target)
        if self.is_world_process_zero():
            written.append(Path(shutil.copyfile(rollouts_path(self.config.output), target / ROLLOUTS)))
        return written


class OnPolicyRloo(OnPolicy, RLOOTrainer):  # type: ignore[misc]
    """RLOO, as TRL has it."""


class OnPolicyGrpo(OnPolicy, GRPOTrainer):  # type: ignore[misc]
    """GRPO as TRL has it, with the loss of `infra.training.rl.arguments`."""


class OnPolicyReinforce(OnPolicyRloo):
    """RLOO without the baseline of the query's other samples: none, or a moving average of the steps before."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        made = super()._generate_and_score_completions(inputs)
        rewards, mask, decay = self.rewards, made["completion_mask"], self.config.baseline_decay
        if self.beta:
            kl = ((self.log_probs - self.reference_log_probs) * mask).sum(1)
            rewards = rewards - self.beta * self.accelerator.gather(kl)
        if decay is not None:
            mean = float(rewards.mean())
            [baseline] = self._last("baseline") or [mean]
            rewards = rewards - baseline
            if "lowest_reward" in self._metrics["train"]:  # else no sample has had a score
                self._metrics["train"]["baseline"].append(decay * baseline + (1 - decay) * mean)
        start = self.accelerator.process_index * len(inputs)
        made["advantages"] = rewards[start : start + len(inputs)]
        return made


TRAINERS = {"rloo": OnPolicyRloo, "reinforce": OnPolicyReinforce, "grpo": OnPolicyGrpo}


def converter(tokenizer: Any, max_tokens: int) -> training.Convert:
    """A function that converts a row to `prompt_ids`."""

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        length = len(prompt) + max_tokens
        return {
            "query_id": row["query_id"],
            "prompt_ids": prompt,
            training.LENGTH: length,
            training.TOKENS: len(prompt),
        }

    return convert


def batches_of(config: OnPolicyConfig, lengths: Sequence[int]) -> Batches:
    """The training's batches, as far as its schedule depends on them. `lengths`: of each query's samples at most."""
    count = config.accumulation(training.ranks()) * training.ranks()
    repeated = np.repeat(np.array(lengths), config.samples_per_query)
    return Batches(repeated, config.batch, count, training.ranks(), "random", config.seed)


def main(config_path: Path) -> None:
    """Train with the `OnPolicyConfig` in the JSON file `config_path`. Raises as `training.token_rows` and
    `training.run`."""
    config, _ = decided(OnPolicyConfig.model_validate_json(config_path.read_text()))
    training.join_ranks()
    tokenizer = training.tokenizer_for(config)
    rows, counts = training.token_rows(config, converter(tokenizer, config.max_tokens))
    rows = rows.rename_column("prompt_ids", "prompt")
    counts["samples"] *= config.samples_per_query
    batches, sampling = batches_of(config, rows[training.LENGTH]), {"max_completion_length": config.max_tokens}
    # Before the model: only then ZeRO-3 shards it while it is loaded.
    given = arguments(config, batches, config.samples_per_query, top_p=config.top_p, **sampling)
    model = training.load_model(config.model, config)
    stops = stop_tokens(model, tokenizer)
    # Not the model's own defaults (top-k, ...): the log-probabilities are those of the whole distribution.
    model.generation_config = GenerationConfig(eos_token_id=sorted(stops), pad_token_id=tokenizer.pad_token_id)
    with ExitStack() as held:
        trainer = TRAINERS[config.method](
            model=model,
            reward_funcs=no_reward,  # see `_calculate_rewards`
            args=given,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=training.all_callbacks(config, counts),
        )
        trainer.config, trainer.beta = config, config.beta
        trainer.rewarder = held.enter_context(
            Rewarder.of(config.rewarding, config.data, load_tokenizer(config.model), stops)
        )
        if config.beta:
            reference = training.load_model(config.reference, config)
            add_fused_lm_head(reference, temperature=config.temperature)
            trainer.ref_model = prepare_deepspeed(reference, trainer.accelerator)
        training.run(trainer, config, counts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    training.leave()
