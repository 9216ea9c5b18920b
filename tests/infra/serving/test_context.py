"""How many tokens a model can read: counted as vLLM counts, and compared before a server starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infra.errors import BadInput
from infra.serving.context import check_length, context_length, has_own_length
from infra.serving.vllm_server import ServerOptions, VllmServer

BASE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 2}
ROPE = {"rope_theta": 10000.0}
LLAMA_3_1 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192} | {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
CONFIGS: list[tuple[dict[str, Any], int | None]] = [
    ({"max_position_embeddings": 8192}, 8192),
    ({"n_positions": 1024}, 1024),
    ({"max_position_embeddings": 8192, "n_positions": 2048}, 2048),
    ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),  # Command-R
    ({"max_position_embeddings": 32768, "sliding_window": 4096}, 32768),  # Mistral 7B v0.1
    ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
    ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0, **ROPE}}, 8192),
    ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "linear", "factor": 2.5, **ROPE}}, 10240),
    ({"max_position_embeddings": 131072, "rope_scaling": LLAMA_3_1}, 131072),
    ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 32768),
    ({"max_position_embeddings": 2048, "rope_scaling": None}, 2048),
    ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "default", **ROPE}}, 2048),
    (
        {
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, **ROPE},
                "sliding_attention": {"rope_type": "default", **ROPE},
            },
        },
        16384,
    ),
    (
        {
            "model_type": "gemma3_text",
            "max_position_embeddings": 131072,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        131072,
    ),
    ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 4096}}, 4096),
    ({"model_type": "llava", "max_position_embeddings": 9, "text_config": {"max_position_embeddings": 4096}}, 4096),
    ({"alibi": True}, None),  # MPT, Bloom and others need not say
    ({"max_position_embeddings": None}, None),
]


@pytest.mark.parametrize(("config", "length"), CONFIGS)
def test_the_context_is_read_from_config_json(config: dict[str, Any], length: int | None) -> None:
    found = context_length({**BASE, **config})
    assert (found and found[0]) == length


@pytest.mark.slow
def test_vllm_counts_the_same_context(tmp_path: Path) -> None:
    """vLLM's own function, on the plain configurations of the table above."""
    plain = [(config, length) for config, length in CONFIGS if length and "model_type" not in config]
    folders = []
    for number, (config, length) in enumerate(plain):
        if "n_positions" in config or "full_attention" in config.get("rope_parameters", {}):
            continue  # not known to Llama's configuration
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "config.json").write_text(json.dumps({**BASE, **config}))
        folders.append((str(tmp_path / f"{number}"), length))
    code = """
import json, sys
from vllm.config import ModelConfig
for folder, length in json.loads(sys.argv[1]):
    ModelConfig(model=folder, tokenizer=folder, max_model_len=length, skip_tokenizer_init=True)
    try:
        ModelConfig(model=folder, tokenizer=folder, max_model_len=length + 1, skip_tokenizer_init=True)
    except ValueError as error:
        assert "max_model_len" in str(error), error
    else:
        raise AssertionError(f"{folder}: {length + 1} was taken")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(folders)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@example(config={"max_position_embeddings": 8, "rope_scaling": {"rope_type": [], "factor": 2.0}})
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=4),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["rope_scaling", "rope_parameters", "factor", "rope_type", "type",
                                         "text_config", "max_position_embeddings", "n_positions", "model_max_length"]),
                        inner, max_size=4), max_leaves=12).filter(lambda made: isinstance(made, dict)))  # fmt: skip
def test_no_config_makes_it_fail(config: dict[str, Any]) -> None:
    found = context_length(config)
    assert found is None or isinstance(found[0], int)


def test_a_length_over_the_models_context_is_refused_with_the_setting_to_change() -> None:
    config = {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2}}
    check_length("model m", config, 8192, "serving.policy.max_model_len")
    with pytest.raises(BadInput) as caught:
        check_length("model m", config, 8193, "serving.policy.max_model_len")
    assert str(caught.value) == (
        "model m reads 8,192 tokens at most (config.json: max_position_embeddings 4,096, stretched by 2 (linear)), but "
        "serving.policy.max_model_len is 8,193: set serving.policy.max_model_len to 8192 or less, or take a model with "
        "a longer context"
    )


def test_a_server_is_not_started_at_a_length_that_its_model_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 1024}))
    server = VllmServer(tmp_path, ServerOptions(max_model_len=2048), tmp_path / "log", served_name="reward")
    with pytest.raises(BadInput, match=r"reads 1,024 tokens at most .*serving\.reward\.max_model_len is 2,048"):
        server.start()
    assert not (tmp_path / "log").exists()


def test_a_context_that_the_command_line_replaces_is_not_judged() -> None:
    assert has_own_length(("--hf-overrides", '{"rope_parameters": {}}'))
    assert has_own_length(("--hf-overrides.max_position_embeddings=9",))
    assert not has_own_length(("--max-num-batched-tokens", "9"))
