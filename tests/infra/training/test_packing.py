"""The rows of a step in micro-batches, and packed rows whose logits and gradients are those of single rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.training.batches import Batches, Sampler, divided, pack_count
from infra.training.switches import PACKABLE

LAYOUTS = ["packed", "grouped", "equal", "random"]
SIZES = st.lists(st.integers(1, 900), min_size=1, max_size=60)


def lognormal(rows: int, seed: int = 0) -> Any:
    return np.clip(np.random.default_rng(seed).lognormal(7, 1, rows), 200, 8000).astype(np.int64)


@given(sizes=SIZES, parts=st.integers(1, 8), layout=st.sampled_from(LAYOUTS))
def test_no_row_is_lost_no_part_is_empty_and_none_is_larger_than_its_fair_share_of_the_longest(sizes, parts, layout):
    lengths = np.array(sizes)
    parts = min(parts, len(sizes))
    found = divided(lengths, parts, layout)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(sizes)))
    assert len(found) == parts
    assert all(len(part) for part in found)
    largest = max(sizes) * math.ceil(len(sizes) / parts)
    computed = [lengths[part].sum() if layout == "packed" else lengths[part].max() * len(part) for part in found]
    assert max(computed) <= largest
    if layout != "random":
        assert computed[0] >= computed[-1] or layout == "equal"


@given(
    sizes=SIZES,
    ranks=st.integers(1, 4),
    rounds=st.integers(1, 3),
    each=st.integers(1, 3),
    layout=st.sampled_from(LAYOUTS),
)
def test_every_epoch_has_every_row_and_every_rank_as_many_micro_batches(sizes, ranks, rounds, each, layout):
    batches = Batches(np.array(sizes), ranks * rounds * each, ranks * rounds, ranks, layout, seed=3)
    for epoch in (0, 1):
        steps = list(batches.epoch(epoch))
        assert len(steps) == batches.steps
        assert sum(len(step) for step in steps) == len(batches)
        assert all(len(step) == ranks * rounds for step in steps[:-1])
        assert len(steps[-1]) % ranks == 0
        seen = np.concatenate([part for step in steps for part in step]).tolist()
        assert set(seen) == set(range(len(sizes)))
        assert len(seen) - len(sizes) == batches.repeated < ranks
        assert all(sum(len(part) for part in step) == batches.batch for step in steps[:-1])


def test_a_step_has_the_same_rows_in_every_layout() -> None:
    made = [Batches(lognormal(300), 32, 4, 2, layout, seed=1) for layout in LAYOUTS]
    for steps in zip(*(each.epoch(2) for each in made), strict=True):
        rows = [sorted(np.concatenate(step).tolist()) for step in steps]
        assert rows.count(rows[0]) == 4
    assert next(made[0].epoch(0))[0].tolist() != next(made[0].epoch(1))[0].tolist()


def test_a_resumed_epoch_continues_with_the_same_rows() -> None:
    batches = Batches(lognormal(40), 8, 2, 2, "packed", seed=0)
    first = list(Sampler(batches, lambda: 5))  # the second epoch's first step
    assert first == list(Sampler(batches, lambda: 8)) != list(Sampler(batches, lambda: 0))
    assert len(Sampler(batches, lambda: 0)) == len(first) == 10


@pytest.mark.parametrize("skipped", [0, 3])
def test_ranks_take_turns_and_a_resumed_one_skips_what_was_done(skipped: int) -> None:
    from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler

    batches = Batches(lognormal(21), 8, 4, 2, "packed", seed=0)
    whole = list(Sampler(batches, lambda: 0))
    for rank in (0, 1):
        shard = BatchSamplerShard(Sampler(batches, lambda: 0), num_processes=2, process_index=rank)  # type: ignore[arg-type]
        own = list(SkipBatchSampler(shard, skip_batches=skipped))
        assert own == whole[rank::2][skipped:]
        assert len(shard) == len(whole) / 2


def test_grouping_saves_most_of_the_padding() -> None:
    lengths = lognormal(512)
    computed = {layout: Batches(lengths, 64, 8, 1, layout, seed=0).computed() for layout in LAYOUTS}
    assert computed["packed"] == lengths.sum()
    assert computed["grouped"] < 1.25 * lengths.sum()
    assert computed["grouped"] <= computed["equal"] < computed["random"]
    assert computed["random"] > 2 * lengths.sum()


def test_packs_are_as_few_as_the_room_allows() -> None:
    lengths = lognormal(500)
    count = pack_count(lengths, 128, 4, 16_384, epochs=2, seed=0)
    steps = [step for number in (0, 1) for step in Batches(lengths, 128, count, 4, "packed", 0).epoch(number)]
    assert max(lengths[part].sum() for step in steps for part in step) <= 16_384
    assert count % 4 == 0
    assert count < 32
    assert pack_count(np.full(9, 100), 8, 4, 100, epochs=1, seed=0) == 8  # each row by itself, in the last step too
    assert pack_count(np.array([5]), 8, 4, 100, epochs=1, seed=0) == 4
    with pytest.raises(ValueError, match="8000 tokens does not fit"):
        pack_count(np.array([10, 8000]), 8, 4, 4096, epochs=1, seed=0)


def tiny(family: str) -> Any:
    """A random model of a family, with a window of 8 tokens where it has windows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from infra.training import packed_attention

    packed_attention.register()
    config = AutoConfig.for_model(
        family,
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        sliding_window=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attention_dropout=0.0,
        residual_dropout=0.0,
        embedding_dropout=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        **({"use_sliding_window": True, "max_window_layers": 2} if family.startswith("qwen") else {}),
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=packed_attention.NAME)


ROWS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21], [22, 23, 24, 25]]


@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_packed_rows_have_the_loss_and_gradients_of_single_rows(family: str) -> None:
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = tiny(family)
    model.train()
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([{"input_ids": row} for row in ROWS])
    batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[0]
    model.set_attn_implementation("eager")  # an independent way, a row at a time
    alone = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in ROWS]
    assert torch.allclose(logits, torch.cat(alone), atol=1e-5)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    parameters = [each for each in model.parameters() if each.requires_grad]
    ours = torch.autograd.grad((logits * weights).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((torch.cat(alone) * weights).sum(), parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-4)


def test_a_batch_without_boundaries_is_computed_as_by_torch() -> None:
    import torch

    model = tiny("llama").eval()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = (ids != 0).long()
    ours = [
        model(input_ids=ids, attention_mask=mask).logits,
        model.generate(ids[:1], max_new_tokens=4, do_sample=False),
    ]
    model.set_attn_implementation("sdpa")
    theirs = [
        model(input_ids=ids, attention_mask=mask).logits,
        model.generate(ids[:1], max_new_tokens=4, do_sample=False),
    ]
    assert torch.allclose(ours[0][mask.bool()], theirs[0][mask.bool()], atol=1e-6)
    assert torch.equal(ours[1], theirs[1])


def test_dropout_in_packed_rows_is_refused() -> None:
    import torch

    from infra.training.packed_attention import attention

    part = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ValueError, match="set packing to false"):
        attention(torch.nn.Identity(), part, part, part, None, dropout=0.1, cu_seq_lens_q=torch.tensor([0, 2]))
