"""Policy gradients that sample while they train: advantages, rewards, and what happens if there are no rewards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from fake_trainer import Servers, trainer
from fakes import Answer, FakeVllm, classifications
from interrupted import MODULES, assert_same_model, config_of, steps_logged
from pydantic import ValidationError
from tiny import make_model

import tasks.training.train
from infra.processes.torchrun import TrainerError, launch
from infra.serving.vllm_server import ServerOptions
from infra.store.manifest import Ref
from infra.store.parts import find
from infra.store.schemas import QUERIES, ROLLOUTS
from infra.training.advantages import grpo, rloo
from infra.training.attempts import model_path
from infra.training.checkpoints import checkpoints_folder, newest, read
from infra.training.config import RlRecipe, trained_path
from nano.vocabulary import ASSISTANT, END, USER
from tasks.rewards.score import ScoreConfig
from tasks.training.on_policy import train_on_policy
from tasks.training.on_policy_config import OnPolicyConfig, Rewarding, rollouts_path

REWARDS = classifications(lambda ids: sum(ids) % 7)
RECORDING = '''
"""The trainer, which writes what each step's advantages were computed from."""
import sys
from pathlib import Path
import torch
from tasks.training import on_policy_trainer as trainer

def recording(make):
    class Recording(make):
        def _generate_and_score_completions(self, inputs):
            made = super()._generate_and_score_completions(inputs)
            kept = {"advantages": made["advantages"], "rewards": self.rewards}
            if self.config.method != "grpo":
                kept["kl"] = ((self.log_probs - self.reference_log_probs) * made["completion_mask"]).sum(1)
            torch.save(kept, f"{self.config.output}.{self.state.global_step}.{self.accelerator.process_index}")
            return made
    return Recording

trainer.TRAINERS = {name: recording(make) for name, make in trainer.TRAINERS.items()}
if __name__ == "__main__":
    trainer.main(Path(sys.argv[1]))
    trainer.training.leave()
'''


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def pi_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("pi_0"), seed=1)


def trained(folder: Path, config: Any, module: str = MODULES["on_policy"]) -> dict[str, Any]:
    """The report of a training on two ranks."""
    launch(module, config, ranks=2, log_path=folder / "train.log", timeout_s=300)
    found: dict[str, Any] = json.loads(trained_path(config.output).read_text())
    return found


def rewarded(server: FakeVllm, tokenizer: Path, **changes: Any) -> Rewarding:
    given: dict[str, Any] = {"score": ScoreConfig(format_weight=0.5), "format": "plain", "opened": False}
    given |= {"reward_model": None, "url": server.url, "served_name": "fake", "tokenizer": tokenizer}
    return Rewarding(**given | {"max_length": 128} | changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stage"),
    [("reinforce", 3), *(pytest.param(each, 2, marks=pytest.mark.faults) for each in ("rloo", "grpo"))],
)
def test_the_advantages_are_those_computed_by_hand(
    method: str,
    stage: int,
    policy: Path,
    pi_0: Path,
    tmp_path: Path,
    serve: Callable[..., FakeVllm],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "recording.py").write_text(RECORDING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    decay = 0.9 if method == "reinforce" else None
    common: dict[str, Any] = {"method": method, "baseline_decay": decay, "beta": 0.1, "reference": pi_0}
    rewarding = rewarded(serve(classify=REWARDS), policy)
    changes = {"batch": 8, "samples_per_query": 4, "epochs": 1, "zero_stage": stage}
    config = config_of("on_policy", tmp_path, policy, **common, rewarding=rewarding, **changes)
    report = trained(tmp_path, config, "recording")
    baseline = None
    for step in range(3):
        ranks = [torch.load(f"{config.output}.{step}.{rank}") for rank in (0, 1)]
        rewards, found = ranks[0]["rewards"].tolist(), torch.cat([rank["advantages"] for rank in ranks]).tolist()
        assert len(set(rewards)) > 1
        if method == "grpo":
            expected = [each for start in (0, 4) for each in grpo(rewards[start : start + 4], scaled=True)]
        else:
            kl = torch.cat([rank["kl"] for rank in ranks]).tolist()
            assert max(map(abs, kl)) > 0.1  # policy and reference differ
            net = [reward - 0.1 * each for reward, each in zip(rewards, kl, strict=True)]
            if method == "rloo":
                expected = [each for start in (0, 4) for each in rloo(net[start : start + 4])]
            else:
                mean = sum(net) / len(net)
                baseline = mean if baseline is None else baseline
                expected = [reward - baseline for reward in net]
                baseline = 0.9 * baseline + 0.1 * mean
        assert found == pytest.approx(expected, abs=1e-3)
    lines = steps_logged(tmp_path)
    assert all(line["kl_to_pi_0"] > 0 for line in lines)
    assert report["guards"]["max_kl"] > 0
    assert report["tokens_seen"] == lines[-1]["num_tokens"]
    rows = [json.loads(line) for line in rollouts_path(config.output).open()]
    assert [row["step"] for row in rows] == [1] * 8 + [2] * 8 + [3] * 8
    last = [row["reward"] for row in rows[16:]]
    lowest = min(reward for reward in last if reward is not None)
    assert [lowest if reward is None else reward for reward in last] == pytest.approx(rewards)
    assert all(len({row["query_id"] for row in rows[start : start + 4]}) == 1 for start in range(0, 24, 4))


@pytest.mark.slow
@pytest.mark.faults
def test_without_rewards_a_training_stops_with_a_checkpoint_and_goes_on_later(
    policy: Path, tmp_path: Path, serve: Callable[..., FakeVllm]
) -> None:
    def run(folder: Path, answer: Answer = REWARDS, **changes: Any) -> None:
        rewarding = rewarded(serve(classify=answer), policy)
        trained(folder, config_of("on_policy", folder, policy, rewarding=rewarding, **changes))

    asked: list[Any] = []

    def failing(body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body)
        return REWARDS(body) if len(asked) <= 9 else {"status": 400, "error": "no such model"}

    calm, failed = tmp_path / "calm", tmp_path / "failed"
    run(calm, checkpoint_minutes=60)
    with pytest.raises(TrainerError, match=r"step \d+ of 12: its samples cannot be rewarded: the reward"):
        run(failed, failing, checkpoint_minutes=60)
    last = newest(checkpoints_folder(model_path(failed)))
    assert last is not None
    assert 3 <= read(last).step <= 5  # two ranks ask once at each step
    run(failed, resume=last)
    assert_same_model(calm, failed)
    one, other = (rollouts_path(model_path(folder)).read_text() for folder in (calm, failed))
    assert one == other


def test_the_step_publishes_the_model_and_what_was_sampled(
    world: Any, model: Ref, query: Any, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., FakeVllm]
) -> None:
    seen: list[OnPolicyConfig] = []
    row = {"text": "t", "thoughts": None, "solution": "t", "violations": [], "finish_reason": "stop", "step": 1}
    row |= {"completion_tokens": 2, "thought_tokens": 0, "solution_tokens": 1, "query_id": "a", "sample": 0}

    def launch(module: str, config: OnPolicyConfig, *, ranks: int, log_path: Path, **_: Any) -> None:
        seen.append(config)
        prompts = pq.read_table(config.data[0]).to_pylist()
        assert [row["query_id"] for row in prompts] == ["a", "b"]
        assert prompts[0]["prompt"] == f"{USER} who is a ? {END}{ASSISTANT}"
        assert prompts[0]["reference"] == "mon"
        rows = [row | {"reward": 1.5}, row | {"reward": None}]
        rollouts_path(config.output).write_text("".join(f"{json.dumps(each)}\n" for each in rows))
        trainer(config, log_path=log_path)

    class Serving(Servers):
        def options(self, _role: str) -> ServerOptions:
            return ServerOptions(max_model_len=128, dtype="float32")

        def engine(self, _role: str) -> str:
            return "{}"

    monkeypatch.setattr(tasks.training.train, "launch", launch)
    rows = [query(name, f"who is {name} ?", reference="mon") for name in "ab"]
    server = serve(classify=REWARDS)
    given = {"queries": world.table(QUERIES, rows, "queries"), "policy": model, "reference": model}
    made = world.do(
        train_on_policy,
        "rloo-1",
        method="rloo",
        config=RlRecipe(ranks=1, on_policy=True),
        samples=4,
        temperature=1.0,
        top_p=1.0,
        max_tokens=20,
        format="bolt",
        score=ScoreConfig(),
        reward_model=model,
        servers=Serving(world.work_dir, server),
        **given,
    )
    [config] = seen
    assert (config.samples_per_query, config.max_tokens, config.temperature) == (4, 20, 1.0)
    assert (config.rewarding.url, config.rewarding.max_length) == (server.url, 128)
    counts = world.counts(made)
    assert counts["rollouts"] == f"rloo-1-rollouts/{made.key}"
    table = find(world.store, "rloo-1-rollouts", made.key)
    assert table is not None
    assert [row["reward"] for row in world.rows(table)] == [1.5, None]
    assert list(world.rows(table)[0]) == ROLLOUTS.names


def test_a_batch_without_whole_queries_and_samples_without_room_are_refused() -> None:
    from flows.online import OnlineStage
    from infra.training.config import RlRecipe

    queries = {"sources": [{"path": "nano/data/online.jsonl"}]}
    with pytest.raises(ValidationError, match=r"rl.batch is 12, .* a multiple of that, such as 8"):
        OnlineStage(queries=queries, method="rloo", rl=RlRecipe(batch=12, on_policy=True))
    with pytest.raises(ValidationError, match=r"generate.max_tokens is 8,192, but rl.max_length is 4,096, .* prompts"):
        OnlineStage(queries=queries, method="rloo", rl=RlRecipe(max_length=4096, on_policy=True))


def test_the_configuration_needs_two_samples(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="samples_per_query"):
        config_of("on_policy", tmp_path, policy, samples_per_query=1)
    assert OnPolicyConfig.columns == ("query_id", "prompt", "query")
