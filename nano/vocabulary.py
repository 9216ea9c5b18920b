"""The nano world's vocabulary and tokenizer: one token per word, numbers 0 to 40 included, with a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nano.families.calendar import DAYS, MONTHS
from nano.families.compass import DIRECTIONS
from nano.families.ordering import PEOPLE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, USER, ASSISTANT, END = "<|pad|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = (PAD, UNKNOWN, USER, ASSISTANT, END)
DELIMITERS = ("<internal_thoughts>", "</internal_thoughts>", "<external_solution>", "</external_solution>")
SYMBOLS = tuple(". , : ? + - = >".split())  # noqa: SIM905
TEXT = tuple(
    """on a dial of start with add take away what number is left today go days back which day it this months month face
    turn right times where do you older than who two up to goal find plan one step at time direction check wait not ok
    try none no yes guess again was missed too big each in the oldest then down answer here are worked examples query
    response now same form exercise and that""".split()  # noqa: SIM905
)
CONTEXT = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def words() -> list[str]:
    """All tokens, in the order of their ids."""
    numbers = tuple(str(n) for n in range(41))
    listed = (*SPECIAL, *DELIMITERS, *numbers, *SYMBOLS, *DAYS, *MONTHS, *DIRECTIONS, *PEOPLE, *TEXT)
    return list(dict.fromkeys(listed))


def encoder() -> dict[str, int]:
    """The id of every token."""
    return {word: i for i, word in enumerate(words())}


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer in the form of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(encoder(), unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tokenizer(folder: Path) -> None:
    tokenizer().save_pretrained(folder)
