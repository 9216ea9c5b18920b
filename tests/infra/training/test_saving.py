"""A trained model can be saved, and holds each tensor once: tried before it is trained, and after it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from tiny import PROMPT, make_model

from infra.errors import BadInput
from infra.processes.torchrun import TrainerError, launch
from infra.store.model_files import ModelFiles
from infra.training.config import DpoConfig, SftConfig


def changed(folder: Path, file: str, told: dict[str, Any]) -> Path:
    """The folder, with fields of a JSON file changed."""
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | told))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "m")


SAMPLING = [
    {"temperature": 0.6, "top_p": 0.9},
    {"do_sample": False, "top_k": 20},
    {"temperature": 0.0},
    {"min_p": 0.1, "typical_p": 0.5, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1},
]
OTHER = [
    {"early_stopping": True, "length_penalty": 2.0},
    {"pad_token_id": -1},
    {"use_cache": False, "cache_implementation": "static"},
    {"output_scores": True, "output_logits": True},
]


@pytest.mark.parametrize("told", [*SAMPLING, *OTHER])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_settings_of_generation_without_effect_are_dropped_so_that_the_model_can_be_saved(
    model: Path, tmp_path: Path, told: dict[str, Any], file: str
) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    from infra.text.chat import load_tokenizer
    from infra.training.saving import make_savable, rehearse

    if file == "config.json":  # as old models have them
        (model / "generation_config.json").unlink()
    changed(model, file, told)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    before = loaded.generation_config.to_dict()
    if file == "generation_config.json":
        with pytest.raises(ValueError, match="invalid"):
            loaded.save_pretrained(tmp_path / "unsaved")
    dropped = make_savable(loaded.config, loaded.generation_config, load_tokenizer(model), "model m")
    assert dropped == rehearse(model, "model m", ModelFiles.in_folder(model).tensors(), trust_remote_code=False)
    assert {each.split("=")[0] for each in dropped} <= {*told}
    assert dropped or file == "config.json"
    loaded.save_pretrained(tmp_path / "saved")
    after = GenerationConfig.from_pretrained(tmp_path / "saved").to_dict()
    assert after["eos_token_id"] == before["eos_token_id"] == 2


def test_a_model_without_faults_is_tried_without_a_word(model: Path) -> None:
    """transformers warns of layers that are "not sharded", and of more, when a model is built without memory."""
    code = (
        "import sys; from pathlib import Path; from infra.store.model_files import ModelFiles\n"
        "from infra.training.saving import rehearse; folder = Path(sys.argv[1])\n"
        "rehearse(folder, 'm', ModelFiles.in_folder(folder).tensors(), trust_remote_code=False)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_settings_that_have_an_effect_stay(model: Path) -> None:
    from infra.training.saving import rehearse

    for told in ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"num_beams": 4, "length_penalty": 2.0}):
        changed(model, "generation_config.json", told)
        assert rehearse(model, "model m", ModelFiles.in_folder(model).tensors(), trust_remote_code=False) == []


@pytest.mark.parametrize(
    ("file", "told", "message"),
    [
        ("generation_config.json", {"num_return_sequences": 3}, r"contradict each other .*num_return_sequences"),
        ("generation_config.json", {"max_new_tokens": 0}, "in generation_config.json contradict each other"),
        ("generation_config.json", {"cache_implementation": "none"}, "contradict each other"),
        ("config.json", {"num_attention_heads": 3}, "cannot be loaded"),
        ("config.json", {"rope_parameters": {"rope_type": "yarn"}}, "cannot be loaded .*factor"),
        ("config.json", {"model_type": "unheard-of"}, "cannot be loaded"),
        ("config.json", {"output_attentions": True}, "its config.json can be loaded but not saved, .*eager"),
        ("config.json", {"hidden_act": "unheard-of"}, "describes no causal language model .*unheard-of"),
        ("config.json", {"model_type": "t5"}, "describes no causal language model"),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"are quantised \(gptq"),
        ("tokenizer.json", {"model": {}}, "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_model_that_could_not_be_saved_is_refused_before_it_is_trained(
    model: Path, file: str, told: dict[str, Any], message: str
) -> None:
    from infra.training.saving import rehearse

    with pytest.raises(BadInput, match=message):
        rehearse(changed(model, file, told), "model m", ModelFiles.in_folder(model).tensors(), trust_remote_code=False)


def test_a_part_that_cannot_be_saved_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    from infra.training.saving import rehearse

    def fails(*_: Any, **__: Any) -> None:
        raise TypeError("no vocabulary")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fails)
    with pytest.raises(BadInput, match=r"its tokenizer can be loaded but not saved, .*TypeError: no vocabulary"):
        rehearse(model, "model m", ModelFiles.in_folder(model).tensors(), trust_remote_code=False)


def tensors_of(folder: Path) -> dict[str, Any]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as held:
            found |= {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    return found


def test_a_tied_tensor_is_saved_once_and_loads_equal(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from infra.training.saving import tied

    for is_tied in (True, False):
        model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / f"{is_tied}", tie_word_embeddings=is_tied))
        copied = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # as DeepSpeed gives them
        model.save_pretrained(tmp_path / f"saved-{is_tied}", state_dict=tied(model, copied))
        assert ("lm_head.weight" in tensors_of(tmp_path / f"saved-{is_tied}")) is not is_tied
        again = AutoModelForCausalLM.from_pretrained(tmp_path / f"saved-{is_tied}").state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in copied.items())


def trained(model: Path, tmp_path: Path, **changes: Any) -> Path:
    """Two steps of training on two ranks."""
    rows = {"prompt": [PROMPT] * 4, "completion": ["w1 w2"] * 4, "chosen": ["w1 w2"] * 4, "rejected": ["w3"] * 4}
    tmp_path.mkdir(exist_ok=True)
    pq.write_table(pa.table(rows), tmp_path / "part-00000.parquet")
    settings = {"model": model, "data": (tmp_path / "part-00000.parquet",), "output": tmp_path / "out", "batch": 4}
    settings |= {"micro_batch": 2, "max_length": 64, "epochs": 2, "learning_rate": 1e-3} | changes
    kind = DpoConfig if "reference" in changes else SftConfig
    module = "infra.training.dpo" if "reference" in changes else "infra.training.sft"
    launch(module, kind(**settings), ranks=2, log_path=tmp_path / "train.log", timeout_s=300)
    return tmp_path / "out"


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.faults), pytest.param(2, marks=pytest.mark.faults), 3]
)
def test_a_trained_tied_model_holds_each_tensor_once(tmp_path: Path, stage: int) -> None:
    from transformers import AutoModelForCausalLM

    model = make_model(tmp_path / "m", tie_word_embeddings=True)
    changed(model, "generation_config.json", {"temperature": 0.6, "top_p": 0.9})
    out = trained(model, tmp_path, zero_stage=stage)
    assert tensors_of(out).keys() == tensors_of(model).keys()
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert "temperature=0.6, top_p=0.9" in (tmp_path / "train.log").read_text()
    assert "temperature" not in json.loads((out / "generation_config.json").read_text())
    assert not (out / "training_args.bin").exists()
    if stage == 2:
        again = trained(out, tmp_path / "dpo", reference=out)
        assert tensors_of(again).keys() == tensors_of(model).keys()


@pytest.mark.slow
def test_a_model_that_does_not_stop_at_its_end_token_is_not_trained(tmp_path: Path) -> None:
    model = changed(make_model(tmp_path / "m"), "tokenizer_config.json", {"eos_token": "<unk>"})
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("eos_token", "'<eos>'"))
    changed(model, "generation_config.json", {"eos_token_id": 3})
    with pytest.raises(TrainerError, match=r"with '<eos>' .* but nothing stops there"):
        trained(model, tmp_path)
