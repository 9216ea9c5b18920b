"""Tokenizers of the shape of public families: their added tokens, which of these are declared special, and how their
chat templates begin and end turns. The vocabulary below the added tokens is one token per byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (  # deletes the thoughts of earlier turns, and opens an empty pair of them in the last one
    "{% for message in messages %}{% set text = message['content'].split('</think>')[-1] %}{{ '<|im_start|>' + "
    "message['role'] + '\n' + ('<think>\n\n</think>\n\n' if message['role'] == 'assistant' else '') + text + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (  # as first published: it always opens an answer
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | "
    "trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
R1 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '<｜User｜>' + "
    "message['content'] }}{% else %}{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + "
    "'<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}"
    "{% endif %}"
)
PHI = (  # prints the tokenizer's end token after a whole conversation
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GLM = (  # prints nothing after an answer: a turn ends where the next one begins
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ALPACA = (
    "{% for message in messages %}{{ '### ' + message['role'] + ':\n' + message['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
GEMMA_HTML = tuple(
    """<table> <caption> <thead> <tbody> <tfoot> <tr> <th> <td> </table> </tr> </th> </td> <h1> <h2> <h6> </h1>
    <blockquote> <strong> <em> <b> </b> <i> </i> <u> </u> <s> </s> <sub> <sup> <code> </code>""".split()  # noqa: SIM905
)


class Family(NamedTuple):
    """A family's tokenizer, its end tokens, and the text that ends an assistant's turn in its template."""

    template: str
    special: Sequence[str]
    plain: Sequence[str]
    """Added tokens that are not declared special."""
    eos: str
    stops: Sequence[str]
    """The tokens that generation_config.json lists as end tokens."""
    end: str


FAMILIES = {
    "qwen2.5": Family(
        CHATML,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"],
        ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|repo_name|>"],
        "<|im_end|>",
        ["<|im_end|>", "<|endoftext|>"],
        "<|im_end|>",
    ),
    "qwen3": Family(
        QWEN3,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"],
        "<|im_end|>",
        ["<|im_end|>", "<|endoftext|>"],
        "<|im_end|>",
    ),
    "llama3": Family(
        LLAMA3,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        [],
        "<|end_of_text|>",  # as first published
        ["<|end_of_text|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "gemma": Family(
        GEMMA,
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        ["<mask>", "<2mass>", "[@BOS@]", "<unused42>", "\n\n", "▁▁▁", "[toxicity=0]", *GEMMA_HTML],
        "<eos>",
        ["<eos>", "<end_of_turn>"],
        "<end_of_turn>",
    ),
    "mistral": Family(
        MISTRAL,
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"],
        [],
        "</s>",
        ["</s>"],
        "</s>",
    ),
    "deepseek-r1": Family(
        R1,
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
        ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁calls▁begin｜>", "<|EOT|>"],
        "<｜end▁of▁sentence｜>",
        ["<｜end▁of▁sentence｜>"],
        "<｜end▁of▁sentence｜>",
    ),
    "phi3.5": Family(
        PHI,
        ["<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"],
        ["</s>"],
        "<|endoftext|>",
        ["<|endoftext|>", "<|assistant|>", "<|end|>"],
        "<|end|>",
    ),
    "glm4": Family(
        GLM,
        ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>"],
        [],
        "<|endoftext|>",
        ["<|endoftext|>", "<|user|>"],
        "<|endoftext|>",
    ),
    "alpaca": Family(ALPACA, ["<unk>", "<s>", "</s>"], [], "</s>", ["</s>"], "</s>"),
}


def make_tokenizer(family: Family, **changes: Any) -> PreTrainedTokenizerBase:
    """A family's tokenizer; `changes` replace fields of it."""
    family = family._replace(**changes)
    raw = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = ByteLevel()
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in family.special])
    raw.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.plain])
    bos = next((text for text in family.special if text in ("<s>", "<bos>") or "begin" in text), None)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=family.eos, bos_token=bos)
    made.chat_template = family.template
    return made


def make_folder(folder: Path, family: Family, *, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A model folder with a family's tokenizer and generation_config.json, and weights of one number each."""
    family = family._replace(**changes)
    tokenizer = make_tokenizer(family)
    tokenizer.save_pretrained(folder)
    stops = [tokenizer.convert_tokens_to_ids(text) for text in family.stops]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops[0] if len(stops) == 1 else stops}))
    told = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(told | (config or {})))
    write_tensors(folder / "model.safetensors", "model.embed_tokens.weight", "lm_head.weight")
    return folder


def write_tensors(path: Path, *names: str, shape: tuple[int, ...] = (1, 4)) -> None:
    """A safetensors file with tensors of these names."""
    save_file({name: np.zeros(shape, dtype=np.float32) for name in names}, path)
