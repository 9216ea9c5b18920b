"""The gate of a trained model: what training or saving broke is found before the model is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from tiny import PROMPT, make_model

from infra.training.config import SftConfig


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_model(tmp_path / "base")


def trained(base: Path, out: Path, **changes: Any) -> SftConfig:
    """A model as the trainer leaves it, after what transformers' trainer does to its settings."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.trainer_utils import align_special_tokens

    from infra.text.chat import load_tokenizer
    from infra.training.saving import make_savable, restore_settings

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), load_tokenizer(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    align_special_tokens(model, tokenizer)
    model.config.use_cache = False
    make_savable(model.config, model.generation_config, tokenizer, "model m")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    restore_settings(model, base, "model m", trust_remote_code=False)
    model.save_pretrained(out)
    load_tokenizer(base).save_pretrained(out)
    rows = {"prompt": [PROMPT] * 2, "completion": ["w1 w2"] * 2}
    data = out.with_name("rows.parquet")
    pq.write_table(pa.table(rows), data)
    return SftConfig(model=base, data=(data,), output=out, max_length=64, sample_tokens=8, **changes)


def test_a_trained_model_passes_and_answers_greedily(base: Path, tmp_path: Path) -> None:
    from infra.training.gate import check_saved

    config = trained(base, tmp_path / "out")
    answer = check_saved(config)
    assert answer == check_saved(config)
    assert answer["prompt"] == PROMPT
    assert len(answer["text"].split()) == 8 or answer["ended"]


def test_an_answer_that_ends_is_without_its_end_token(base: Path, tmp_path: Path) -> None:
    from infra.training.gate import check_saved

    config = trained(base, tmp_path / "out")
    tensors = load_file(config.output / "model.safetensors")
    for name in tensors:
        tensors[name].zero_()  # all tokens are as likely, and the first one is taken
    save_file(tensors, config.output / "model.safetensors", {"format": "pt"})
    for folder in (base, config.output):  # <pad>, the first of all tokens, ends a text
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [0, 2]}))
    assert check_saved(config) == {"prompt": PROMPT, "text": "", "ended": True}


def test_the_settings_that_the_trainer_changes_are_the_bases_again(base: Path, tmp_path: Path) -> None:
    """Without them a trained model would stop elsewhere, or generate without a cache."""
    told = json.loads((base / "generation_config.json").read_text()) | {"eos_token_id": [2, 5]}
    (base / "generation_config.json").write_text(json.dumps(told))
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    del tokenizer["pad_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    out = trained(base, tmp_path / "out").output
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 5]
    assert json.loads((out / "config.json").read_text())["use_cache"] is True
    assert "pad_token" not in json.loads((out / "tokenizer_config.json").read_text())
    assert (out / "chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()


def changed(file: str, **told: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | told))

    return change


def tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    return harm


def template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + " ")


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (tensors(lambda held: held[NORM].__setitem__(3, float("nan"))), r"1 of 64 numbers of model\.norm\.weight"),
        (tensors(lambda held: held[NORM].__setitem__(0, float("inf"))), "not finite"),
        (tensors(lambda held: held.pop(NORM)), r"missing_keys \['model\.norm\.weight'\]"),
        (tensors(lambda held: held.update({"more": held[NORM] + 1})), r"unexpected_keys \['more'\]"),
        (tensors(lambda held: held.update({NORM: held[NORM][:32].clone()})), r"norm\.weight: \[32\], expected \[64\]"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "not a whole safetensors file"),
        (template, "tokenizer differs .* chat template"),
        (changed("tokenizer_config.json", extra_special_tokens=["w7"]), "tokenizer differs .* tokens"),
        (changed("generation_config.json", eos_token_id=3), "in the saved generation_config.json is 3, but 2"),
        (changed("generation_config.json", top_k=7, do_sample=True), "generation_config.json"),
        (changed("config.json", use_cache=False), "use_cache in the saved config.json is False, but True"),
        (changed("config.json", eos_token_id=[2, 3]), "eos_token_id in the saved config.json"),
    ],
)  # fmt: skip
def test_what_is_broken_in_a_trained_model_stops_its_publication(
    base: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    from infra.training.gate import check_saved

    config = trained(base, tmp_path / "out")
    harm(config.output)
    with pytest.raises(ValueError, match=message):
        check_saved(config)


def test_a_layer_that_is_gone_from_weights_and_configuration_is_found(base: Path, tmp_path: Path) -> None:
    from infra.training.gate import check_saved

    config = trained(base, tmp_path / "out")
    tensors(lambda held: [held.pop(name) for name in list(held) if ".layers.1." in name])(config.output)
    changed("config.json", num_hidden_layers=1)(config.output)
    with pytest.raises(ValueError, match=r"differ in name or shape .*layers\.1\."):
        check_saved(config)


def test_a_tied_head_may_be_stored_in_one_of_the_models_only(tmp_path: Path) -> None:
    from infra.training.gate import check_saved

    base = make_model(tmp_path / "base", tie_word_embeddings=True)
    tensors(lambda held: held.update({"lm_head.weight": held["model.embed_tokens.weight"].clone()}))(base)
    config = trained(base, tmp_path / "out")
    assert "lm_head.weight" not in load_file(config.output / "model.safetensors")
    check_saved(config)


def test_settings_of_generation_may_stand_in_the_config_json_of_an_old_model(base: Path, tmp_path: Path) -> None:
    from infra.training.gate import check_saved

    (base / "generation_config.json").unlink()
    changed("config.json", temperature=0.6, eos_token_id=[2, 5])(base)  # a temperature without sampling is dropped
    config = trained(base, tmp_path / "out")
    check_saved(config)
    assert json.loads((config.output / "generation_config.json").read_text())["eos_token_id"] == [2, 5]


def test_no_second_model_is_loaded_for_the_comparison(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from transformers import AutoModelForCausalLM

    from infra.training import gate

    config, loaded = trained(base, tmp_path / "out"), []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        gate.AutoModelForCausalLM,
        "from_pretrained",
        lambda folder, **more: loaded.append(folder) or load(folder, **more),
    )
    gate.check_saved(config)
    assert loaded == [config.output]
