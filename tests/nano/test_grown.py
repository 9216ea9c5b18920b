"""What training starts from: which optimizer takes what, and the reward model grown from a language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from nano.config import PretrainConfig
from nano.pretrain import architecture, optimizers
from nano.pretrain_reward import LAYERS, grown

MATRICES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of the nano shape that has learned nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    LlamaForCausalLM(architecture()).save_pretrained(folder)
    return folder


def names(opt: torch.optim.Optimizer, model: torch.nn.Module) -> set[str]:
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in held}


def test_a_grown_model_begins_as_the_language_model_that_it_grew_from(start):
    """The new layers add nothing yet, and its embeddings read from it what the language model would say next."""
    language = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32).eval()
    model = grown(start)
    assert len(model.model.layers) == LAYERS > len(language.model.layers)
    ids = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        hidden = model.eval().model(input_ids=ids).last_hidden_state
        assert torch.allclose(hidden, language.model(input_ids=ids).last_hidden_state, atol=1e-5)
        said = torch.nn.functional.linear(hidden, model.model.embed_tokens.weight)
        assert torch.allclose(said, language(input_ids=ids).logits, atol=1e-4)
        assert model(input_ids=ids[:, 1:]).logits.shape == (2, 1)


def test_muon_takes_the_inner_matrices_and_adam_all_else(start):
    config = PretrainConfig(tokens=1, output=start)
    whole = torch.nn.ModuleDict({"model": grown(start), "score_local": torch.nn.Linear(192, 1)})
    for trained in (LlamaForCausalLM(architecture()), whole):
        muon, adam = (names(opt, trained) for opt in optimizers(trained, config))
        assert muon | adam == {name for name, _ in trained.named_parameters()}
        assert not muon & adam
        assert {name.split(".")[-2] for name in muon} == MATRICES
        assert not {name.split(".")[-2] for name in adam} & MATRICES
