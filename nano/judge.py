"""Make a judge with random weights, to try the machinery of the judged benchmarks offline.

    python -m nano.judge FOLDER

Its tokens are the bytes of UTF-8, so that it can read and write any text, as real models can. Its verdicts can be
parsed if its server constrains their form (`judge.form`), but they mean nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nano.vocabulary import CHAT_TEMPLATE, END, PAD, USER

LONGEST = 65_536  # context in tokens, which are bytes


def make_judge(folder: Path, longest: int = LONGEST) -> Path:
    """Write the model to `folder`: a Llama of two layers with random weights (seed 0)."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, "<|assistant|>", "<|system|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=longest,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    make_judge(Path(sys.argv[1]))
