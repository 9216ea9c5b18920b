"""Each preset loads; those of real models plan a run with models of the real ones' shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from families import FAMILIES, make_folder, write_tensors
from small import without_sizes, write_queries

from flows.__main__ import deployments, flow_of
from flows.bolt import BoltConfig
from infra.processes.devices import Machine
from infra.serving.servers import Servers
from infra.settings import PROJECT_ROOT, Settings
from infra.store.manifest import Provenance, Ref
from infra.store.models import import_model
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import write_table
from infra.training.switches import ranks_of

STAGES = ("bootstrap/llama-70b", "sft/llama-8b", "sft/llama-70b", "sft/mistral-7b")
STAGES += ("online/llama-8b", "online/llama-70b", "online/mistral-7b")
LLAMA = {"max_position_embeddings": 131072}
MISTRAL_7B = "mistralai/Mistral-7B-Instruct-v0.3@main"
LLAMA_8B, LLAMA_70B = (f"meta-llama/Llama-3.1-{size}-Instruct@main" for size in ("8B", "70B"))
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "max_position_embeddings": 32768}


@pytest.mark.parametrize("name", deployments())
def test_every_preset_is_valid_for_its_flow(name):
    each = deployments()[name]
    flow_of(each).validate_parameters(each["parameters"])


@pytest.mark.parametrize("name", ["bolt/nano", "bolt/nano-paper", "bolt/smollm2"])
@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_the_small_worlds_run_on_any_number_of_gpus(name, gpus):
    """No more ranks than GPUs; and where all servers share one, a training still fits beside them."""
    machine = Machine(gpus=gpus, capability=9.0, cpu_bf16=True, liger=False)
    config = BoltConfig.model_validate(deployments()[name]["parameters"]["config"])
    for stage in (config.sft, config.online.dpo):
        ranks = ranks_of(stage, machine)
        assert ranks <= gpus
        stage.accumulation(ranks)
    serving = config.serving
    taken = serving.policy_servers * serving.policy.gpu_memory_utilization
    if config.reward_model is not None:
        taken += serving.reward.gpu_memory_utilization
    assert taken <= (0.9 if serving.share_devices else 0.65)


def test_the_presets_of_one_node_agree():
    """The stages alone have the settings that they have as parts of the whole method."""
    whole = BoltConfig.model_validate(deployments()["bolt/llama-8b"]["parameters"]["config"])
    for family in ("llama-8b", "mistral-7b"):
        stage = deployments()[f"sft/{family}"]["parameters"]["config"]
        assert stage["sft"] == deployments()["bolt/llama-8b"]["parameters"]["config"]["sft"]
        assert (
            flow_of(deployments()[f"online/{family}"])
            .validate_parameters(deployments()[f"online/{family}"]["parameters"])["config"]
            .online
            == whole.online
        )


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Folders by hub id: the tokenizer's and configuration's shape of the real model, tiny weights."""
    without_sizes(monkeypatch)
    reward = make_folder(
        tmp_path / "skywork",
        FAMILIES["llama3"],
        config={**LLAMA, "architectures": ["LlamaForSequenceClassification"], "num_labels": 1, "id2label": {"0": "x"}},
    )
    write_tensors(reward / "model.safetensors", "model.embed_tokens.weight", "score.weight")
    return {
        LLAMA_8B: str(make_folder(tmp_path / "llama", FAMILIES["llama3"], config=LLAMA)),
        LLAMA_70B: str(make_folder(tmp_path / "l70", FAMILIES["llama3"], config=LLAMA)),
        MISTRAL_7B: str(make_folder(tmp_path / "mist", FAMILIES["mistral"], config=MISTRAL)),
        "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2@main": str(reward),
    }


def local(value: Any, models: dict[str, str], queries: Path) -> Any:
    """The parameters with each hub model as a folder, and each hub data set as the file `queries`."""
    if isinstance(value, dict):
        if "dataset" in value:
            return {"path": str(queries)}
        return {name: local(item, models, queries) for name, item in value.items()}
    if isinstance(value, list):
        found = [local(item, models, queries) for item in value]
        return [each for number, each in enumerate(found) if each not in found[:number]]
    return models.get(value, value) if isinstance(value, str) else value


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.chdir(PROJECT_ROOT)
    monkeypatch.setattr(Servers, "_pool", lambda *_: pytest.fail("a server was asked for"))
    return Store.open(Settings.load())


def longcot(store: Store) -> Ref:
    row = {"query_id": "q", "sample": 0, "query": "why ?", "thoughts": "plan", "solution": "so", "reward": 1.0}
    return write_table(store, "longcot", "k", LONGCOT, [[{**row, "format": "bolt"}]], Provenance())


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("name", ["bolt/llama-8b", *STAGES])
def test_a_preset_of_a_real_model_plans_a_run_with_a_model_of_its_shape(name, models, store, tmp_path, capsys):
    texts = [f"Explain in your own words why the number {number} is not prime, please." for number in range(8)]
    queries = write_queries(tmp_path / "queries.jsonl", *texts)
    each = deployments()[name]
    config = local(json.loads(json.dumps(each["parameters"]["config"])), models, queries) | {"dry_run": True}
    if name.startswith("sft"):
        config["longcot"] = f"longcot/{longcot(store).key}"
    if name.startswith("online"):
        family = (
            "meta-llama/Llama-3.1-8B-Instruct@main" if "llama" in name else "mistralai/Mistral-7B-Instruct-v0.3@main"
        )
        trained = import_model(store, Path(models[family]), "sft")
        config["model"] = f"{trained.step}/{trained.key}"
        config["online"] |= {"queries_per_iteration": 2}
        config["online"]["queries"] |= {"draw": {"skip": 0, "min_difficulty": 0}}
    for stage in (config, config.get("bootstrap", {}), config.get("online", {})):
        if "queries" in stage:
            stage["queries"] |= {"decontaminate": {}, "clean": {"near_duplicates": None, "languages": []}}
    if name.startswith("bolt"):
        config["online"] |= {"queries_per_iteration": 1}
        config["online"]["queries"] |= {"draw": {"skip": 0, "min_difficulty": 0}}
        config["evaluate"] |= {"benchmark": "short-answer"}
        config["evaluate"]["problems"] = {
            "sources": [{"path": str(write_queries(tmp_path / "p.jsonl", "what is 1 ?"))}]
        }
    config["serving"]["policy"] |= {"max_model_len": 100_000}  # a token is a byte here
    if "mistral" in name:
        config["serving"]["policy"] |= {"max_model_len": 20_480}
    flow_of(each)(**flow_of(each).validate_parameters({"config": config}))
    plan = capsys.readouterr().out
    assert "GPU hours" in plan or "in all" in plan
    trainings = {"bolt": 2, "sft": 1, "online": 1, "bootstrap": 0}[name.partition("/")[0]]
    assert plan.count("a GPU has 79.0 GiB") == trainings  # whatever this machine has
    assert "to do" in plan


def test_the_papers_recipe_in_the_nano_world_differs_in_nothing_else():
    nano, paper = (
        BoltConfig.model_validate(deployments()[f"bolt/{name}"]["parameters"]["config"])
        for name in ("nano", "nano-paper")
    )
    dpo, pair = paper.online.dpo, paper.online.pair
    assert (dpo.sft_coefficient, dpo.epochs, dpo.beta, pair.boundary, pair.min_margin) == (0, 2, 0.1, None, 0)
    same = {"dpo": nano.online.dpo, "pair": nano.online.pair}
    assert paper.model_copy(update={"online": paper.online.model_copy(update=same)}) == nano
    assert dpo.model_copy(update={"sft_coefficient": 20.0, "epochs": 1.0}) == nano.online.dpo
    assert pair.model_copy(update={"boundary": 0.0, "min_samples": 4}) == nano.online.pair


def test_every_preset_has_a_description_and_the_pools_tag():
    for entry in yaml.safe_load((PROJECT_ROOT / "prefect.yaml").read_text())["deployments"]:
        assert entry["description"]
        assert entry["tags"]
