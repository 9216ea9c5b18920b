"""Chat prompts as token ids. Chat templates are applied here only, after control tokens in the text were neutralised.

Generation and training both start from `prompt_text`, so that a model is trained on the prompts that it is asked with.
Some templates open `<think>` at the end of the prompt (`generation_prefix` shows it), and some delete the thoughts of
earlier assistant turns. Completions are therefore never passed through a template.
"""

from __future__ import annotations

import json
import re
import threading
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IMPORTING = threading.Lock()  # transformers' lazy import breaks when two shards' threads start it at once
_MARKUP = re.compile(r"[<\[{].*[^\W\d_].*[>\]}]", re.DOTALL)  # with a letter in it: `[]`, `<=>` and `{0}` are code
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # how SentencePiece writes a byte that is no character
_HTML = re.compile(
    r"[<\[]/?(?:a|abbr|article|aside|b|big|blockquote|body|br|button|caption|center|cite|code|col|colgroup|dd|del|dfn"
    r"|div|dl|dt|em|fieldset|figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|input|ins|kbd|label|legend"
    r"|li|link|main|mark|meta|nav|ol|optgroup|option|p|pre|q|rp|rt|ruby|samp|script|section|select|small|span|strike"
    r"|strong|style|sub|sup|table|tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul|var|wbr)\s*/?[>\]]"
    r"|<![A-Za-z][^>]*>",
    re.IGNORECASE,
)
"""A tag of HTML (or BBCode) that structures text. Names that models use for their own marks are left out, such as
`img`, `audio`, `output` and `summary`."""
_EMPTY_THOUGHTS = re.compile(r"<(\w+)>\s*</\1>")
_HALF = re.compile("[\ud800-\udfff]")  # one half of a character of UTF-16, which no tokenizer takes
_STRUCK = {"<s>", "</s>"}  # struck-out text in HTML, the first and last token of a text in SentencePiece's tokenizers


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

    These are all special tokens, and added tokens that look like a mark (`<think>`, `[INST]`, `<unused7>`), since
    many families do not declare theirs as special (`<think>` of Qwen, `<\uff5cUser\uff5c>` of DeepSeek). What is
    ordinary text is no mark: tags of HTML that the chat template does not use, of which Gemma lists some fifty (`<s>`
    is HTML only beside `<b>`), bytes (`<0x0A>`), runs of blanks, emoji, words, and brackets without a letter in them;
    and a word that is special only since the tokenizer pads with it.
    """
    added = list(tokenizer.added_tokens_decoder.values())
    html = any(token.content == "<b>" for token in added)
    template = str(tokenizer.chat_template or "")
    marked = {token.content for token in added if token.special or _is_mark(token.content, html, template)}
    found = {text for text in marked | set(tokenizer.all_special_tokens) if text.strip()}
    pad = str(tokenizer.pad_token)
    if list(tokenizer.special_tokens_map.values()).count(pad) == 1 and not _is_mark(pad, html, template):
        found.discard(pad)
    return sorted(found, key=lambda text: (-len(text), text))


def _is_mark(token: str, html: bool, template: str) -> bool:
    """Whether an added token that is not declared as special looks like a control token.

    `html`: whether the tokenizer lists tags of HTML.
    """
    text = token.strip()
    if not _MARKUP.fullmatch(text) or _BYTE.fullmatch(text):
        return False
    return text in template or not (_HTML.fullmatch(text) or (html and text in _STRUCK))


def neutralise(text: str, tokenizer: PreTrainedTokenizerBase, keep: Collection[str] = ()) -> str:
    """Break every spelled-out control token with a blank after its first character; other text is unchanged.

    What cannot be broken so becomes U+FFFD, and so does half a character (a lone surrogate): no text is refused. The
    function is idempotent, and the tokens of the result have no control token (except unknown-word tokens).

    Args:
        keep: strings to leave alone, such as the thought delimiters of the project's own in-context examples.
    """
    control = [string for string in special_strings(tokenizer) if string not in keep]
    result = _break(_HALF.sub("\ufffd", text), control)
    if _control_ids(
        result, tokenizer, control
    ):  # the tokenizer folds look-alikes (full-width letters, ...) into the token
        result = _break(unicodedata.normalize("NFKC", result), control)
        for _ in result:
            if not (left := _control_ids(result, tokenizer, control)):
                break
            result = _cut_out(result, tokenizer, left)
    return result


def _break(text: str, control: Sequence[str]) -> str:
    for string in control:
        first = len(string) - len(string.lstrip()) + 1
        broken = f"{string[:first]} {string[first:]}" if string[first:].strip() else "\ufffd"
        while string in text:
            text = text.replace(string, broken)
    return text


def _control_ids(text: str, tokenizer: PreTrainedTokenizerBase, control: Sequence[str]) -> list[int]:
    """The control tokens in a text. What U+FFFD becomes, perhaps an unknown-word token, is none."""
    forbidden = set(tokenizer.convert_tokens_to_ids(list(control))) - {tokenizer.unk_token_id}
    found = forbidden.intersection(tokenizer.encode(text, add_special_tokens=False))
    return sorted(found.difference(tokenizer.encode("\ufffd", add_special_tokens=False)) if found else found)


def _cut_out(text: str, tokenizer: PreTrainedTokenizerBase, control: Collection[int]) -> str:
    """The text with U+FFFD in place of each of these tokens; of all but letters, if it does not say where they are."""
    if not tokenizer.is_fast:
        return re.sub(r"[^\w\s]", "\ufffd", text)
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for (begin, end), number in reversed(list(zip(made["offset_mapping"], made["input_ids"], strict=True))):
        if number in control:
            text = f"{text[:begin]}\ufffd{text[end:]}"
    return text


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], keep: Collection[str] = ()
) -> str:
    """The exact text of a chat prompt, up to where the assistant's answer starts.

    Contents are neutralised first (see `neutralise`, also for `keep`). If the template refuses or drops a system turn,
    its text becomes the beginning of the first user turn.

    Raises:
        BadInput: the tokenizer has no chat template, or it cannot render the messages.
    """
    safe = [{**message, "content": neutralise(message["content"], tokenizer, keep)} for message in messages]
    if any(turn["role"] == "system" for turn in safe) and not _takes_system_turn(tokenizer):
        safe = without_system_turn(safe)
    return _rendered(tokenizer, safe, add_generation_prompt=True)


def _takes_system_turn(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template shows a system turn. Gemma's refuses one, and some others drop it."""
    turns = [{"role": "system", "content": "0123"}, {"role": "user", "content": "x"}]
    try:
        return "0123" in _rendered(tokenizer, turns, add_generation_prompt=True)
    except BadInput:
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


def conversation(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """A question and its answer in the chat template: the whole text, and what the template prints after the answer.

    Raises:
        BadInput: there is no template, it fails, or leaves out the question or the answer.
    """
    asked, answered = "What is asked?", "What is answered."
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    shown = _rendered(tokenizer, messages, add_generation_prompt=False)
    before, found, after = shown.rpartition(answered)
    if not found or asked not in before:
        raise BadInput(
            f"chat template of {tokenizer.name_or_path} leaves out the question or the answer of a conversation; it "
            f"printed {shown[:300]!r}: expected the template that the model was trained with"
        )
    return shown, after


def end_token(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """The token that ends an assistant's turn, as text and id: what the chat template prints after an answer.

    It need not be the tokenizer's end token: Gemma's template ends turns with `<end_of_turn>`, its end token is
    `<eos>`. If the template prints no control token there, it is the tokenizer's end token.

    Raises:
        BadInput: as `conversation`; or the template ends a turn with a mark that is no token; or with nothing, and the
            tokenizer has no end token.
    """
    where, control = f"chat template of {tokenizer.name_or_path}", special_strings(tokenizer)
    tail = conversation(tokenizer)[1].strip()
    end = next((string for string in control if tail.startswith(string.strip())), None)
    if end is None and (mark := re.match(r"[<\[{][^\s<>\[\]{}]+[>\]}]", tail)) and not _HTML.fullmatch(mark[0]):
        raise BadInput(
            f"{where} ends an assistant's turn with {mark[0]!r}, which is no token of the tokenizer, so that nothing "
            f"can stop there: add it as a special token, or use a template that ends a turn with one of its tokens "
            f"({', '.join(control[:8])})"
        )
    end = end or tokenizer.eos_token
    if end is None:
        raise BadInput(
            f"{where} prints no token after an answer, and the tokenizer has no end token, so completions could not "
            "end: set eos_token in tokenizer_config.json"
        )
    return str(end), int(tokenizer.convert_tokens_to_ids(str(end)))


def check_end_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    """The id of `end_token`, at which a server of the model in `folder` must stop.

    A server stops at the tokenizer's end token and at those of generation_config.json (without that file: of
    config.json).

    Raises:
        BadInput: it does not stop there; the file cannot be read, or lists what is no token id; or as `end_token`.
    """
    end, number = end_token(tokenizer)
    file = next((name for name in ("generation_config.json", "config.json") if (folder / name).is_file()), None)
    listed = _listed_ends(folder / file) if file else []
    if number in {tokenizer.eos_token_id, *listed}:
        return number
    known = [tokenizer.convert_ids_to_tokens(each) if 0 <= each < len(tokenizer) else each for each in listed]
    names = [str(each) for each in known] or ["none"]
    raise BadInput(
        f"chat template of {folder} ends an assistant's turn with {end!r} (id {number}), but nothing stops there: "
        f"eos_token of the tokenizer is {tokenizer.eos_token!r}, eos_token_id of {file} lists {', '.join(names)}. "
        f"Set eos_token in tokenizer_config.json to {end!r}, or add {number} to eos_token_id in "
        "generation_config.json; or use the template that the model was trained with"
    )


def _listed_ends(path: Path) -> list[int]:
    """The end tokens that a generation_config.json or config.json lists. Raises `BadInput`."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: expected a JSON object in UTF-8 ({error}): fetch the file again") from error
    if not isinstance(told, dict):
        raise BadInput(f"{path}: expected a JSON object, found {str(told)[:100]}: fetch the file again")
    inner, listed = told.get("text_config"), told.get("eos_token_id")
    if listed is None and isinstance(inner, dict):
        listed = inner.get("eos_token_id")
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if any(type(each) is not int for each in listed):
        raise BadInput(f"{path}: eos_token_id is {listed}: expected the id of a token, or a list of ids")
    return listed


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    """A conversation in the chat template. Raises `BadInput` if there is none, or it fails."""
    if not tokenizer.chat_template:
        raise BadInput(f"tokenizer {tokenizer.name_or_path} has no chat template: a prompt cannot be rendered")
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False))
    except Exception as error:  # a template is a program of strangers, and raises whatever it likes
        roles = ", ".join(message["role"] for message in messages)
        raise BadInput(
            f"chat template of {tokenizer.name_or_path} cannot render a conversation of {roles} "
            f"({type(error).__name__}: {error}): expected the template that the model was trained with"
        ) from error


def generation_prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template appends to open the assistant's turn. It ends with `<think>` for models whose template opens
    the thoughts."""
    messages = [{"role": "user", "content": "x"}]
    opened, closed = (_rendered(tokenizer, messages, add_generation_prompt=each) for each in (True, False))
    return opened.removeprefix(closed)


def check_opens_a_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a chat template whose prompt stops short of where an answer starts.

    Mistral's template prints nothing between the user's turn and the answer, so that nothing is missing. ChatML's
    prints a header there. If such a template ignores `add_generation_prompt`, the prompt lacks the header.

    Raises:
        BadInput: `add_generation_prompt` changes nothing, though the template prints something before an answer.
    """
    if generation_prefix(tokenizer).strip():
        return
    asked = [{"role": "user", "content": "What is asked?"}]
    prompt = _rendered(tokenizer, asked, add_generation_prompt=True).rstrip()
    shown, after = conversation(tokenizer)
    before = shown.removesuffix(after).removesuffix("What is answered.")
    header = before.removeprefix(prompt).strip()
    if before.startswith(prompt) and header and not _EMPTY_THOUGHTS.fullmatch(header):
        raise BadInput(
            f"chat template of {tokenizer.name_or_path} prints {header!r} before an answer, but not at the end of a "
            "prompt: add_generation_prompt changes nothing, so that a model would be asked for, and trained on, "
            "answers without it. Add {% if add_generation_prompt %} with this text to the end of the template"
        )


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The number of tokens of `text`, without added special tokens."""
    return len(tokenizer.encode(text, add_special_tokens=False))
