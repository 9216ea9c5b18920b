"""Bad input to a flow: one error that names the cause and the fix, while finished artifacts stay.

docs/operations.md lists every bad input with its message and the test that makes it happen; most are in tests/infra.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file
from small import bootstrap_parameters, small_world

import infra.serving.classifier
import infra.serving.servers
import infra.training.trackers
import tasks.responses.generate
import tasks.training.train
from cot_formats import bolt
from flows.bootstrap import BootstrapConfig, bootstrap
from flows.evaluate import EvaluateConfig, evaluate
from flows.sft import SftFlowConfig, sft
from infra.errors import BadInput
from infra.processes.torchrun import TrainerError, metrics_path
from infra.serving.completions import Completion
from infra.serving.pool import Pool
from infra.serving.vllm_server import ServerError, VllmServer
from infra.settings import Settings
from infra.store.manifest import Provenance, Ref
from infra.store.parts import find
from infra.store.schemas import LONGCOT
from infra.store.store import Store, StoreError
from infra.store.tables import read_rows, write_table
from infra.training.config import SftConfig, trained_path
from infra.training.nodes import launch

MINING = {"collected-queries", "cleaned", "distinct", "held-out", "contaminated", "decontaminated"}
ROW = {"query_id": "q", "sample": 0, "query": "why ?", "thoughts": "plan", "solution": "so", "format": "bolt"}
ROW |= {"reward": 1.0}
pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    return small_world(tmp_path / "files")


class Healthy:
    """A server that is up; `answering` supplies its answers."""

    url, served_name = "http://127.0.0.1:9", "fake"
    headers: Mapping[str, str] = {}

    def check(self) -> None: ...

    def stop(self) -> None: ...


def answering(monkeypatch: pytest.MonkeyPatch, dies_after: int | None = None) -> list[str]:
    """Answer sampling and scoring in place of vLLM. Returns the list of requests, which grows as they are answered."""
    answered: list[str] = []
    one_at_a_time = Lock()  # shards run in threads of their own

    async def complete_on(_pool: Any, groups: Any, request_of: Any, sampling: Any, *, on_result: Any, **_: Any) -> None:
        text = bolt.render("plan : one .", "answer : 1 .")
        for request in map(request_of, chain.from_iterable(groups)):
            with one_at_a_time:
                if dies_after is not None and len(answered) >= dies_after:
                    raise ServerError("vLLM server of MODEL ended with status 137; log: PATH; its last lines: ...")
                on_result(request, [Completion(text, "stop", (1, 2)) for _ in range(sampling.n)])
                answered.append(request.request_id)

    async def classify(_url: str, _name: str, inputs: Any, **_: Any) -> list[float]:
        return [float(number % 3) for number in range(len(inputs))]

    monkeypatch.setattr(infra.serving.servers.Servers, "_pool", lambda *_: Pool([Healthy()]))
    monkeypatch.setattr(tasks.responses.generate, "complete_on", complete_on)
    monkeypatch.setattr(infra.serving.classifier, "classify", classify)
    return answered


def made(world: dict[str, Any]) -> Ref:
    ref = bootstrap(BootstrapConfig(**bootstrap_parameters(world)))
    assert isinstance(ref, Ref)
    return ref


def store() -> Store:
    return Store.open(Settings.load())


def steps_in(folder: Path) -> dict[str, float]:
    """The finished artifacts, each with the time that it was finished."""
    manifests = folder.glob("*/*/manifest.json")
    return {path.parent.relative_to(folder).as_posix(): path.stat().st_mtime for path in manifests}


# ---- what the user gives


def test_an_unknown_parameter_is_named(world):
    with pytest.raises(ValidationError, match=r"temprature\n +Extra inputs are not permitted"):
        BootstrapConfig(**bootstrap_parameters(world), temprature=1)


def test_a_store_that_cannot_be_written_stops_a_flow_at_its_start(world, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "file" / "store"))
    with pytest.raises(StoreError, match=r"file/store.*a file is where a folder should be.*BOLT_STORE"):
        made(world)


def test_a_store_that_cannot_be_reached_stops_a_flow_at_its_start(world, monkeypatch):
    monkeypatch.setenv("BOLT_STORE", "s3://bucket/prefix")
    monkeypatch.setenv("BOLT_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("BOLT_ACCESS_KEY_ID", "some-key")
    monkeypatch.setenv("BOLT_SECRET_ACCESS_KEY", "some-secret")
    with pytest.raises(StoreError, match=r"s3://bucket/prefix.*endpoint cannot be reached.*BOLT_ENDPOINT_URL") as error:
        made(world)
    assert "some-secret" not in str(error.value)


def test_a_missing_model_is_named_with_what_was_looked_for(world, tmp_path):
    for missing in (str(tmp_path / "nowhere"), "sft/0123", "org/name"):
        with pytest.raises(ValueError, match=f"model '{missing}': no such folder, no artifact STEP/KEY.*REVISION"):
            made(world | {"model": missing})


def test_a_model_folder_that_is_no_model_is_an_error(world):
    (Path(world["model"]) / "config.json").unlink()
    with pytest.raises(ValueError, match=r"files/model has no config\.json"):
        made(world)


@pytest.mark.parametrize(
    ("named", "said"),
    [("sp ace", r"model '.*/sp ace': rename the folder"), ("", "model '': no such folder, no artifact STEP/KEY")],
)
def test_a_model_that_cannot_be_named_so_is_refused_at_once(world, tmp_path, named, said):
    Path(world["model"]).rename(tmp_path / "sp ace")
    with pytest.raises(BadInput, match=said):
        made(world | {"model": named and str(tmp_path / named)})


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_empty_table_is_refused_before_anything_is_trained(world, dry_run):
    config = training(world).model_copy(update={"dry_run": dry_run})
    write_table(store(), "longcot", "k", LONGCOT, [], Provenance())
    with pytest.raises(BadInput, match="the table longcot/k has no rows to train on"):
        sft(config)


def test_a_reward_model_without_a_chat_template_is_refused_before_anything_is_sampled(world, monkeypatch, tmp_path):
    answered = answering(monkeypatch)
    silent = tmp_path / "silent"
    shutil.copytree(world["reward_model"], silent)
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match=r"model .*/silent: no chat template in its files"):
        made(world | {"reward_model": str(silent)})
    assert not answered


def test_a_tracker_that_is_not_installed_stops_a_run_at_its_start(world, tmp_path, monkeypatch):
    monkeypatch.setattr(infra.training.trackers, "is_installed", lambda tracker: tracker != "wandb")
    write_table(store(), "longcot", "k", LONGCOT, [[ROW]], Provenance())
    config = SftFlowConfig(
        model=world["model"],
        serving=world["serving"],
        longcot="longcot/k",
        sft={"report_to": ["tensorboard", "wandb"]},
    )
    with pytest.raises(BadInput, match=r"config.sft.report_to: wandb is not installed here: run .* wandb`"):
        sft(config)
    assert steps_in(tmp_path / "store").keys() == {"longcot/k"}


def test_a_query_file_that_is_missing_is_named(world):
    Path(world["bootstrap"]["queries"]["sources"][0]["path"]).unlink()
    with pytest.raises(BadInput, match=r"input file .*queries\.jsonl does not exist; relative paths start"):
        made(world)


@pytest.mark.parametrize(
    ("benchmark", "rows", "said"),
    [
        ("short-answer", [{"query": "which day ?"}], "field reference is null in 1 rows"),
        ("everyday", [{"query": "how far ?", "reference": "5 km"}], "neither a number nor a day of the week"),
    ],
)
def test_problems_that_cannot_be_graded_are_refused_before_they_are_answered(
    world, monkeypatch, tmp_path, benchmark, rows, said
):
    answered = answering(monkeypatch)
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {**world["evaluate"], "benchmark": benchmark, "problems": {"sources": [{"path": str(path)}]}}
    models = [{"name": "instruct", "model": world["model"]}]
    with pytest.raises(BadInput, match=said):
        evaluate(EvaluateConfig(models=models, benchmarks=[stage], serving=world["serving"]))
    assert not answered


def training(world: dict[str, Any], **recipe: Any) -> SftFlowConfig:
    given = {name: world[name] for name in ("model", "serving")}
    write_table(store(), "longcot", "k", LONGCOT, [[ROW]], Provenance())
    return SftFlowConfig(**given, longcot="longcot/k", sft={"ranks": 1, "max_length": 4096, **recipe})


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_model_with_broken_weights_is_refused_before_anything_is_trained(world, tmp_path, dry_run):
    path = Path(world["model"]) / "model.safetensors"
    held = load_file(path)
    held["lm_head.weight"][0, 1] = np.nan
    save_file(held, path)
    with pytest.raises(
        BadInput, match=r"files/model: 1 of 16,384 numbers of lm_head\.weight in model\.safetensors are not"
    ):
        sft(training(world).model_copy(update={"dry_run": dry_run}))
    assert set(steps_in(tmp_path / "store")) == {"longcot/k"}


def test_ranks_that_the_batch_does_not_divide_into_are_refused_with_the_parameters(world):
    with pytest.raises(ValidationError, match=r"(?s)sft.*batch 16 is not a multiple of micro_batch 8 x ranks 3"):
        training(world, batch=16, micro_batch=8, ranks=3)


def test_more_ranks_than_gpus_are_refused_before_anything_is_trained(world, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BadInput, match=r"config\.sft\.ranks is 4, but this machine has 2 GPUs"):
        sft(training(world, ranks=4))
    assert set(steps_in(tmp_path / "store")) == {"longcot/k"}


@pytest.mark.parametrize("harm", ["torn manifest", "corrupt part", "no manifest"])
def test_a_damaged_artifact_given_to_a_stage_is_named(world, monkeypatch, harm):
    answering(monkeypatch)
    longcot = made(world)
    folder = Path(longcot.uri)
    manifest, part = folder / "manifest.json", folder / "part-00000.parquet"
    if harm == "torn manifest":
        manifest.write_bytes(manifest.read_bytes()[:-9])
    elif harm == "corrupt part":
        part.write_bytes(part.read_bytes()[:-1] + b"!")
    else:
        manifest.unlink()
    artifact = f"{longcot.step}/{longcot.key}"
    with pytest.raises(ValueError, match=f"artifact '{artifact}': expected STEP/KEY of a whole artifact in .*store"):
        sft(SftFlowConfig(model=world["model"], serving=world["serving"], longcot=artifact))
    assert made(world) == longcot  # made again, identical
    assert find(store(), longcot.step, longcot.key) == longcot


# ---- what happens during a run


def test_a_server_that_dies_at_its_start_shows_its_log_and_finished_artifacts_stay(world, tmp_path, monkeypatch):
    dying = [sys.executable, "-c", "print('no device for you'); raise SystemExit(3)"]
    monkeypatch.setattr(VllmServer, "command", lambda _: dying)
    with pytest.raises(
        ServerError, match=r"(?s)imported/model-\w+ ended with status 3; log: .*\.log.*no device for you"
    ):
        made(world)
    kept = steps_in(tmp_path / "store")
    assert {name.split("/")[0] for name in kept} == {"imported", "examples", "queries", *MINING}
    answering(monkeypatch)
    made(world)
    assert kept.items() <= steps_in(tmp_path / "store").items()


def test_after_a_server_dies_midway_only_the_rest_is_requested(world, tmp_path, monkeypatch):
    first = answering(monkeypatch, dies_after=5)
    with pytest.raises(ServerError, match="ended with status 137"):
        made(world)
    kept = steps_in(tmp_path / "store")
    assert {name.split("/")[0] for name in kept} <= {"imported", "examples", "queries", "responses", *MINING}
    rest = answering(monkeypatch)
    longcot = made(world)
    assert sorted(first + rest) == sorted(row["query_id"] for row in read_rows(store(), longcot, ["query_id"]))
    assert kept.items() <= steps_in(tmp_path / "store").items()
    assert len(first) == 5


def test_a_trainer_that_crashes_shows_its_log_and_leaves_no_model(world, tmp_path, monkeypatch):
    answering(monkeypatch)
    longcot = made(world)
    config = SftFlowConfig(
        model=world["model"], serving=world["serving"], longcot=f"longcot/{longcot.key}", sft={"ranks": 1, "batch": 1}
    )
    kept = steps_in(tmp_path / "store")
    (tmp_path / "crashing.py").write_text("raise RuntimeError('out of luck')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(
        tasks.training.train, "launch", lambda _module, config, **rest: launch("crashing", config, **rest)
    )
    with pytest.raises(TrainerError, match=r"(?s)ended with status 1; log: .*train\.log.*RuntimeError: out of luck"):
        sft(config)
    assert steps_in(tmp_path / "store") == kept

    def trained(_module: str, config: SftConfig, *, log_path: Path, **_: Any) -> None:
        config.output.mkdir(parents=True)
        (config.output / "config.json").write_text("{}")
        answer = {"prompt": "which day is 1 ?", "text": "", "ended": True}
        trained_path(config.output).write_text(json.dumps({"answer": answer}))
        metrics_path(log_path).write_text("")

    monkeypatch.setattr(tasks.training.train, "launch", trained)
    model = sft(config)
    assert (model.kind, model.step) == ("model", "sft")
    assert kept.items() <= steps_in(tmp_path / "store").items()
