"""What a training that samples makes of rewards that are missing or teach nothing, without a training."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import make_model

from infra.errors import BadInput
from infra.text.chat import load_tokenizer
from tasks.rewards.score import ScoreConfig
from tasks.rewards.verify import CALLS
from tasks.training.on_policy import check_learned, counted
from tasks.training.on_policy_config import Rewarding
from tasks.training.on_policy_trainer import WITHOUT_SIGNAL, OnPolicy
from tasks.training.rewarder import Rewarder, RewardError

Rewards = list[float | None]


class Rewarded(OnPolicy):
    """A trainer that is given its rewards, step by step."""

    def __init__(self, folder: Path, method: str, samples: int = 2) -> None:
        self.config = SimpleNamespace(method=method, samples_per_query=samples, output=folder / "model")  # type: ignore[assignment]
        self.accelerator = SimpleNamespace(device="cpu")
        self.state = SimpleNamespace(global_step=0, max_steps=99, log_history=[])
        self._metrics = {"train": defaultdict(list)}

    def is_world_process_zero(self) -> bool:
        return True

    def step(self, *rewards: float | None) -> list[float]:
        rows = [{"query_id": "q", "reward": reward} for reward in rewards]
        self.rewarder = SimpleNamespace(rows=lambda *_: rows)  # type: ignore[assignment]
        found: list[float] = self._calculate_rewards([{"query_id": "q"}] * len(rows), [], [], []).flatten().tolist()
        self.state.log_history.append({name: values[0] for name, values in self._metrics["train"].items()})
        self._metrics["train"].clear()
        self.state.global_step += 1
        return found


def test_a_sample_without_a_score_has_the_lowest_reward_of_the_training_so_far(tmp_path: Path) -> None:
    trainer = Rewarded(tmp_path, "reinforce")
    assert trainer.step(None, None) == [0, 0]  # no reward is known
    assert trainer.step(2, None) == [2, 2]
    assert trainer.step(-6, -5) == [-6, -5]
    assert trainer.step(None, None) == [-6, -6]
    assert trainer.step(3, None) == [3, -6]
    assert [line.get("lowest_reward") for line in trainer.state.log_history] == [None, 2, -6, -6, -6]


@pytest.mark.parametrize("method", ["rloo", "grpo", "reinforce"])
@pytest.mark.parametrize("rewards", [[None] * 64, [-3.7] * 64])
def test_a_training_whose_rewards_teach_nothing_is_stopped(tmp_path: Path, method: str, rewards: Rewards) -> None:
    trainer = Rewarded(tmp_path, method)
    steps = WITHOUT_SIGNAL // 32  # of 32 queries each
    trainer.step(1, 1.5, 1, 1.5)
    for _ in range(steps - 1):
        trainer.step(*rewards)
    trainer.step(1, 1.5, 1, 1.5)  # counted from the start again
    for _ in range(steps - (method != "reinforce")):  # whose first step differs from the one before
        trainer.step(*rewards)
    with pytest.raises(RewardError, match=r"the samples of each of the last 256 queries had equal rewards, or none"):
        trainer.step(*rewards)


def test_a_small_step_whose_query_teaches_nothing_stops_no_training(tmp_path: Path) -> None:
    trainer = Rewarded(tmp_path, "rloo")
    for number in range(300):
        trainer.step(1, 1 + (number % 100 == 99))


def test_reinforce_learns_from_steps_that_differ_and_the_others_from_queries_only(tmp_path: Path) -> None:
    for method, expected in (("reinforce", 0), ("rloo", 9)):
        trainer = Rewarded(tmp_path, method)
        for number in range(9):
            trainer.step(number, number)
        assert trainer.state.log_history[-1]["queries_without_signal"] == (expected or 0)


def test_a_verifier_without_a_verdict_stops_a_training_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_verifier.py").write_text("def check(solution, reference):\n    raise KeyError('x')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    model = make_model(tmp_path / "policy")
    tokenizer = load_tokenizer(model)
    data = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"query_id": ["q"], "query": ["why ?"], "reference": ["4"]}), data)
    score = ScoreConfig(verified_weight=1.0, verifier="bad_verifier:check")
    how = Rewarding(score=score, format="plain", opened=False, reward_model=None)
    samples = [tokenizer.encode(f"plan {number}", add_special_tokens=False) for number in range(CALLS)]
    texts = list({tokenizer.decode(ids) for ids in samples})
    with Rewarder.of(how, [data], tokenizer, set()) as rewarder:
        [row] = rewarder.rows(["q"], samples[:1])
        assert row["verified"] is None
        assert row["reward"] == 0  # it did not end by itself
        while rewarder.verify.calls + len(texts) < CALLS:
            rewarder.rows(["q"] * CALLS, samples)
        with pytest.raises(RewardError, match=r"had a verdict; the last one: .*KeyError"):
            rewarder.rows(["q"] * CALLS, samples)
    sys.modules.pop("bad_verifier", None)


def line(**more: Any) -> dict[str, Any]:
    return {"completion_tokens": 3, "finish_reason": "stop", "reward": 1.0, "step": 1, "query_id": "a"} | more


def test_what_was_sampled_is_counted_and_a_model_that_learned_from_no_reward_is_refused() -> None:
    score = ScoreConfig(verified_weight=1.0, verifier="evals.graders:everyday")
    counts = counted([line(verified=True), line(verified=None, reward=None, finish_reason="length"), line()])
    assert counts == {
        "completion_tokens": 9,
        "rollouts_in_all": 3,
        "rollouts_truncated": 1,
        "rollouts_without_a_score": 1,
        "rollouts_compared": 2,
        "rollouts_without_a_verdict": 1,
        "rollouts_that_differ": 2,
    }
    check_learned(counts, "rloo-1", score, "rloo")
    with pytest.raises(BadInput, match=r"rloo-1: none of the 2 samples had a score.*\(2 were cut off\)"):
        check_learned(counted([line(reward=None, finish_reason="length")] * 2), "rloo-1", score, "rloo")
    with pytest.raises(BadInput, match=r"rloo-1: the verifier evals.graders:everyday had no verdict on any of 2"):
        check_learned(counted([line(verified=None), line(verified=None, reward=0.0)]), "rloo-1", score, "rloo")
    same = counted([line(), line(), line(query_id="b", reward=0.0), line(query_id="b", reward=0.0)])
    check_learned(same, "reinforce-1", score, "reinforce")
    with pytest.raises(BadInput, match="rloo-1: the samples of each query had equal rewards"):
        check_learned(same, "rloo-1", score, "rloo")
