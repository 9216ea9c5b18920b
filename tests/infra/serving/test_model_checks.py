"""Models that strangers bring: what is wrong with one is found in its files, before anything is served or trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from armo import make_armorm
from families import FAMILIES, make_folder, make_tokenizer, write_tensors
from safetensors.torch import load_file, save_file
from tiny import changed, harmed, make_model

from infra.errors import BadInput
from infra.serving.model_checks import check_policy, check_reward_model, check_served, check_trained
from infra.serving.vllm_server import ServerOptions
from infra.store.model_files import ModelFiles
from infra.store.models import publish_model
from infra.store.store import Store
from infra.store.tables import Provenance
from infra.training.config import SftRecipe
from infra.training.inputs import check_ranks

OPTIONS = ServerOptions(max_model_len=256)
ONE_LABEL = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}


@pytest.fixture
def reward(tmp_path: Path) -> Callable[..., Path]:
    """A reward model's folder with the given tensors and configuration."""

    def make(*tensors: str, shape: tuple[int, ...] = (1, 4), **config: Any) -> Path:
        folder = make_folder(tmp_path / "reward", FAMILIES["llama3"], config=ONE_LABEL | config)
        write_tensors(folder / "model.safetensors", "model.embed_tokens.weight", *tensors, shape=shape)
        return changed(folder, **config)

    return make


# ---- D3: a model without a scoring head


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (["lm_head.weight"], {"architectures": ["LlamaForCausalLM"]}, r"is a LlamaForCausalLM .*lm_head\.weight"),
        (["lm_head.weight"], {}, r"has no tensor score\.weight, found lm_head\.weight \[1, 4\]"),
        ([], {}, "found no tensor of a head"),
        (["v_head.summary.weight"], {}, r"found v_head\.summary\.weight"),  # TRL's value head
        (["v_head.weight"], {"architectures": ["InternLM2ForRewardModel"]}, "is a InternLM2ForRewardModel"),
        (["reward_head.weight"], {}, r"rename the tensor to score\.weight"),
        (["classifier.weight"], {}, r"found classifier\.weight"),
        (["regression_head.weight"], {"architectures": ["LlamaRewardModel"]}, "is a LlamaRewardModel"),  # UltraRM
        (["score.0.weight", "score.2.weight"], {"architectures": ["Qwen2ForRewardModel"]}, "is a Qwen2ForRewardModel"),
        (["score.0.weight", "score.2.weight"], {}, r"has no tensor score\.weight, found score\.0\.weight"),
        (["model.score.weight"], {}, r"found model\.score\.weight"),
        (["score.weight"], {"architectures": None}, "names no architecture"),
        (["score.weight"], {"architectures": []}, "names no architecture"),
        (["score.weight"], {"id2label": {"0": "bad", "1": "good"}}, "has 2 labels in id2label"),
        (["score.weight"], {"id2label": None}, "which means two labels"),
        (["score.weight"], {"id2label": None, "num_labels": 5}, "num_labels 5"),
        (["score.weight"], {"architectures": ["LlamaForRewardModelWithGating"]}, "lacks regression_layer.weight"),
    ],
)  # fmt: skip
def test_a_reward_model_without_a_scoring_head_is_refused(
    reward: Callable[..., Path], tensors: list[str], config: dict[str, Any], message: str
) -> None:
    files = ModelFiles.in_folder(reward(*tensors, **config))
    with pytest.raises(BadInput, match=message):
        check_reward_model(files, OPTIONS)


def test_a_head_of_several_numbers_is_refused(reward: Callable[..., Path]) -> None:
    with pytest.raises(BadInput, match=r"must give one number, but score\.weight is \[3, 4\]"):
        check_reward_model(ModelFiles.in_folder(reward("score.weight", shape=(3, 4))), OPTIONS)


def test_reward_models_that_give_one_number_are_taken(reward: Callable[..., Path], tmp_path: Path) -> None:
    for config in ({}, {"id2label": None, "num_labels": 1}, {"architectures": ["Gemma2ForSequenceClassification"]}):
        check_reward_model(ModelFiles.in_folder(reward("score.weight", **config)), OPTIONS)
    check_reward_model(
        ModelFiles.in_folder(reward("classifier.weight", architectures=["ModernBertForSequenceClassification"])),
        OPTIONS,
    )
    check_reward_model(ModelFiles.in_folder(make_model(tmp_path / "tiny", reward=True)), OPTIONS)
    check_reward_model(ModelFiles.in_folder(make_armorm(tmp_path / "armo", shards=3)), OPTIONS)
    check_reward_model(ModelFiles.in_folder(Path("nano/models/reward")), OPTIONS)


def test_a_head_is_found_in_whatever_file_the_index_names(reward: Callable[..., Path], store: Store) -> None:
    folder = reward()
    (folder / "model.safetensors").unlink()
    write_tensors(folder / "model-00001-of-00002.safetensors", "model.embed_tokens.weight")
    write_tensors(folder / "model-00002-of-00002.safetensors", "score.weight")
    weight_map = {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}
    weight_map |= {"score.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check_reward_model(ModelFiles.in_folder(folder), OPTIONS)
    ref = publish_model(store, "imported", "k", folder, Provenance())
    check_reward_model(ModelFiles.of(store, ref), OPTIONS)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        BadInput, match=r"names model-00002-of-00002\.safetensors \(1 such files in all\), which is not"
    ):
        check_reward_model(ModelFiles.in_folder(folder), OPTIONS)


def test_armorm_cannot_reward_inside_a_trainer(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"which vLLM cannot serve, but this run needs a served one: use a sequence"):
        check_served(ModelFiles.in_folder(make_armorm(tmp_path / "armo")))
    check_served(ModelFiles.in_folder(make_model(tmp_path / "reward", reward=True)))


def test_armorm_needs_its_heads_and_llama_3s_template(tmp_path: Path) -> None:
    folder = make_armorm(tmp_path / "armo", template=FAMILIES["alpaca"].template)
    with pytest.raises(BadInput, match=r"does not write .*before the answer"):
        check_reward_model(ModelFiles.in_folder(folder), OPTIONS)


def test_a_reward_model_without_a_chat_template_is_refused(reward: Callable[..., Path]) -> None:
    folder = reward("score.weight")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match=r"model .*/reward: no chat template in its files .* add the template"):
        check_reward_model(ModelFiles.in_folder(folder), OPTIONS)


# ---- what every model needs


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "is not a whole safetensors file: expected"),
        (lambda path: path.write_bytes(path.read_bytes()[:30]), "is not a whole safetensors file .* in its table"),
        (lambda path: path.write_bytes(b""), r"is not a whole safetensors file \(0 bytes\)"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid 0\n"), "run `git lfs pull`"),
        (lambda path: path.write_text("<html>not found</html>"), "is not a whole safetensors file"),
        (lambda path: path.unlink(), "it has no weights .* found .*expected model.safetensors"),
    ],
)  # fmt: skip
def test_weights_that_are_not_whole_are_refused(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["llama3"])
    harm(folder / "model.safetensors")
    with pytest.raises(BadInput, match=message):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)


@pytest.mark.parametrize("name", ["consolidated", "pytorch_model", "model-00001-of-00002", "adapter_model"])
def test_weights_that_transformers_would_not_load_are_refused(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["llama3"])
    (folder / "model.safetensors").rename(folder / f"{name}.safetensors")
    with pytest.raises(BadInput, match=rf"no weights that transformers loads, found {name}\.safetensors: expected "):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"holds an adapter .* merge it into its base model"):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)


@pytest.mark.parametrize("weight_map", [{}, None, [], {"lm_head.weight": 1}])
def test_an_index_that_lists_no_tensors_is_refused(tmp_path: Path, weight_map: Any) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["llama3"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BadInput, match=r"model\.safetensors\.index\.json lists no tensors: expected a weight_map"):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"holds an adapter .* merge it into its base model"):
        ModelFiles.in_folder(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ONE_LABEL, "is a LlamaForSequenceClassification .*which writes no text"),
        ({"architectures": ["LlamaModel"]}, "is a LlamaModel .*which writes no text"),
        ({"architectures": ["BertForMaskedLM"]}, "writes no text"),
        ({"max_position_embeddings": 128}, r"reads 128 tokens at most .*serving\.policy\.max_model_len is 256"),
    ],
)
def test_a_model_that_cannot_write_text_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["llama3"], config=config)
    with pytest.raises(BadInput, match=message):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)


def test_a_model_whose_language_head_is_missing_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["llama3"], config={"tie_word_embeddings": False})
    check_policy(ModelFiles.in_folder(folder), OPTIONS)
    write_tensors(folder / "model.safetensors", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")
    with pytest.raises(BadInput, match="has no language head among its 2 tensors"):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)
    check_policy(ModelFiles.in_folder(changed(folder, tie_word_embeddings=True)), OPTIONS)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_public_families_are_taken(tmp_path: Path, family: str, store: Store) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES[family])
    check_policy(ModelFiles.in_folder(folder), OPTIONS)
    check_policy(ModelFiles.of(store, publish_model(store, "imported", "k", folder, Provenance())), OPTIONS)


def test_a_model_that_does_not_stop_where_its_template_ends_a_turn_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["gemma"], stops=["<eos>"])
    with pytest.raises(BadInput, match=r"with '<end_of_turn>' .* but nothing stops there"):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)


def test_a_tokenizer_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["llama3"])
    (folder / "tokenizer.json").write_text('{"broken": ')
    with pytest.raises(BadInput, match="its tokenizer cannot be loaded"):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["llama3"])
    for text, message in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        (folder / "config.json").write_text(text)
        with pytest.raises(BadInput, match=message):
            check_policy(ModelFiles.in_folder(folder), OPTIONS)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"max_position_embeddings": "4096"}, r"its config\.json cannot be loaded .*max_position_embeddings"),
        ({"dtype": "bf16"}, r"its config\.json cannot be loaded .*bf16"),
    ],
)
def test_a_config_that_transformers_cannot_read_is_named(tmp_path: Path, told: dict[str, Any], message: str) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["llama3"], config=told)
    with pytest.raises(BadInput, match=f"(?s){message}"):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)


# ---- what training needs


def test_a_training_length_over_the_models_context_is_refused(tmp_path: Path) -> None:
    files = ModelFiles.in_folder(make_model(tmp_path / "m"))
    assert check_trained(files, SftRecipe(max_length=256), "config.sft") == []
    with pytest.raises(BadInput, match=r"reads 256 tokens at most .* set config\.sft\.max_length to 256 or less"):
        check_trained(files, SftRecipe(max_length=16384), "config.sft")


def test_a_trained_model_is_rehearsed_from_the_store(tmp_path: Path, store: Store) -> None:
    folder = changed(make_model(tmp_path / "m"), "generation_config.json", temperature=0.6, top_p=0.9)
    ref = publish_model(store, "imported", "k", folder, Provenance())
    dropped = check_trained(ModelFiles.of(store, ref), SftRecipe(max_length=256), "config.sft")
    assert dropped == ["temperature=0.6", "top_p=0.9"]
    shutil.rmtree(folder)


def test_a_quantised_model_cannot_be_trained(tmp_path: Path) -> None:
    folder = changed(make_model(tmp_path / "m"), quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(BadInput, match=r"its weights are quantised \(awq, in config\.json\)"):
        check_trained(ModelFiles.in_folder(folder), SftRecipe(max_length=256), "config.sft")


def test_the_folder_of_a_tokenizer_alone_is_no_model(tmp_path: Path) -> None:
    make_tokenizer(FAMILIES["llama3"]).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"has no config\.json"):
        ModelFiles.in_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held["model.norm.weight"].__setitem__(0, float("nan")), "1 of 64 numbers of model.norm"),
        (lambda held: held.update({"x.weight": torch.zeros(2, dtype=torch.int8)}), "1 weights are stored as I8"),
        (
            lambda held: held.update({"x.weight": torch.zeros(2, dtype=torch.float8_e4m3fn)}),
            r"1 weights are stored as F8_E4M3 \(x\.weight\), .* expected BF16, F16, F32, F64",
        ),
    ],
)  # fmt: skip
def test_weights_that_no_training_can_start_from_are_refused(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    folder = make_model(tmp_path / "m")
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=message):
        check_trained(ModelFiles.in_folder(folder), SftRecipe(max_length=256), "config.sft")


def test_masks_that_are_no_weights_may_be_of_any_number_format(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    held = load_file(folder / "model.safetensors") | {"model.layers.0.attn.bias": torch.ones(2, dtype=torch.bool)}
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    assert check_trained(ModelFiles.in_folder(folder), SftRecipe(max_length=256), "config.sft") == []


def test_a_token_of_every_training_text_without_an_embedding_is_found(tmp_path: Path) -> None:
    from tiny import make_tokenizer as make_tiny_tokenizer

    folder = make_model(tmp_path / "m")
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # a well-known slip: vocab_size stays as it was
    tokenizer.save_pretrained(folder)
    with pytest.raises(BadInput, match=r"padding token '\[PAD\]' has the id 96, but .* embeddings for 96 tokens only"):
        check_trained(ModelFiles.in_folder(folder), SftRecipe(max_length=256), "config.sft")
    changed(folder, vocab_size=97)
    harmed(folder, lambda held: {name: torch.zeros(97, 64) if len(each) == 96 else each for name, each in held.items()})
    check_trained(ModelFiles.in_folder(folder), SftRecipe(max_length=256), "config.sft")


def test_a_sliding_window_shorter_than_the_training_length_is_no_fault(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    changed(folder, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=16)
    assert check_trained(ModelFiles.in_folder(folder), SftRecipe(max_length=256), "config.sft") == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_folder_without_safetensors_is_no_model(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(BadInput, match=rf"holds pickled files, .*: {name}\. Only safetensors"):
        ModelFiles.in_folder(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}",
    ],
)
def test_a_template_without_a_generation_prompt_is_refused(tmp_path: Path, template: str) -> None:
    folder = make_folder(tmp_path / "m", FAMILIES["qwen2.5"], template=template)
    with pytest.raises(BadInput, match=r"(?s)prints '.*assistant.*' before an answer, but not at the end of a prompt"):
        check_policy(ModelFiles.in_folder(folder), OPTIONS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizers_of_public_families_are_the_same_once_saved(tmp_path: Path, family: str) -> None:
    from infra.text.chat import load_tokenizer
    from infra.training.inputs import tokenizer_difference

    tokenizer = load_tokenizer(make_folder(tmp_path / "m", FAMILIES[family]))
    tokenizer.save_pretrained(tmp_path / "again")
    assert tokenizer_difference(tokenizer, load_tokenizer(tmp_path / "again")) is None


def test_more_ranks_than_gpus_are_refused_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    check_ranks("config.sft", 4)
    with pytest.raises(BadInput, match=r"config\.sft\.ranks is 8, but this machine has 4 GPUs, .* to 4 or less"):
        check_ranks("config.sft", 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check_ranks("config.sft", 8)  # processes on CPU are as many as one likes
