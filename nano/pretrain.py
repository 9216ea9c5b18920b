"""Pretrain the nano instruct model: `python -m nano.pretrain CONFIG.json` (one process of one thread).

A Llama of about 1.8 million parameters. Muon for the matrices, AdamW for embeddings and norms, linear decay to zero.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nano.config import PretrainConfig
from nano.corpus import documents
from nano.vocabulary import CONTEXT, END, PAD, encoder, save_tokenizer


def architecture(layers: int = 4) -> LlamaConfig:
    """The shape of both nano models."""
    ids = encoder()
    return LlamaConfig(
        vocab_size=len(ids),
        hidden_size=192,
        num_hidden_layers=layers,
        intermediate_size=512,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=ids[PAD],
        eos_token_id=ids[END],
        bos_token_id=None,
    )


def rows(seed: int, length: int) -> Iterator[list[int]]:
    """Documents packed into rows of `length` tokens. The document at the end of a row is cut."""
    ids = encoder()
    row: list[int] = []
    for document in documents(seed):
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


def main(config_path: str) -> None:
    """Train as the configuration says; write model, tokenizer and metrics."""
    config = PretrainConfig.model_validate_json(Path(config_path).read_text())
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(architecture())
    opts = optimizers(model, config)
    lrs = [config.muon_lr, config.adam_lr]
    stream = rows(config.seed, config.row_tokens)
    steps = config.tokens // (config.row_tokens * config.rows_per_step)
    began, losses = time.perf_counter(), []
    log = (config.output.parent / f"{config.output.name}.metrics.jsonl").open("w")
    for n in range(steps):
        batch = torch.tensor([next(stream) for _ in range(config.rows_per_step)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step(opts, lrs, min(1.0, (n + 1) / 50) * (1 - n / steps))
        losses.append(loss.item())
        if n % 20 == 19 or n == steps - 1:
            seconds = time.perf_counter() - began
            tokens = (n + 1) * config.row_tokens * config.rows_per_step
            row = {
                "step": n + 1,
                "steps": steps,
                "loss": sum(losses) / len(losses),
                "tokens": tokens,
                "seconds": seconds,
            }
            print(json.dumps(row), file=log, flush=True)
            losses.clear()
    model.to(torch.bfloat16).save_pretrained(config.output)
    save_tokenizer(config.output)


if __name__ == "__main__":
    main(sys.argv[1])
