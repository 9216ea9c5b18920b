"""Tiny random models in real folders: a two-layer Llama, its reward-model twin, a word-level chat tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<|user|>", "<|assistant|>"]
MARKERS = ["<think>", "</think>"]
WORDS = ["user", "assistant", *(f"w{i}" for i in range(86))]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} <|{{ m.role }}|> {{ m.content }}"
    "{% if m.role == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <|assistant|>{% endif %}"
)
PROMPT = "<bos> <|user|> w1 w2 w3 <|assistant|>"


def make_tokenizer(template: str = TEMPLATE, extra: list[str] | None = None) -> PreTrainedTokenizerBase:
    """Word level, split at blanks; `extra` are further special tokens."""
    vocabulary = [*SPECIAL, *MARKERS, *WORDS]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=SPECIAL[3]))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        unk_token=SPECIAL[3],
        extra_special_tokens=["<|user|>", "<|assistant|>", *(extra or [])],
    )
    tokenizer.add_tokens(MARKERS)
    tokenizer.chat_template = template
    return tokenizer


def make_model(folder: Path, *, reward: bool = False, seed: int = 0, **changes: Any) -> Path:
    """A folder that transformers and vLLM load: hidden 64, two layers, 96 words; `changes` of its configuration."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(MARKERS) + len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=1,
        **changes,
    )
    model = LlamaForSequenceClassification(config) if reward else LlamaForCausalLM(config)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def changed(folder: Path, file: str = "config.json", /, **changes: Any) -> Path:
    """The folder, with fields of a JSON file changed; None deletes a field."""
    told = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({name: value for name, value in told.items() if value is not None}))
    return folder


def harmed(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """The folder, with other tensors."""
    held = change(load_file(folder / "model.safetensors"))
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder
