"""Chat prompts as token ids. Chat templates are applied here only, after control tokens in the text were neutralised.

Generation and training both start from `prompt_text`, so that a model is trained on the prompts that it is asked with.
Some templates open `<think>` at the end of the prompt (`generation_prefix` shows it), and some delete the thoughts of
earlier assistant turns. Completions are therefore never passed through a template.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IMPORTING = threading.Lock()  # transformers' lazy import breaks when two shards' threads start it at once
_MARKUP = re.compile(r"[<\[{].*[>\]}]", re.DOTALL)


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local model folder, without running code from it.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    with _IMPORTING:
        from transformers import AutoTokenizer

    if not Path(model_dir).is_dir():
        raise FileNotFoundError(f"no model folder at {model_dir}")
    return AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False, local_files_only=True)


def special_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The strings that the tokenizer turns into control tokens, longest first.

    These are all special tokens, and added tokens that look like markup (`<think>`, `[INST]`). Added runs of blanks and
    plain words are ordinary text.
    """
    added = tokenizer.added_tokens_decoder.values()
    marked = {token.content for token in added if token.special or _MARKUP.fullmatch(token.content.strip())}
    found = {text for text in marked | set(tokenizer.all_special_tokens) if text.strip()}
    return sorted(found, key=lambda text: (-len(text), text))


def neutralise(text: str, tokenizer: PreTrainedTokenizerBase, keep: Collection[str] = ()) -> str:
    """Break every spelled-out control token with a blank after its first character; other text is unchanged.

    The function is idempotent, and the tokens of the result have no control token (except unknown-word tokens).

    Args:
        keep: strings to leave alone, such as the thought delimiters of the project's own in-context examples.

    Raises:
        ValueError: a control token cannot be broken.
    """
    control = [string for string in special_strings(tokenizer) if string not in keep]
    result = _break(text, control)
    if _control_ids(
        result, tokenizer, control
    ):  # the tokenizer folds look-alikes (full-width letters, ...) into the token
        result = _break(unicodedata.normalize("NFKC", result), control)
        if left := _control_ids(result, tokenizer, control):
            raise ValueError(
                f"text still spells control tokens {tokenizer.convert_ids_to_tokens(left)} after neutralising"
            )
    return result


def _break(text: str, control: Sequence[str]) -> str:
    for string in control:
        broken = "\ufffd" if len(string) == 1 else f"{string[0]} {string[1:]}"
        while string in text:
            text = text.replace(string, broken)
    return text


def _control_ids(text: str, tokenizer: PreTrainedTokenizerBase, control: Sequence[str]) -> list[int]:
    forbidden = set(tokenizer.convert_tokens_to_ids(list(control))) - {tokenizer.unk_token_id}
    return sorted(forbidden.intersection(tokenizer.encode(text, add_special_tokens=False)))


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], keep: Collection[str] = ()
) -> str:
    """The exact text of a chat prompt, up to where the assistant's answer starts.

    Contents are neutralised first (see `neutralise`, also for `keep`). If the template refuses or drops a system turn,
    its text becomes the beginning of the first user turn.

    Raises:
        ValueError: the tokenizer has no chat template.
        jinja2.TemplateError: the template refuses the turns.
    """
    if not tokenizer.chat_template:
        raise ValueError(f"tokenizer {tokenizer.name_or_path} has no chat template: a prompt cannot be rendered")
    safe = [{**message, "content": neutralise(message["content"], tokenizer, keep)} for message in messages]
    if any(turn["role"] == "system" for turn in safe) and not _takes_system_turn(tokenizer):
        safe = without_system_turn(safe)
    return str(tokenizer.apply_chat_template(safe, add_generation_prompt=True, tokenize=False))


def _takes_system_turn(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template shows a system turn. Gemma's refuses one, and some others drop it."""
    from jinja2 import TemplateError

    turns = [{"role": "system", "content": "0123"}, {"role": "user", "content": "x"}]
    try:
        return "0123" in str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    except TemplateError:
        return False


def without_system_turn(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The turns of a conversation with each system turn's text at the beginning of the user turn that follows it."""
    turns: list[dict[str, str]] = []
    waiting: list[str] = []
    for turn in messages:
        if turn["role"] == "system":
            waiting.append(turn["content"])
        elif turn["role"] == "user" and waiting:
            turns.append({**turn, "content": "\n\n".join([*waiting, turn["content"]])})
            waiting = []
        else:
            turns.append(turn)
    return [*turns, {"role": "user", "content": "\n\n".join(waiting)}] if waiting else turns


def generation_prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template appends to open the assistant's turn. It ends with `<think>` for models whose template opens
    the thoughts."""
    messages = [{"role": "user", "content": "x"}]
    opened = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    closed = str(tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False))
    return opened.removeprefix(closed)


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 (hex) of the chat template and the special tokens that it may print."""
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return hashlib.sha256(json.dumps([tokenizer.chat_template, special], sort_keys=True).encode()).hexdigest()


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The number of tokens of `text`, without added special tokens."""
    return len(tokenizer.encode(text, add_special_tokens=False))
