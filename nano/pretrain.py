"""Pretrain the nano instruct model: `python -m nano.pretrain CONFIG.json` (one process of one thread).

A Llama of about 1.8 million parameters. Muon for the matrices, AdamW for embeddings and norms, linear decay to zero.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from infra.processes.devices import this_machine
from nano.config import PretrainConfig
from nano.corpus import documents
from nano.vocabulary import CONTEXT, END, PAD, encoder, save_tokenizer


def architecture(layers: int = 4, width: int = 192) -> LlamaConfig:
    """The shape of the nano models."""
    ids = encoder()
    return LlamaConfig(
        vocab_size=len(ids),
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=512 * width // 192,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=ids[PAD],
        eos_token_id=ids[END],
        bos_token_id=None,
    )


def rows(seed: int, length: int, *, chats: bool = True) -> Iterator[list[int]]:
    """Documents packed into rows of `length` tokens. The document at the end of a row is cut."""
    ids = encoder()
    row: list[int] = []
    for document in documents(seed, chats=chats):
        row += [ids[word] for word in document.split()]
        if len(row) >= length:
            yield row[:length]
            row = []


def optimizers(model: torch.nn.Module, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices, and AdamW for embeddings, norms and heads."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "score" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def step(opts: list[torch.optim.Optimizer], lrs: list[float], share: float) -> None:
    """Update once, at `share` of each peak learning rate."""
    for opt, lr in zip(opts, lrs, strict=True):
        for group in opt.param_groups:
            group["lr"] = lr * share
        opt.step()
        opt.zero_grad(set_to_none=True)


def train(
    config: PretrainConfig,
    model: PreTrainedModel,
    trained: torch.nn.Module,
    measure: Callable[[], tuple[torch.Tensor, dict[str, float]]],
) -> None:
    """Train as the configuration says; write model, tokenizer and metrics.

    Args:
        trained: the model, or a module that also holds heads which are thrown away.
        measure: the loss of the next batch, and the figures to log, as means over 20 steps.
    """
    opts = optimizers(trained, config)
    lrs = [config.muon_lr, config.adam_lr]
    budget = config.row_tokens * config.rows_per_step
    steps = config.tokens // budget
    began, kept = time.perf_counter(), []
    config.output.parent.mkdir(parents=True, exist_ok=True)
    log = (config.output.parent / f"{config.output.name}.metrics.jsonl").open("w")
    for n in range(steps):
        loss, figures = measure()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step(opts, lrs, min(1.0, (n + 1) / 50) * (1 - n / steps))
        kept.append(figures)
        if n % 20 == 19 or n == steps - 1:
            row = {name: sum(each[name] for each in kept) / len(kept) for name in figures}
            row |= {"step": n + 1, "steps": steps, "tokens": (n + 1) * budget, "seconds": time.perf_counter() - began}
            print(json.dumps(row), file=log, flush=True)
            kept.clear()
    model.to(torch.bfloat16).save_pretrained(config.output)
    save_tokenizer(config.output)


def main(config_path: str) -> None:
    """Train as the configuration says; write model, tokenizer and metrics."""
    config = PretrainConfig.model_validate_json(Path(config_path).read_text())
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(architecture(config.layers, config.width))
    stream = rows(config.seed, config.row_tokens, chats=config.chats)

    def measure() -> tuple[torch.Tensor, dict[str, float]]:
        batch = torch.tensor([next(stream) for _ in range(config.rows_per_step)])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=this_machine().bf16):
            loss = model(input_ids=batch, labels=batch).loss
        return loss, {"loss": loss.item()}

    train(config, model, model, measure)


if __name__ == "__main__":
    main(sys.argv[1])
