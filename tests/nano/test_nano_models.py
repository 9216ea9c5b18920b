"""The two shipped models: they load, they match MADE.json, and they can do what the nano world needs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from reading import is_solution
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from cot_formats import bolt
from evals.short_answer import extract
from infra.settings import PROJECT_ROOT
from infra.store.models import PICKLES
from infra.text.chat import load_tokenizer, prompt_text
from nano.config import PretrainRecipe
from nano.corpus import EXAMPLE_TEMPLATE, PROMPT_TEMPLATE, garbled
from nano.families import FAMILIES
from nano.make import corpus_digest
from nano.pretrain import architecture
from nano.pretrain_reward import LAYERS
from nano.problem import Habits
from nano.vocabulary import ASSISTANT, CONTEXT, END, PAD, encoder, tokenizer
from nano.write_data import distinct
from tasks.examples.read import read_example
from tasks.rewards.score import reward_input_ids

MODELS = PROJECT_ROOT / "nano" / "models"
MOST_BYTES = 16_000_000
IDS = encoder()


def folder_of(name: str) -> Path:
    """A shipped model's folder. The test fails if it is missing, since the demo needs it."""
    folder = MODELS / name
    if not (folder / "model.safetensors").is_file():
        pytest.fail(
            f"{folder}/model.safetensors is not in the checkout; make both models with `python -m flows nano/make`"
        )
    return folder


@pytest.fixture(scope="module", params=["instruct", "reward"])
def folder(request: pytest.FixtureRequest) -> Path:
    return folder_of(request.param)


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def instruct(one_thread) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder_of("instruct"), dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def reward(one_thread) -> LlamaForSequenceClassification:
    folder = folder_of("reward")
    return LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def queries() -> list[str]:
    """The first twenty dev problems: all six families, all levels."""
    rows = [json.loads(line) for line in (PROJECT_ROOT / "nano/data/dev.jsonl").read_text().splitlines()[:20]]
    assert {row["topic"] for row in rows} == set(FAMILIES)
    return [row["messages"][0]["content"] for row in rows]


# ---- the files


def test_the_tokenizer_is_the_vocabularys(folder):
    shipped, own = load_tokenizer(folder), tokenizer()
    assert shipped.get_vocab() == IDS
    assert shipped.chat_template == own.chat_template
    assert shipped.special_tokens_map == own.special_tokens_map
    assert (shipped.pad_token_id, shipped.eos_token_id) == (IDS[PAD], IDS[END])
    text = "<|user|> which two of 1 , 2 add up to 3 ? <|end|>"
    assert shipped.encode(text, add_special_tokens=False) == [IDS[word] for word in text.split()]


def test_the_configuration_is_the_codes(folder):
    layers, kind = (4, "LlamaForCausalLM") if folder.name == "instruct" else (LAYERS, "LlamaForSequenceClassification")
    shipped, own = LlamaConfig.from_pretrained(folder), architecture(layers)
    assert shipped.architectures == [kind]
    shape = ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"]
    for name in [*shape, "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "rope_parameters"]:
        assert getattr(shipped, name) == getattr(own, name), name
    assert (shipped.pad_token_id, shipped.eos_token_id, shipped.bos_token_id) == (IDS[PAD], IDS[END], None)
    assert shipped.vocab_size == len(IDS)
    assert shipped.max_position_embeddings == CONTEXT
    if folder.name == "reward":
        assert shipped.num_labels == 1


def test_the_weights_are_whole_and_finite(folder):
    own = LlamaForCausalLM(architecture()) if folder.name == "instruct" else rewarding_shape()
    expected = {name: tuple(tensor.shape) for name, tensor in own.state_dict().items()}
    if folder.name == "instruct":
        expected.pop("lm_head.weight")  # tied to the embeddings
    with safe_open(folder / "model.safetensors", "pt") as weights:
        found = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == expected
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert all(torch.isfinite(tensor).all() for tensor in found.values())


def rewarding_shape() -> LlamaForSequenceClassification:
    shape = architecture(LAYERS)
    shape.num_labels = 1
    return LlamaForSequenceClassification(shape)


def test_nothing_is_pickled_and_all_is_small():
    assert {folder_of(name).name for name in ("instruct", "reward")} == {"instruct", "reward"}
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in PICKLES]
    assert not [path for path in files if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04")]
    assert not [path for path in files if path.is_symlink()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_made_says_how_each_leg_was_made(folder):
    made = folder / "MADE.json"
    assert made.is_file(), f"{made} is missing: it says how this model was made"
    legs = json.loads(made.read_text())["legs"]
    assert isinstance(legs, list)
    assert legs
    for leg in legs:
        recipe = PretrainRecipe.model_validate(leg["recipe"])
        assert leg["command"].split()
        assert leg["corpus"] == corpus_digest(recipe.seed), (
            "nano/ makes different documents from those that this model was trained on"
        )


# ---- the instruct model


def answers(model: LlamaForCausalLM, prompts: list[str], most: int) -> list[list[int]]:
    """Greedy answers as token ids, <|end|> included where it was reached."""
    reading = tokenizer()
    reading.padding_side = "left"
    texts = [prompt_text(reading, [{"role": "user", "content": prompt}]) for prompt in prompts]
    assert all(text.endswith(ASSISTANT) for text in texts)
    asked = reading(texts, add_special_tokens=False, return_tensors="pt", padding=True, return_token_type_ids=False)
    assert IDS["<|unk|>"] not in asked["input_ids"]
    with torch.inference_mode():
        made = model.generate(
            **asked, do_sample=False, max_new_tokens=most, pad_token_id=IDS[PAD], eos_token_id=IDS[END]
        )
    rows = made[:, asked["input_ids"].shape[1] :].tolist()
    return [row[: row.index(IDS[END]) + 1] if IDS[END] in row else row for row in rows]


def test_zero_shot_it_answers_shortly_and_never_thinks(instruct, queries):
    for query, ids in zip(queries, answers(instruct, queries, 40), strict=True):
        text = tokenizer().decode(ids)
        assert "<internal_thoughts>" not in text, query
        assert len(ids) <= 12, (query, text)
        assert ids[-1] == IDS[END], (query, text)
        assert extract(text.removesuffix(END)) is not None, (query, text)


def test_shown_three_examples_it_thinks_in_their_format(instruct, queries):
    files = sorted((PROJECT_ROOT / "nano/examples").glob("*.md"))
    rng = random.Random(0)
    prompts = []
    for query in queries:
        shown = [read_example(file) for file in rng.sample(files, 3)]
        rendered = [
            EXAMPLE_TEMPLATE.format(query=e["query"], response=bolt.render(e["thoughts"], e["solution"])) for e in shown
        ]
        prompts.append(PROMPT_TEMPLATE.format(examples="\n\n".join(rendered), query=query))
    made = [tokenizer().decode(ids).removesuffix(END).strip() for ids in answers(instruct, prompts, 320)]
    formed = [bolt.parse(text) for text in made]
    assert sum(each.ok for each in formed) >= 15, made
    assert sum(each.ok and extract(each.solution) is not None for each in formed) >= 15, made


# ---- the reward model


def labelled_dev(count: int) -> list[tuple[str, str, bool]]:
    """(query, solution, is it right?) of dev problems, which no model has read: right, misread and garbled ones."""
    rng = random.Random(0)
    found = []
    for problem in distinct(rng, "dev", count):
        family = FAMILIES[problem.family]
        right = family.derive(problem, rng, Habits(0.0, careful=False)).solution
        misread = family.derive(family.perturb(problem, rng), rng, Habits(0.0, careful=False)).solution
        assert is_solution(problem.query, right)
        found.append((problem.query, right, True))
        for wrong in dict.fromkeys((misread, garbled(rng, right))):
            if not is_solution(problem.query, wrong):
                found.append((problem.query, wrong, False))
    return found


def scores(model: LlamaForSequenceClassification, solutions: list[tuple[str, str, bool]]) -> list[float]:
    reading = tokenizer()
    ids = [reward_input_ids(reading, query, solution) for query, solution, _ in solutions]
    width = max(map(len, ids))
    padded = torch.tensor([each + [IDS[PAD]] * (width - len(each)) for each in ids])
    mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in ids])
    with torch.inference_mode():
        found: list[float] = model(input_ids=padded, attention_mask=mask).logits.squeeze(-1).tolist()
    return found


def test_right_solutions_score_above_misread_and_garbled_ones(reward):
    solutions = labelled_dev(60)
    assert len({query for query, _, _ in solutions}) == 60
    found = scores(reward, solutions)
    good = [score for score, (_, _, right) in zip(found, solutions, strict=True) if right]
    bad = [score for score, (_, _, right) in zip(found, solutions, strict=True) if not right]
    assert len(good) == 60
    assert len(bad) >= 80
    assert auc(good, bad) >= 0.8


def auc(good: list[float], bad: list[float]) -> float:
    """The share of pairs in which the good one scores above the bad one (a tie counts half)."""
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in good for b in bad]
    return sum(wins) / len(wins)


def test_auc_by_hand():
    known: list[tuple[Any, Any, float]] = [([2.0], [1.0], 1.0), ([1.0], [1.0], 0.5), ([3.0, 1.0], [2.0, 0.0], 0.75)]
    assert [auc(good, bad) for good, bad, _ in known] == [expected for _, _, expected in known]
