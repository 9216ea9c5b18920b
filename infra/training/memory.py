"""Will a training fit: an estimate of the memory that each rank needs at the fullest moment of an optimiser step.

What is held was read from the code that holds it: DeepSpeed 0.19 (`runtime/zero/stage_1_and_2.py`, `zero/stage3.py`,
`fp16/unfused_optimizer.py`), TRL 1.16 (`kernels/chunked_logprob.py`), torch's AdamW and transformers' Llama. States are
shared as ZeRO does (Rajbhandari et al. 2020, arXiv 1910.02054, section 3). Activations are counted tensor by tensor as
Korthikanti et al. 2022 do (arXiv 2205.05198, section 4.1), here for Llama's layer and an attention that keeps no matrix
of scores. `bench/memory.py` compares the estimate with measured peaks.

No torch is needed here, so flows can import this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from infra.store.model_files import CONFIG, ModelFiles, language_part
from infra.training.config import DpoRecipe, Recipe, RlRecipe, SftRecipe

GIB = 2**30
FAMILIES = {"llama": False, "mistral": False, "qwen2": False, "qwen3": False, "granite": False, "smollm3": True}
"""The families that are known, by `model_type`, and whether their embeddings are tied if config.json does not say."""
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")

_FP32 = 4  # bytes
_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in elements
_LIVE = 1_000_000_000  # its stage3_max_live_parameters and stage3_max_reuse_distance, and its sub_group_size
_TILE_ROWS, _TILE_COLUMNS = 4096, 32768  # of the logits that TRL's chunked head holds at once
_CPU_BLOCK = 1 << 26  # logits in a block of `infra.training.cpu_head`
_TILE_ON_CPU = 29  # bytes per logit: seven float32 tensors and a mask, in the head's backward pass without Triton
_KEPT_ON_CPU = 0.1
"""What the C library keeps of freed tensors, as a share of all tensors: by this much the peaks of bench/memory.py are
larger than what the code holds. With a lower `MALLOC_MMAP_THRESHOLD_` it keeps less."""
_PROCESS_ON_GPU = 1.5 * GIB  # CUDA's context, cuBLAS's and NCCL's buffers: not measured here, 1 to 2 GiB are usual
_PROCESS_ON_CPU = 0.7 * GIB  # what the trainer of a model of next to nothing takes: bench/memory.py prints it


class Sizes(BaseModel, frozen=True):
    """What the estimate needs to know of a model. Of a model that is not known, only its parameters are counted."""

    family: str = Field(description="`model_type` in config.json")
    known: bool = Field(True, description="Whether its activations can be estimated")
    parameters: int = Field(description="Number of parameters; tied embeddings count once")
    hidden: int = Field(0, description="Width of the residual stream")
    inner: int = Field(0, description="Width inside the MLP")
    layers: int = 0
    heads: int = Field(0, description="Query heads")
    kv_heads: int = Field(0, description="Heads of keys and of values")
    head_dim: int = 0
    vocabulary: int = 0
    normed_heads: bool = Field(False, description="Whether queries and keys are normalised per head (Qwen3)")
    window: int | None = Field(
        None, description="How many tokens a token sees at most, if fewer than all (Mistral v0.1)"
    )


class Memory(NamedTuple):
    """Bytes that a rank holds at the fullest moment of an optimiser step, by what they are for."""

    moment: str
    weights: float
    optimiser: float
    gradients: float
    activations: float
    logits: float
    buffers: float
    process: float
    allocator: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(self[1:]))

    def said(self) -> str:
        """The parts that are not nothing, in GiB."""
        parts = zip(self._fields[1:], self[1:], strict=True)
        return ", ".join(f"{name} {gib(size)}" for name, size in parts if size >= 0.005 * GIB)


def gib(size: float) -> str:
    """Bytes as GiB, for messages."""
    return f"{size / GIB:.1f}" if size >= 0.95 * GIB else f"{size / GIB:.2f}"


def sizes_of(files: ModelFiles) -> Sizes:
    """The sizes of the model in `files`.

    Parameters of a family that is not known, or whose config.json lacks a size, or that also reads images, are counted
    in the headers of its safetensors files.

    Raises:
        infra.store.models.ModelError: a file is broken.
    """
    config = files.read(CONFIG)
    part = language_part(config)
    known = llama_sizes(part)
    if known and part is config:
        return known
    counted = sum(math.prod(shape) for shape in files.tensors().values())
    if known:  # a model that reads images as well
        return known.model_copy(update={"parameters": counted})
    return Sizes(family=str(part.get("model_type", "unknown")), known=False, parameters=counted)


def llama_sizes(config: Mapping[str, Any]) -> Sizes | None:
    """The sizes of a model of Llama's build, from its config.json; None if it is of another, or a size is missing.

    Parameters: embeddings (and the head, if not tied) `V h`; per layer `h n d` for queries and for the output, `h k d`
    for keys and for values, `3 h i` for the MLP, two norms of `h`, and biases where the family has them; a last norm.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES or any(not isinstance(config.get(name), int) for name in _SIZES):
        return None
    hidden, inner, layers, heads, vocabulary = (int(config[name]) for name in _SIZES)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    dim = int(config.get("head_dim") or hidden // heads)
    tied = config.get("tie_word_embeddings", FAMILIES[family])
    query, key = heads * dim, kv_heads * dim
    biased_output = bool(config.get("attention_bias")) and family != "qwen2"
    biases = (query + 2 * key if family == "qwen2" or biased_output else 0) + (hidden if biased_output else 0)
    biases += 2 * inner + hidden if config.get("mlp_bias") else 0
    norms = 2 * hidden + (2 * dim if family == "qwen3" else 0)
    layer = 2 * hidden * query + 2 * hidden * key + 3 * hidden * inner + norms + biases
    return Sizes(
        family=family,
        parameters=vocabulary * hidden * (1 if tied else 2) + layers * layer + hidden,
        hidden=hidden,
        inner=inner,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=dim,
        vocabulary=vocabulary,
        normed_heads=family == "qwen3",
        window=config.get("sliding_window") if family == "mistral" else None,
    )


def estimate(
    sizes: Sizes,
    recipe: Recipe,
    ranks: int,
    *,
    on_gpu: bool,
    process: bool = True,
) -> Memory:
    """What a rank needs while the model is trained, every row being as long as `max_length`.

    Args:
        recipe: its switches settled (`infra.training.switches.settled`). A DPO row is two sequences, chosen and
            rejected. The reference policy has left memory before the training begins, but for a policy gradient that
            samples while it trains; that also needs a cache of keys and values for all samples of a step.
        ranks: all ranks, over which ZeRO shards.
        on_gpu: buffers that a GPU allocates in full take only what is touched of them in a computer's memory.
        process: whether to count what a process takes before it trains.
    """
    width = 2 if recipe.bf16 else _FP32
    states = {
        "weights": width * sizes.parameters / (ranks if recipe.zero_stage == 3 else 1),
        "optimiser": _optimiser_bytes(sizes, recipe, ranks),
        "process": (_PROCESS_ON_GPU if on_gpu else _PROCESS_ON_CPU) if process else 0.0,
    }
    sampling = recipe if isinstance(recipe, RlRecipe) and recipe.on_policy else None
    if sampling and sampling.beta:
        states["weights"] *= 2  # the reference policy stays
    rows, length = recipe.micro_batch * (2 if isinstance(recipe, DpoRecipe) else 1), recipe.max_length
    packed, liger = isinstance(recipe, SftRecipe) and bool(recipe.packing), bool(recipe.liger)
    masked = not packed and (rows > 1 or (sizes.window or length) < length)
    tokens, layer = rows * length, layer_bytes(sizes, width, rows, length, masked=masked, liger=liger)
    inputs = float(width * sizes.hidden * tokens)  # of a layer
    per_layer, recomputed = (inputs, layer) if recipe.gradient_checkpointing else (layer, 0.0)
    last_norm = (_FP32 + 2 * width) * sizes.hidden * tokens
    kept = sizes.layers * per_layer + last_norm + masked * rows * length**2  # one mask of booleans for all layers
    flowing = 2 * width * (sizes.hidden + sizes.inner) * tokens  # gradients of a layer's activations
    head = head_bytes(sizes, width, tokens, on_gpu, recipe.zero_stage) if sizes.known else 0.0
    moments = [
        *_backward_moments(sizes, recipe, ranks, on_gpu, states, kept, recomputed + flowing, head),
        _step_moment(sizes, recipe, ranks, on_gpu, states),
    ]
    if sampling:
        cache = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * width * length * recipe.batch / ranks
        gathered = width * sizes.parameters if recipe.zero_stage == 3 and ranks > 1 else 0.0  # TRL gathers the policy
        held = {"gradients": 0.0, "activations": cache, "logits": 0.0, "buffers": gathered}
        moments.append(Memory(moment="sampling", **states, **held))
    fullest = max(moments, key=lambda each: each.total)
    return fullest if on_gpu else fullest._replace(allocator=_KEPT_ON_CPU * (fullest.total - states["process"]))


def _has_masters(recipe: Recipe) -> bool:
    """Whether DeepSpeed keeps float32 weights beside the model's: not of a float32 model without ZeRO."""
    return bool(recipe.bf16) or recipe.zero_stage > 0


def _optimiser_bytes(sizes: Sizes, recipe: Recipe, ranks: int) -> float:
    """The float32 weights that are updated, and AdamW's two moments."""
    states = 3 if _has_masters(recipe) else 2
    return states * _FP32 * sizes.parameters / (ranks if recipe.zero_stage else 1)


def _backward_moments(
    sizes: Sizes,
    recipe: Recipe,
    ranks: int,
    on_gpu: bool,
    states: Mapping[str, float],
    kept: float,
    working: float,
    head: float,
) -> Iterator[Memory]:
    """The fullest moments of a backward pass: with all activations and the least gradients, and with the most of these.

    Args:
        states: parts that are always there.
        kept: bytes of activations that a forward pass leaves.
        working: bytes that the backward pass of one layer needs beside them.
        head: bytes that the loss needs, before any layer's backward pass.
    """
    stage, width, count = recipe.zero_stage, 2 if recipe.bf16 else _FP32, sizes.parameters
    partition = width * count / (ranks if stage else 1)
    accumulates = recipe.batch > recipe.micro_batch * ranks
    before = partition if stage == 3 or accumulates else 0.0  # gradients of earlier micro-batches
    gathered = width * min(count, _LIVE) if stage == 3 and ranks > 1 else 0.0
    buckets = _bucket_bytes(recipe, count, on_gpu)
    embedding = width * sizes.vocabulary * sizes.hidden

    def moment(name: str, gradients: float, activations: float, logits: float, buffers: float) -> Memory:
        held = {"gradients": gradients, "activations": activations, "logits": logits, "buffers": gathered + buffers}
        return Memory(moment=name, **states, **held)

    yield moment("the loss", before, kept, head, 0.0)
    first = buckets if stage and on_gpu else embedding  # a GPU allocates whole buckets at the first gradient
    yield moment("the last layer's backward pass", before, kept + working, 0.0, first)
    gradients = before + partition if stage == 2 else partition
    flattened = width * min(count, _BUCKET) if stage == 0 else buckets  # for the exchange
    yield moment("the exchange of gradients", gradients, 0.0, 0.0, flattened + embedding)


def _bucket_bytes(recipe: Recipe, count: int, on_gpu: bool) -> float:
    """Two buffers for the exchange of gradients: ZeRO-2 fills them in turn, ZeRO-3 copies from one to scatter it."""
    if not recipe.zero_stage:
        return 0.0
    width = 2 if recipe.bf16 else _FP32
    touched = min(count, 2 * _BUCKET) if recipe.zero_stage == 2 else 2 * min(count, _BUCKET)
    return float(width * (2 * _BUCKET if on_gpu else touched))


def _step_moment(sizes: Sizes, recipe: Recipe, ranks: int, on_gpu: bool, states: Mapping[str, float]) -> Memory:
    """The optimiser's step: gradients in float32, and what AdamW computes from its moments."""
    stage, width, count = recipe.zero_stage, 2 if recipe.bf16 else _FP32, sizes.parameters
    share = count / (ranks if stage else 1)
    updated = min(share, _LIVE) if stage == 3 else share  # at once: ZeRO-3 goes by groups
    largest = max(sizes.vocabulary * sizes.hidden, sizes.hidden * sizes.inner)
    # torch's AdamW takes the roots of all second moments at once on a GPU, else of one tensor, which a shard is
    roots = _FP32 * updated if on_gpu else 2 * _FP32 * (updated if stage else largest)
    low, full = width * share, _FP32 * updated if _has_masters(recipe) else 0.0
    if stage == 3:
        gradients, buffers = low + full, roots + (_bucket_bytes(recipe, count, on_gpu) / 2 if on_gpu else 0.0)
    elif stage == 2:
        gradients, buffers = full, max(roots, 2 * low)  # the low ones, and a flat copy, go before the roots come
    else:
        gradients, buffers = low + full, roots
    held = {"gradients": gradients, "activations": 0.0, "logits": 0.0, "buffers": buffers}
    return Memory(moment="the optimiser's step", **states, **held)


def layer_bytes(
    sizes: Sizes, width: int, rows: int, length: int, *, masked: bool = False, liger: bool = False
) -> float:
    """What autograd keeps of one layer of Llama's build, for `rows` rows of `length` tokens.

    Per token: two norms keep their input in float32 and what they normalised; the linear layers keep their inputs (the
    MLP's first, the attention's first, and its output); the attention keeps queries, keys, values and its sums; the MLP
    keeps its gate, the activated gate, its up-projection and their product.

    Args:
        width: bytes of a number: 2 with bfloat16.
        masked: whether there is a mask, because rows are padded or see only a window. Then the mask is kept too, and
            keys and values repeated for each query head (transformers' `sdpa_attention_forward`).
        liger: with liger-kernel, norms keep their input as it is (`ops/rms_norm.py`), and MLPs compute the activated
            gate again (`ops/swiglu.py`).
    """
    hidden, query, key = sizes.hidden, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    norm = width if liger else _FP32 + width  # bytes of a number that is normalised
    norms = 2 * (norm * hidden + _FP32)
    if sizes.normed_heads:
        norms += norm * (query + key) + _FP32 * (sizes.heads + sizes.kv_heads)
    attention = width * (query + 2 * (query if masked else key)) + _FP32 * sizes.heads
    linear = width * (2 * hidden + query) + (3 if liger else 4) * width * sizes.inner
    mask = width * rows * length**2 if masked else 0
    return float(rows * length * (norms + attention + linear) + mask)


def head_bytes(sizes: Sizes, width: int, tokens: int, on_gpu: bool, zero_stage: int) -> float:
    """What the language head and the loss need in the backward pass. The logits of all tokens are never held.

    TRL's head has one tile of logits, and gradients in float32 of its weights and inputs. On a CPU, but under ZeRO-3,
    `infra.training.cpu_head` has a block of logits: log-probabilities and three temporary copies in float32.
    """
    weights, inputs = sizes.vocabulary * sizes.hidden, tokens * sizes.hidden
    if on_gpu or zero_stage == 3:
        rows = min(tokens, _TILE_ROWS)
        tile = rows * (_TILE_COLUMNS if on_gpu else min(sizes.vocabulary, _TILE_COLUMNS))
        working = 0 if on_gpu else _TILE_ON_CPU * tile
        return float(width * tile + _FP32 * (weights + inputs) + max(working, width * (weights + inputs)))
    block = min(tokens * sizes.vocabulary, _CPU_BLOCK)
    summed = 2 if tokens * sizes.vocabulary > block else 1  # gradients of the weights: so far, and of this block
    return float(4 * _FP32 * block + width * (summed * weights + inputs))


class Setting(NamedTuple):
    """A training's settings that change what a rank needs: those of a recipe that differ, and the number of ranks."""

    changes: Mapping[str, Any]
    recipe: Recipe
    ranks: int


def nearest(recipe: Recipe, ranks: int, fits: Callable[[Recipe, int], bool]) -> Setting | None:
    """The nearest settings that fit: the first of `alternatives`; None if none does."""
    return next((each for each in alternatives(recipe, ranks) if fits(each.recipe, each.ranks)), None)


def alternatives(recipe: Recipe, ranks: int) -> Iterator[Setting]:
    """Settings that need less memory, the nearest first.

    One change alone: gradient checkpointing, ZeRO 3, a smaller micro-batch, more ranks, shorter rows. Then several: the
    first three together, and with them more ranks, or shorter rows.
    """
    sparing: dict[str, Any] = {} if recipe.gradient_checkpointing else {"gradient_checkpointing": True}
    sharding: dict[str, Any] = {} if recipe.zero_stage == 3 or ranks == 1 else {"zero_stage": 3}
    smaller: list[dict[str, Any]] = [{"micro_batch": size} for size in _divisors(recipe.micro_batch)[-2::-1]]
    most = recipe.batch // recipe.micro_batch
    more = [{"ranks": count} for count in _divisors(most) if count > ranks and count % ranks == 0]
    lengths = [recipe.max_length * share // 8 for share in range(7, 0, -1)]
    shorter = [{"max_length": length} for length in lengths if length > 1]
    together = sparing | sharding | (smaller[-1] if smaller else {})
    all_ranks = [{"ranks": c, "zero_stage": 3} for c in _divisors(recipe.batch) if c > ranks and c % ranks == 0]
    several = [together, *(together | each for each in [*all_ranks, *shorter])]
    for changes in [sparing, sharding, *smaller, *more, *shorter, *several]:
        if changes:
            changed = {name: value for name, value in changes.items() if name != "ranks"}
            yield Setting(changes, recipe.model_copy(update=changed), int(changes.get("ranks", ranks)))


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
