"""Training as a step: where its files lie, and what becomes of them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from fakes import TinyServers

import infra.steps.step
import tasks.training.train
from infra.processes.torchrun import TrainerError, metrics_path
from infra.store.manifest import Ref
from infra.store.schemas import LONGCOT, PAIRS
from infra.store.store import StoreError
from infra.training.config import trained_path
from tasks.training.dpo import DpoStage, train_dpo
from tasks.training.sft import SftStage, train_sft


class Servers(TinyServers):
    """Counts how often its devices were asked for."""

    released = 0

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def servers(world):
    return Servers(world.work_dir)


@pytest.fixture
def longcot(world) -> Ref:
    return world.table(LONGCOT, [], "longcot")


def trainer(told: Any, *, log_path: Path, **_: Any) -> None:
    """What a trainer leaves."""
    told.output.mkdir()
    (told.output / "config.json").write_text(json.dumps({"folder": told.output.parent.name}))
    trained_path(told.output).write_text('{"steps": 1}')
    log_path.write_text("all is well")
    metrics_path(log_path).write_text('{"step": 1, "loss": 0.5}\n')


def files(world) -> list[str]:
    return sorted(path.name for path in (world.work_dir / "training").glob("*/*"))


def published(world, ref: Ref) -> dict[str, Any]:
    return json.loads(world.store.read_bytes(f"{ref.step}/{ref.key}/config.json"))


def test_both_stages_train_on_what_they_are_given_and_leave_no_folder(
    world, servers, longcot, model, monkeypatch, bars
):
    seen: dict[str, Any] = {}

    def launch(module: str, told: Any, *, ranks: int, log_path: Path) -> None:
        seen[module] = (told, ranks)
        trainer(told, log_path=log_path)

    monkeypatch.setattr(tasks.training.train, "launch", launch)
    sft = world.do(train_sft, "sft", config=SftStage(ranks=2), longcot=longcot, model=model, servers=servers)
    pairs = world.table(PAIRS, [], "pairs-1")
    given = {"pairs": pairs, "policy": sft, "reference": sft}
    dpo = world.do(train_dpo, "dpo-1", config=DpoStage(ranks=3), **given, servers=servers)
    assert world.counts(sft) == world.counts(dpo) == {"steps": 1, "curve": [{"step": 1, "loss": 0.5}]}
    assert [seen[f"infra.training.{stage}"][1] for stage in ("sft", "dpo")] == [2, 3]
    told = seen["infra.training.dpo"][0]
    assert (told.model, told.reference) == (world.store.local_path("sft/k"),) * 2
    assert [path.name for path in told.data] == ["part-00000.parquet"]
    assert servers.released == 2
    assert files(world) == []
    assert bars == {"sft": 0.0, "dpo-1": 0.0}  # the trainer of this test tells no epoch


def test_a_failed_attempt_leaves_its_log_until_the_next(world, servers, longcot, model, monkeypatch):
    common = {"config": SftStage(), "longcot": longcot, "model": model, "servers": servers}

    def failing(_module: str, told: Any, *, log_path: Path, **_: Any) -> None:
        trainer(told, log_path=log_path)
        raise TrainerError(f"log: {log_path}; its last lines: ...")

    monkeypatch.setattr(tasks.training.train, "launch", failing)
    with pytest.raises(TrainerError) as error:
        world.do(train_sft, "sft", **common)
    log = Path(str(error.value).removeprefix("log: ").partition(";")[0])
    assert log.read_text() == "all is well"
    assert metrics_path(log).exists()
    assert not world.store.exists("sft/k/manifest.json")

    monkeypatch.setattr(tasks.training.train, "launch", lambda _module, told, **rest: trainer(told, **rest))
    world.do(train_sft, "sft", **common)
    assert files(world) == []


def test_a_training_that_could_not_be_published_is_not_done_again(world, servers, longcot, model, monkeypatch):
    common = {"config": SftStage(), "longcot": longcot, "model": model, "servers": servers}
    trained: list[Path] = []

    def launch(_module: str, told: Any, *, log_path: Path, **_: Any) -> None:
        trainer(told, log_path=log_path)
        trained.append(told.output)

    def away(*_: Any, **__: Any) -> Ref:
        raise StoreError("the endpoint cannot be reached", transient=True)

    monkeypatch.setattr(tasks.training.train, "launch", launch)
    with monkeypatch.context() as outage:
        outage.setattr(tasks.training.train, "publish_model", away)
        with pytest.raises(StoreError):
            world.do(train_sft, "sft", **common)
    made = world.do(train_sft, "sft", **common)
    assert len(trained) == 1
    assert published(world, made) == {"folder": trained[0].parent.name}
    assert world.counts(made) == {"steps": 1, "curve": [{"step": 1, "loss": 0.5}]}
    assert files(world) == []


def test_two_runs_that_train_the_same_at_once_both_end_with_the_model_that_was_first(
    world, servers, longcot, model, monkeypatch
):
    common = {"config": SftStage(), "longcot": longcot, "model": model, "servers": servers}
    faster: list[Ref] = []

    def launch(_module: str, told: Any, *, log_path: Path, **_: Any) -> None:
        trainer(told, log_path=log_path)
        if not faster:
            faster.append(told)  # what follows is the other run, from start to end
            faster[0] = world.do(train_sft, "sft", **common)

    monkeypatch.setattr(tasks.training.train, "launch", launch)
    monkeypatch.setattr(
        infra.steps.step, "claimed", lambda *_: nullcontext()
    )  # as after a claim that was thought lapsed
    slower = world.do(train_sft, "sft", **common)
    assert slower == faster[0]
    assert published(world, slower)
    assert files(world) == []
