"""ArmoRM's scorer against an independent computation in NumPy, on small random models of this architecture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from armo import CONTROL, TEMPLATE, llama3_tokenizer, make_armorm, reference_reward
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_model

from infra.processes.torchrun import TrainerError
from infra.serving import armorm
from infra.serving.armorm_process import ArmoRM, batches, score_part
from infra.store.model_files import ModelFiles

CHATS = [("w1 w2 w3", "w4"), ("w5", "w6 w7 w8 w9 w10 w11"), ("w1 w2 w3", "w12 w13"), ("w1 " * 40, "w2 " * 30)]


def chat_ids(query: str, solution: str) -> list[int]:
    tokenizer = llama3_tokenizer()
    messages = [{"role": "user", "content": query}, {"role": "assistant", "content": solution}]
    return tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]


def placed(chats: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    tokenizer = llama3_tokenizer()
    return [(ids, armorm.gate_position(tokenizer, ids)) for ids in (chat_ids(*chat) for chat in chats)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_armorm(tmp_path_factory.mktemp("armo") / "model")


@pytest.mark.parametrize("shards", [1, 2])
def test_rewards_equal_those_computed_in_numpy(tmp_path, shards):
    model = make_armorm(tmp_path / "model", shards=shards, seed=shards)
    sequences = placed(CHATS)
    rewards = ArmoRM(model, torch.float32, torch.device("cpu")).rewards(sequences)  # one padded batch
    expected = [reference_reward(model, *sequence) for sequence in sequences]
    assert rewards == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.ptp(expected) > 0.1  # they differ


def test_the_gate_weighs_by_the_prompt_alone(folder):
    """The answer does not change the weights; the prompt and the gate's position do."""
    model = ArmoRM(folder, torch.float32, torch.device("cpu"))

    def weights(query: str, solution: str, shift: int = 0) -> np.ndarray:
        (ids, gate), *_ = placed([(query, solution)])
        with torch.no_grad():
            hidden = model.backbone(torch.tensor([ids])).last_hidden_state
        return model.weights(hidden[:, gate + shift]).detach().numpy()[0]

    same = weights("w1 w2", "w3")
    assert weights("w1 w2", "w9 w8 w7") == pytest.approx(same, rel=1e-5)
    assert weights("w1 w4", "w3") != pytest.approx(same, rel=1e-3)
    assert weights("w1 w2", "w3", shift=1) != pytest.approx(same, rel=1e-3)
    assert same.sum() == pytest.approx(0.8)  # softmax times logit_scale


def test_the_gate_reads_the_end_of_the_last_prompt():
    ids = chat_ids("w1 w2", "w3 w4")
    names = llama3_tokenizer().convert_ids_to_tokens(ids)
    at = armorm.gate_position(llama3_tokenizer(), ids)
    assert names[at : at + 5] == ["<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"]
    assert names[at - 2 : at] == ["w1", "w2"]
    twice = [*ids, *chat_ids("w5", "w6")[1:]]
    assert armorm.gate_position(llama3_tokenizer(), twice) > len(ids)


def test_another_chat_template_is_refused():
    tokenizer = llama3_tokenizer(TEMPLATE.replace("<|eot_id|>", "<|end_header_id|>"))
    messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
    with pytest.raises(ValueError, match="expected Llama 3's chat template"):
        armorm.gate_position(tokenizer, ids)


def test_bfloat16_is_close(folder):
    exact, short = (
        ArmoRM(folder, kind, torch.device("cpu")).rewards(placed(CHATS)) for kind in (torch.float32, torch.bfloat16)
    )
    assert short == pytest.approx(exact, abs=0.1 * np.ptp(exact))


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_batches_hold_every_sequence_once_and_no_more_tokens_than_allowed(lengths, most):
    sequences = [([0] * length, 0) for length in lengths]
    made = list(batches(sequences, most))
    assert sorted(at for batch in made for at in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[at] for at in batch) <= most for batch in made)


def test_batching_changes_no_reward_and_no_order(folder, tmp_path):
    sequences = placed([(f"w{n} w{n + 1}", "w3 " * (1 + n % 7)) for n in range(20)])
    armorm.write_part(tmp_path, 0, sequences)
    model = ArmoRM(folder, torch.float32, torch.device("cpu"))
    score_part(model, tmp_path, 0, batch_tokens=64)
    found = np.load(armorm.rewards_path(tmp_path, 0), allow_pickle=False)
    alone = [model.rewards([sequence])[0] for sequence in sequences]
    assert found == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_the_architecture_is_read_from_config_json(folder, tmp_path):
    assert armorm.is_armorm(ModelFiles.in_folder(folder).read("config.json"))
    other = make_model(tmp_path / "classifier", reward=True)
    assert not armorm.is_armorm(ModelFiles.in_folder(other).read("config.json"))


@pytest.mark.parametrize("gone", ["gating.logit_scale", "model.layers.1.mlp.up_proj.weight", "regression_layer.weight"])
def test_missing_weights_are_an_error_not_random(tmp_path, gone):
    from safetensors.torch import load_file, save_file

    model = make_armorm(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    del tensors[gone]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"the weights lack {gone.removeprefix('model.')}"):
        ArmoRM(model, torch.float32, torch.device("cpu"))


def test_a_part_written_again_keeps_rewards_of_the_same_sequences_only(tmp_path):
    armorm.write_part(tmp_path, 0, placed(CHATS))
    armorm.rewards_path(tmp_path, 0).write_bytes(b"done")
    armorm.write_part(tmp_path, 0, placed(CHATS))
    assert armorm.rewards_path(tmp_path, 0).exists()
    armorm.write_part(tmp_path, 0, placed(CHATS[:2]))
    assert not armorm.rewards_path(tmp_path, 0).exists()


@pytest.mark.slow
def test_the_process_scores_the_missing_parts_and_its_failure_is_an_error(folder, tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(3):
        armorm.write_part(parts, number, placed(CHATS[number:]))
    held = np.array([7.0, 8.0, 9.0])
    np.save(armorm.rewards_path(parts, 1), held)  # from a scoring process that was killed
    config = armorm.ArmoConfig(model=folder, parts=parts, dtype="float32", batch_tokens=64)
    armorm.score_parts(config, ranks=2)
    for number in (0, 2):
        expected = [reference_reward(folder, *sequence) for sequence in placed(CHATS[number:])]
        assert np.load(armorm.rewards_path(parts, number)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.load(armorm.rewards_path(parts, 1)).tolist() == held.tolist()

    (parts / "rewards-00002.npy").unlink()
    config_json = json.loads((folder / "config.json").read_text())
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps(config_json))
    with pytest.raises(TrainerError, match=r"infra.serving.armorm_process on 1 ranks ended with status"):
        armorm.score_parts(config.model_copy(update={"model": broken}), ranks=1)


def test_control_tokens_are_single_ids():
    assert [llama3_tokenizer().encode(token, add_special_tokens=False) for token in CONTROL] == [[0], [1], [2], [3]]
