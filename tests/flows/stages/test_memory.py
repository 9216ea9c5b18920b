"""A training that cannot fit is refused before anything starts, a dry run too; a plan says what each needs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small import small_world, without_sizes

from flows.__main__ import deployments, flow_of
from flows.bolt import BoltConfig, bolt
from flows.stages.memory import Device, cached_config, check_fits, device
from infra.errors import BadInput
from infra.processes.devices import Machine
from infra.serving.servers import Servers
from infra.training.config import DpoRecipe, Recipe, SftRecipe
from infra.training.memory import GIB, Sizes, estimate, gib, llama_sizes
from infra.training.switches import settled

LLAMA_8B = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
LLAMA_8B |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}
LLAMA_70B = LLAMA_8B | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
LLAMA_70B |= {"num_attention_heads": 64}
QWEN_32B = LLAMA_8B | {"model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 27648}
QWEN_32B |= {"num_hidden_layers": 64, "num_attention_heads": 40, "vocab_size": 152064}
MISTRAL_7B = LLAMA_8B | {"model_type": "mistral", "vocab_size": 32768}
HERE = Machine(gpus=0, capability=0.0, cpu_bf16=True, liger=False)
NODE = Device(Machine(gpus=8, capability=9.0, cpu_bf16=True, liger=False), 79 * GIB)
SPARING = {"gradient_checkpointing": True, "ranks": 8}


def sizes(config: dict[str, Any]) -> Sizes:
    found = llama_sizes(config)
    assert found is not None
    return found


def checked(
    stage: Recipe, on: Device = NODE, config: dict[str, Any] = LLAMA_8B, nodes: int = 1, share: float = 1.0
) -> str:
    return check_fits("model m", config, sizes(config), "config.sft", stage, on, nodes, share)


def needed(stage: Recipe, config: dict[str, Any] = LLAMA_8B) -> float:
    recipe = settled(stage, config, NODE.machine)
    return estimate(sizes(config), recipe, stage.ranks or 8, on_gpu=True).total


def with_gpus(monkeypatch: pytest.MonkeyPatch, *gibs: float) -> None:
    machine = HERE if not gibs else Machine(len(gibs), 9.0, True, False)
    monkeypatch.setattr("flows.stages.memory.this_machine", lambda: machine)
    monkeypatch.setattr("flows.stages.memory.gpu_memory", lambda: tuple(int(each * GIB) for each in gibs))
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(gibs))


@pytest.mark.parametrize(
    ("here", "planned", "dry", "expected"),
    [
        ((), None, True, (False, 24)),
        ((), 79, True, (True, 79)),  # a plan made on a laptop
        ((), 79, False, (True, 79)),
        ((24, 40), None, False, (True, 24)),
        ((24, 40), 79, True, (True, 79)),
        ((24, 40), 79, False, (True, 24)),  # a run itself: what is here
    ],
)
def test_a_plan_is_for_the_gpus_it_names_and_a_run_for_those_here(monkeypatch, here, planned, dry, expected):
    with_gpus(monkeypatch, *here)
    monkeypatch.setattr("flows.stages.memory.computer_memory", lambda: 24 * GIB)
    found = device(planned, dry=dry)
    assert (found.on_gpu, found.memory / GIB) == expected


def test_a_run_on_a_cluster_is_for_its_nodes_and_not_for_a_head_without_gpus(monkeypatch):
    with_gpus(monkeypatch)
    node = Machine(8, 9.0, True, True), 79 * GIB
    cluster = SimpleNamespace(training_machine=node)
    assert device(None, dry=False, elsewhere=True, cluster=cluster) == Device(*node, planned=True)
    assert device(40, dry=False, elsewhere=True, cluster=cluster).memory == 40 * GIB
    monkeypatch.setattr("flows.stages.memory.runs_on_cpu", lambda: False)
    planned = device(None, dry=True, elsewhere=True)  # no node is asked
    assert planned.on_gpu
    assert "how much a GPU there has is not known" in checked(SftRecipe(), planned)


def test_nothing_is_refused_where_the_memory_is_not_known(monkeypatch):
    with_gpus(monkeypatch, 80)
    monkeypatch.setattr("flows.stages.memory.gpu_memory", lambda: ())  # a part of a GPU
    line = checked(SftRecipe(ranks=1), device(None, dry=False))
    assert "how much a GPU here has is not known" in line


def test_ranks_share_a_computers_memory_but_not_a_gpu():
    assert Device(NODE.machine, 10).room(4) == 10
    assert Device(HERE, 10).room(4) == 2.5


def test_the_line_of_a_plan_has_parts_total_and_what_there_is():
    stage = SftRecipe(zero_stage=3, **SPARING)
    line = checked(stage)
    assert line.startswith(f"memory of config.sft         {gib(needed(stage))} GiB per rank at ")
    for part in ("weights 1.9", "optimiser 11.2", "activations ", "a GPU has 79.0 GiB"):
        assert part in line


def test_without_a_number_of_ranks_a_plan_takes_all_gpus():
    assert checked(SftRecipe(zero_stage=3, gradient_checkpointing=True)) == checked(SftRecipe(zero_stage=3, **SPARING))


def test_a_training_that_cannot_fit_is_refused_with_the_nearest_settings_that_do():
    with pytest.raises(BadInput) as error:
        checked(SftRecipe())
    said = str(error.value)
    assert said.startswith("config.sft: training model m does not fit: it needs ")
    assert "a GPU has 79.0 GiB" in said
    sparing = gib(needed(SftRecipe(**SPARING)))
    assert f"settings that fit: config.sft.gradient_checkpointing=true ({sparing} GiB per rank)" in said
    with pytest.raises(BadInput, match=r"No setting of .* is enough: take more memory, or a smaller model"):
        checked(SftRecipe(), Device(NODE.machine, 2 * GIB), LLAMA_70B)


def test_ranks_of_all_nodes_share_and_those_of_one_are_named():
    one, four = (SftRecipe(zero_stage=3, **SPARING), SftRecipe(zero_stage=3, ranks=2, gradient_checkpointing=True))
    assert checked(four, nodes=4) == checked(one)
    small = Device(NODE.machine, 24 * GIB)
    with pytest.raises(BadInput, match=r"fit: config\.sft\.ranks=4 \("):
        checked(four.model_copy(update={"max_length": 8192}), small, nodes=4)


def test_who_knows_better_raises_the_share():
    assert checked(SftRecipe(), share=1.01 * needed(SftRecipe()) / NODE.memory)


def test_a_model_that_is_not_known_is_refused_only_for_what_is_certain():
    unknown = Sizes(family="mixtral", known=False, parameters=46_700_000_000)
    model = {"model_type": "mixtral"}
    line = check_fits("model m", model, unknown, "config.sft", SftRecipe(zero_stage=3, ranks=8), NODE, 8, 1.0)
    assert "of a family (mixtral) or of sizes that are not known here: activations not counted" in line
    with pytest.raises(BadInput, match=r"zero_stage=3"):
        check_fits("model m", model, unknown, "config.sft", SftRecipe(ranks=32), NODE, 1, 1.0)


PRESETS = {
    "bolt/llama-8b": (LLAMA_8B, ("sft", "online.dpo")),
    "sft/llama-8b": (LLAMA_8B, ("sft",)),
    "sft/mistral-7b": (MISTRAL_7B, ("sft",)),
    "sft/llama-70b": (LLAMA_70B, ("sft",)),
    "online/llama-8b": (LLAMA_8B, ("online.dpo",)),
    "online/mistral-7b": (MISTRAL_7B, ("online.dpo",)),
    "online/llama-70b": (LLAMA_70B, ("online.dpo",)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_of_real_models_fit_gpus_of_80_gb_at_the_papers_batch(name):
    shape, paths = PRESETS[name]
    each = deployments()[name]
    config = flow_of(each).validate_parameters(each["parameters"])["config"]
    assert config.estimates.gpu_memory_gib <= 79.6  # what nvidia-smi shows of an H100 of 80 GB
    on = Device(NODE.machine, config.estimates.gpu_memory_gib * GIB)
    for path in paths:
        stage = config.sft if path == "sft" else config.online.dpo
        assert stage.batch == 128
        nodes = config.training.nodes
        assert (stage.ranks, nodes) == (8, 8 if "70b" in name else 1)
        assert stage.accumulation(stage.ranks * nodes) >= 1
        longest = 10240 if isinstance(stage, DpoRecipe) and "70b" in name else 16384
        assert stage.max_length == longest
        assert checked(stage, on, shape, nodes)


def test_still_2_with_32b_fits_its_nodes_and_not_fewer():
    each = deployments()["still2/qwen-32b"]
    config = flow_of(each).validate_parameters(each["parameters"])["config"]
    on = Device(NODE.machine, config.estimates.gpu_memory_gib * GIB)
    assert (config.sft.batch, config.sft.learning_rate) == (96, 1e-5)  # the paper's
    assert checked(config.sft, on, QWEN_32B, config.training.nodes)
    with pytest.raises(BadInput):
        checked(config.sft, on, QWEN_32B, config.training.nodes // 2)


def test_a_hub_model_whose_configuration_was_downloaded_before_is_estimated(tmp_path: Path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_8B))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(path))
    assert cached_config("org/name", "main") == LLAMA_8B
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    assert cached_config("org/name", "main") is None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters of a run whose model has the sizes of Llama 3.1 8B. The test fails if a server is started."""
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setattr(Servers, "_pool", lambda *_: pytest.fail("a server was asked for"))
    made = small_world(tmp_path / "files")
    config = Path(made["model"]) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | LLAMA_8B))
    return made


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_flow_refuses_it_before_anything_starts(world, monkeypatch, dry_run):
    without_sizes(monkeypatch)
    with_gpus(monkeypatch, 79, 79)
    world["sft"] = {"ranks": 1}
    with pytest.raises(BadInput, match=r"config\.sft: training model .* does not fit"):
        bolt(BoltConfig(**world, dry_run=dry_run))


@pytest.mark.usefixtures("prefect_server")
def test_a_plan_on_a_laptop_is_for_the_gpus_that_it_names(world, monkeypatch, capsys):
    without_sizes(monkeypatch)
    with_gpus(monkeypatch, 16)  # fewer than ranks, and smaller
    world["sft"] = world["online"]["dpo"] = {"zero_stage": 3, "gradient_checkpointing": True, "ranks": 8}
    world["estimates"] |= {"gpu_memory_gib": 79}
    bolt(BoltConfig(**world, dry_run=True))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory of ")]
    assert [line.split()[2] for line in lines] == ["config.sft", "config.online.dpo"]
    assert all("GiB per rank" in line and "a GPU has 79.0 GiB" in line for line in lines)
