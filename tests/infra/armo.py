"""A small random model of ArmoRM's architecture, its tensors named as in the published checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

CONTROL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
WORDS = ["\n\n", "user", "assistant", "<unk>", *(f"w{n}" for n in range(56))]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
OBJECTIVES, HIDDEN, GATING = 19, 32, 24


def llama3_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate([*CONTROL, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[3]))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|\S+"), behavior="removed", invert=True)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=CONTROL[0],
        eos_token=CONTROL[3],
        unk_token=WORDS[3],
        extra_special_tokens=CONTROL[1:3],
    )
    made.chat_template = template
    return made


def make_armorm(folder: Path, *, shards: int = 1, template: str = TEMPLATE, seed: int = 0) -> Path:
    """The folder of such a model: two layers of 32, 19 objectives, four gating layers."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(CONTROL) + len(WORDS),
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=3,
        gating_temperature=10,
        architectures=["LlamaForRewardModelWithGating"],
        auto_map={"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
    )
    tensors = {f"model.{name}": tensor for name, tensor in LlamaModel(config).state_dict().items()}
    tensors["regression_layer.weight"] = torch.randn(OBJECTIVES, HIDDEN)
    tensors["reward_transform_matrix"] = torch.eye(OBJECTIVES) - 0.1 * torch.rand(OBJECTIVES, OBJECTIVES)
    tensors["gating.logit_scale"] = torch.tensor([0.8])
    for number, (wide, narrow) in enumerate(
        [(HIDDEN, GATING), (GATING, GATING), (GATING, GATING), (GATING, OBJECTIVES)]
    ):
        tensors[f"gating.layers.{number}.weight"] = 0.4 * torch.randn(narrow, wide)
        tensors[f"gating.layers.{number}.bias"] = torch.randn(narrow)
    folder.mkdir(parents=True)
    names = list(tensors)
    files = {f"model-{n + 1:05}-of-{shards:05}.safetensors": names[n::shards] for n in range(shards)}
    if shards == 1:
        files = {"model.safetensors": names}
    else:
        weight_map = {name: file for file, held in files.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file, held in files.items():
        save_file({name: tensors[name].contiguous() for name in held}, folder / file, metadata={"format": "pt"})
    config.save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text()) | {"architectures": ["LlamaForRewardModelWithGating"]}
    (folder / "config.json").write_text(json.dumps(told))
    llama3_tokenizer(template).save_pretrained(folder)
    return folder


def reference_reward(folder: Path, ids: list[int], gate: int) -> float:
    """The reward of one unpadded sequence: the backbone from transformers, the rest in NumPy."""
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    backbone = LlamaModel(LlamaConfig.from_pretrained(folder)).eval()
    held = {
        name.removeprefix("model."): torch.from_numpy(t) for name, t in tensors.items() if name.startswith("model.")
    }
    backbone.load_state_dict(held)
    with torch.no_grad():
        hidden = backbone(torch.tensor([ids])).last_hidden_state[0].numpy().astype(np.float64)
    objectives = tensors["regression_layer.weight"] @ hidden[-1]
    adjusted = objectives @ tensors["reward_transform_matrix"]
    x = hidden[gate]
    for layer in range(4):
        x = tensors[f"gating.layers.{layer}.weight"] @ x + tensors[f"gating.layers.{layer}.bias"]
        x = np.maximum(x, 0) if layer < 3 else x
    weights = np.exp(x / 10 - (x / 10).max())
    weights = weights / weights.sum() * tensors["gating.logit_scale"][0]
    return float((weights * adjusted).sum())
