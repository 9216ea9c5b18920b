"""Training as a step: where its files are, and what becomes of them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_trainer import ANSWER, Servers, trainer
from pydantic import ValidationError

import infra.steps.step
import tasks.training.train
from cot_formats import bolt
from infra.errors import BadInput
from infra.processes.torchrun import TrainerError, metrics_path
from infra.store.manifest import Ref
from infra.store.schemas import LONGCOT, PAIRS, SAMPLES
from infra.store.store import StoreError
from infra.training.config import DpoRecipe, RlRecipe, SftRecipe
from tasks.rewards.group import NO_SIGNAL
from tasks.training.dpo import train_dpo
from tasks.training.rl import train_rl
from tasks.training.sft import train_sft


class Counted(NamedTuple):
    counts: dict[str, int]


LONGCOT_ROW = {
    "query_id": "a",
    "sample": 0,
    "query": "who is a ?",
    "thoughts": "plan : 1 .",
    "solution": "answer : 1 .",
}
LONGCOT_ROW |= {"format": "bolt", "reward": 1.0}
PAIR = {"query_id": "a", "iteration": 1, "prompt": "who is a ?", "chosen": bolt.render("plan : 1 .", "answer : 1 .")}
PAIR |= {"rejected": "no", "chosen_sample": 0, "rejected_sample": 1, "chosen_score": 1.0, "rejected_score": 0.0}
PAIR |= {"chosen_tokens": 9, "rejected_tokens": 1}


@pytest.fixture
def servers(world):
    return Servers(world.work_dir)


@pytest.fixture
def longcot(world) -> Ref:
    return world.table(LONGCOT, [LONGCOT_ROW], "longcot")


JUDGED = ANSWER | {"format": "bolt", "violations": ["missing_thoughts", "missing_solution"], "in_format": False}
COUNTS = {"steps": 1, "answer": JUDGED, "curve": [{"step": 1, "loss": 0.5}]}


def files(world) -> list[str]:
    return sorted(path.name for path in (world.work_dir / "training").glob("*/*"))


def published(world, ref: Ref) -> dict[str, Any]:
    return json.loads(world.store.read_bytes(f"{ref.step}/{ref.key}/config.json"))


def test_both_stages_train_on_their_inputs_and_leave_no_folder(world, servers, longcot, model, monkeypatch, bars):
    seen: dict[str, Any] = {}

    def launch(module: str, config: Any, *, ranks: int, log_path: Path, **_: Any) -> None:
        seen[module] = (config, ranks)
        trainer(config, log_path=log_path)

    monkeypatch.setattr(tasks.training.train, "launch", launch)
    sft = world.do(train_sft, "sft", config=SftRecipe(ranks=2), longcot=longcot, model=model, servers=servers)
    pairs = world.table(PAIRS, [PAIR], "pairs-1")
    given = {"pairs": pairs, "policy": sft, "reference": sft}
    dpo = world.do(train_dpo, "dpo-1", config=DpoRecipe(ranks=4), **given, servers=servers)
    assert world.counts(sft) == world.counts(dpo) == COUNTS
    assert [seen[f"infra.training.{stage}"][1] for stage in ("sft", "dpo")] == [2, 4]
    config = seen["infra.training.dpo"][0]
    assert (config.model, config.reference) == (world.store.local_path("sft/k"),) * 2
    assert [path.name for path in config.data] == ["part-00000.parquet"]
    assert servers.released == 2
    assert files(world) == []
    assert bars == {"sft": 1, "dpo-1": 1}  # steps
    assert [path.split("/")[-2] for path in world.store.list("sft/k") if "tfevents" in path] == ["runs"]
    assert config.name == "dpo-1-k"


def test_a_failed_attempt_leaves_its_log_until_the_next(world, servers, longcot, model, monkeypatch):
    common = {"config": SftRecipe(), "longcot": longcot, "model": model, "servers": servers}

    def failing(_module: str, config: Any, *, log_path: Path, **_: Any) -> None:
        trainer(config, log_path=log_path)
        raise TrainerError(f"log: {log_path}; its last lines: ...")

    monkeypatch.setattr(tasks.training.train, "launch", failing)
    with pytest.raises(TrainerError) as error:
        world.do(train_sft, "sft", **common)
    log = Path(str(error.value).removeprefix("log: ").partition(";")[0])
    assert log.read_text() == "all is well"
    assert metrics_path(log).exists()
    assert not world.store.exists("sft/k/manifest.json")

    monkeypatch.setattr(tasks.training.train, "launch", lambda _module, config, **rest: trainer(config, **rest))
    world.do(train_sft, "sft", **common)
    assert files(world) == []


def test_a_training_that_could_not_be_published_is_not_repeated(world, servers, longcot, model, monkeypatch):
    common = {"config": SftRecipe(), "longcot": longcot, "model": model, "servers": servers}
    trained: list[Path] = []

    def launch(_module: str, config: Any, *, log_path: Path, **_: Any) -> None:
        trainer(config, log_path=log_path)
        trained.append(config.output)

    def unreachable(*_: Any, **__: Any) -> Ref:
        raise StoreError("the endpoint cannot be reached", transient=True)

    monkeypatch.setattr(tasks.training.train, "launch", launch)
    with monkeypatch.context() as outage:
        outage.setattr(tasks.training.train, "publish_model", unreachable)
        with pytest.raises(StoreError):
            world.do(train_sft, "sft", **common)
    made = world.do(train_sft, "sft", **common)
    assert len(trained) == 1
    assert published(world, made) == {"folder": trained[0].parent.name}
    assert world.counts(made) == COUNTS
    assert files(world) == []


def test_two_concurrent_runs_of_one_training_both_return_the_model_published_first(
    world, servers, longcot, model, monkeypatch
):
    common = {"config": SftRecipe(), "longcot": longcot, "model": model, "servers": servers}
    faster: list[Ref] = []

    def launch(_module: str, config: Any, *, log_path: Path, **_: Any) -> None:
        trainer(config, log_path=log_path)
        if not faster:
            faster.append(config)  # what follows is the other run, from start to end
            faster[0] = world.do(train_sft, "sft", **common)

    monkeypatch.setattr(tasks.training.train, "launch", launch)
    monkeypatch.setattr(
        infra.steps.step, "claimed", lambda *_: nullcontext()
    )  # as after a claim that was taken for lapsed
    slower = world.do(train_sft, "sft", **common)
    assert slower == faster[0]
    assert published(world, slower)
    assert files(world) == []


def test_a_model_off_a_required_format_stays_and_is_published_without_another_training(
    world, servers, longcot, model, monkeypatch
):
    common = {"longcot": longcot, "model": model, "servers": servers}
    trained: list[Path] = []

    def launch(_module: str, config: Any, *, log_path: Path, **_: Any) -> None:
        trainer(config, log_path=log_path)
        trained.append(config.output)

    monkeypatch.setattr(tasks.training.train, "launch", launch)
    with pytest.raises(BadInput, match=r"sft: .*off the format: missing_thoughts, missing_solution"):
        world.do(train_sft, "sft", config=SftRecipe(require_format=True), **common)
    assert not world.store.exists("sft/k/manifest.json")
    made = world.do(train_sft, "sft", config=SftRecipe(), **common)
    assert len(trained) == 1
    assert "off the format" in world.store.read_bytes(f"{made.step}/{made.key}/README.md").decode()
    plans = [train_sft.plan("sft", {**common, "config": SftRecipe(require_format=each)}) for each in (True, False)]
    assert plans[0].key == plans[1].key


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_table_without_rows_trains_nothing(world, servers, model, monkeypatch, stage):
    monkeypatch.setattr(tasks.training.train, "launch", None)
    given = {
        "sft": {"config": SftRecipe(), "longcot": world.table(LONGCOT, []), "model": model},
        "dpo": {"config": DpoRecipe(), "pairs": world.table(PAIRS, [], key="k2"), "policy": model, "reference": model},
    }
    with pytest.raises(BadInput, match=rf"{stage}: the table given/k2? has no rows to train on"):
        world.do({"sft": train_sft, "dpo": train_dpo}[stage], stage, **given[stage], servers=servers)


@pytest.mark.parametrize("method", ["rloo", "reinforce", "grpo"])
def test_a_policy_gradient_trains_on_the_samples_and_says_so(world, servers, model, monkeypatch, method):
    seen: dict[str, Any] = {}

    def launch(module: str, config: Any, *, ranks: int, log_path: Path, **_: Any) -> None:
        seen[module] = config
        trainer(config, log_path=log_path)

    monkeypatch.setattr(tasks.training.train, "launch", launch)
    plain = {"query_id": "q", "iteration": 1, "prompt": "p", "response": "r", "ended": True, "tokens": 1}
    samples = world.table(SAMPLES, [{**plain, "sample": n, "reward": float(n)} for n in (0, 1)], "samples-1")
    given = {"samples": samples, "temperature": 0.7, "policy": model, "reference": model, "servers": servers}
    made = world.do(train_rl, f"{method}-1", method=method, config=RlRecipe(ranks=1), **given)
    config = seen["infra.training.rl"]
    assert (config.method, config.temperature, config.reference) == (method, 0.7, config.model)
    card = world.store.read_bytes(f"{made.step}/{made.key}/README.md").decode()
    assert f"trained by iterative online {method.upper()}" in card
    alike = world.table(SAMPLES, [{**plain, "sample": n, "reward": 1.0} for n in (0, 1)], "samples-3")
    monkeypatch.setattr("tasks.training.rl.expect", lambda *_: Counted({"queries": 2, NO_SIGNAL: 2}))
    again = {"method": method, "config": RlRecipe(ranks=1), **given, "samples": alike}
    with nullcontext() if method == "reinforce" else pytest.raises(BadInput, match="of each query have equal rewards"):
        world.do(train_rl, f"{method}-3", **again)
    with pytest.raises(BadInput, match=f"{method}: the table samples-2/k has no rows to train on"):
        world.do(
            train_rl,
            f"{method}-2",
            method=method,
            config=RlRecipe(),
            **given | {"samples": world.table(SAMPLES, [], "samples-2")},
        )


@pytest.mark.parametrize("stage", [SftRecipe, DpoRecipe])
def test_ranks_that_the_batch_does_not_divide_into_are_refused_with_the_settings(stage):
    with pytest.raises(ValidationError, match=r"batch 128 is not a multiple of micro_batch 1 x ranks 3"):
        stage(ranks=3)
