"""Whatever is wrong with a model, found in its files before anything is served or trained.

`check_policy`, `check_reward_model` and `check_trained` are lists: a model of that use passes each of their lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from infra.errors import BadInput
from infra.serving.armorm import ARCHITECTURE as ARMORM
from infra.serving.armorm import GATE, HEAD_TENSORS
from infra.serving.context import check_length
from infra.serving.vllm_server import ServerOptions, check_served_length
from infra.store.model_files import CONFIG, TOKENIZER, ModelFiles, language_part
from infra.text.chat import check_end_token, check_opens_a_turn, conversation, load_tokenizer, prompt_text
from infra.training.config import Recipe
from infra.training.inputs import FLOATS, check_number_formats, check_vocabulary, check_weights, vocabulary_size

CLASSIFIER = "ForSequenceClassification"
NO_GENERATOR = (CLASSIFIER, "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM", "Model", ARMORM)
GENERATOR = ("LMHeadModel", "ChatModel", "ChatGLMModel")
"""Ends of the names of architectures that cannot write text, and of those that nevertheless can."""
SCORE = "score.weight"
ENCODERS = ("Bert", "ModernBert", "Roberta", "XLMRoberta")
"""Families whose classifier vLLM reads from `classifier.weight`, not from `score.weight`."""
_BODY = r"(?:model\.|language_model\.|transformer\.)*"
_LAYER, _EMBEDDING = re.compile(_BODY + r"layers\.(\d+)\."), re.compile(_BODY + r"(?:embed_tokens|wte)\.weight$")
_OTHER_LAYERS = {"num_layers", "block_configs"}
"""Fields of families that count layers otherwise (LongCat), or have layers without a tensor (DeciLM)."""
ENCODERS_HEAD = ("classifier.weight", "classifier.out_proj.weight")


def check_policy(files: ModelFiles, options: ServerOptions, setting: str = "serving.policy") -> None:
    """Refuse a model that is to write text (policy, evaluated model, judge), but cannot.

    Args:
        options: how it is served.
        setting: where these options are set, for the message.

    Raises:
        BadInput: what is wrong, where, and how to fix it.
    """
    check_served_length(files, options, setting)
    check_speaks(files)
    check_writes_text(files)
    check_sizes(files)


def check_reward_model(files: ModelFiles, options: ServerOptions, setting: str = "serving.reward") -> None:
    """Refuse a reward model whose rewards would be noise, or that could not be served. Arguments as `check_policy`.

    Raises:
        BadInput: what is wrong, where, and how to fix it.
    """
    check_served_length(files, options, setting)
    check_reads_a_conversation(files)
    check_scoring_head(files)
    check_sizes(files)


def check_served(files: ModelFiles) -> None:
    """Refuse a reward model that vLLM cannot serve, where a trainer or a search asks it. Raises `BadInput`."""
    if architecture(files) == ARMORM:
        raise BadInput(
            f"reward {files.title} is an {ARMORM}, which vLLM cannot serve, but this run needs a served one: use a "
            "sequence classifier with one label, or, in online training, set online.rl.on_policy to false"
        )


def check_trained(files: ModelFiles, recipe: Recipe, setting: str) -> list[str]:
    """Refuse a model that could not be trained as `recipe` says (at the parameter `setting`), or not be saved then.

    The weights of a model on S3 are checked by the trainer (`infra.training.inputs`), which has a copy of them.

    Returns:
        Settings of the model that its trained copy will not have, to be logged (`infra.training.saving`).

    Raises:
        BadInput: what is wrong, where, and how to fix it.
    """
    from infra.training.saving import rehearse  # loads torch

    check_length(files.title, files.read(CONFIG), recipe.max_length, f"{setting}.max_length")
    check_number_formats(files.title, files.number_formats())
    with files.without_weights() as folder:
        dropped = rehearse(folder, files.title, files.tensors(), trust_remote_code=recipe.trust_remote_code)
        check_special_tokens(files, loaded_tokenizer(files, folder), folder)
        if files.is_local:
            check_weights(folder, files.title)
        return dropped


def check_special_tokens(files: ModelFiles, tokenizer: Any, folder: Path) -> None:
    """Refuse a model without an embedding for a token that all its training texts have."""
    size = vocabulary_size(files.read(CONFIG))
    check_vocabulary(files.title, size, {"the end token": check_end_token(tokenizer, folder)})
    check_vocabulary(files.title, size, {f"padding token {tokenizer.pad_token!r}": tokenizer.pad_token_id})
    prompt = tokenizer.encode(prompt_text(tokenizer, [{"role": "user", "content": "x"}]), add_special_tokens=False)
    check_vocabulary(files.title, size, {"a token of the chat template": max(prompt)})


def architecture(files: ModelFiles) -> str:
    """The architecture that config.json names. Raises `BadInput` if it names none."""
    named = files.read(CONFIG).get("architectures") or []
    if not (isinstance(named, list) and named and isinstance(named[0], str)):
        raise BadInput(
            f"{files.title}: {CONFIG} names no architecture: expected `architectures`, such as LlamaForCausalLM. Save "
            "the model with transformers' save_pretrained"
        )
    return named[0]


def check_writes_text(files: ModelFiles) -> None:
    """Refuse a model without a language head where a model must write text: the head would be made up at random."""
    named, tensors = architecture(files), files.tensors()
    if named.endswith(NO_GENERATOR) and not named.endswith(GENERATOR):
        raise BadInput(
            f"{files.title} is a {named} ({CONFIG}), which writes no text: expected a causal language model "
            "(...ForCausalLM)"
        )
    untied = files.read(CONFIG).get("tie_word_embeddings") is False
    if untied and not any(_is_head(name) or "embed_out" in name for name in tensors):
        raise BadInput(
            f"{files.title} ({named}) has no language head among its {len(tensors)} tensors, and {CONFIG} says that it "
            "does not share the embeddings' (tie_word_embeddings): expected lm_head.weight. Fetch the whole model"
        )


def check_sizes(files: ModelFiles) -> None:
    """Refuse weights with other layers, or an embedding of another shape, than config.json says.

    Only names that most families share are looked at. What a trainer is given is compared in full (`check_fit`).
    """
    told, tensors, formats = language_part(files.read(CONFIG)), files.tensors(), files.number_formats()
    layers, sizes = told.get("num_hidden_layers"), [told.get("vocab_size"), told.get("hidden_size")]
    faults = []
    found = {int(named[1]) for name in tensors if (named := _LAYER.match(name))}
    if found and isinstance(layers, int) and not told.keys() & _OTHER_LAYERS:
        predicting = told.get("num_nextn_predict_layers")
        most = layers + predicting if isinstance(predicting, int) else layers
        if not set(range(layers)) <= found <= set(range(most)):
            faults.append(f"num_hidden_layers is {layers}, but there are tensors of {len(found)} layers")
    for name in (each for each in tensors if _EMBEDDING.match(each) and formats[each] in FLOATS):
        if any(isinstance(size, int) and size != held for size, held in zip(sizes, tensors[name], strict=False)):
            faults.append(f"vocab_size and hidden_size are {sizes}, but {name} is {list(tensors[name])}")
    if faults and "mllama" not in str(told.get("model_type")):  # it has rows for images beyond its vocabulary
        raise BadInput(
            f"{files.title}: its weights are not what {CONFIG} describes: {'; '.join(faults)}. Fetch the whole model "
            f"again, or correct {CONFIG}"
        )


def check_speaks(files: ModelFiles) -> None:
    """Refuse a model without a working chat template, or one that does not stop where its template ends a turn."""
    check_chat_template(files)
    with files.without_weights() as folder:
        tokenizer = loaded_tokenizer(files, folder)
        asked = "What is asked?"
        if asked not in prompt_text(tokenizer, [{"role": "user", "content": asked}]):
            raise BadInput(f"{files.title}: its chat template leaves out the user's turn: use the model's own template")
        check_opens_a_turn(tokenizer)
        check_end_token(tokenizer, folder)


def check_reads_a_conversation(files: ModelFiles) -> None:
    """Refuse a reward model whose chat template cannot show it a query and its solution."""
    check_chat_template(files)
    with files.without_weights() as folder:
        tokenizer = loaded_tokenizer(files, folder)
        shown, _ = conversation(tokenizer)
        if architecture(files) == ARMORM and GATE not in shown:
            raise BadInput(
                f"{files.title}: its chat template does not write {GATE!r} before the answer, where {ARMORM} reads its "
                "gate: expected Llama 3's chat template"
            )


def check_chat_template(files: ModelFiles) -> None:
    """Refuse a model without a chat template."""
    if {"chat_template.jinja", "chat_template.json"} & set(files.names) or files.read(TOKENIZER).get("chat_template"):
        return
    raise BadInput(
        f"{files.title}: no chat template in its files (expected chat_template.jinja, or chat_template in "
        f"{TOKENIZER}), but what it reads is rendered with it: add the template that the model was trained with"
    )


def loaded_tokenizer(files: ModelFiles, folder: Any) -> Any:
    """The tokenizer in `folder`. Raises `BadInput` with the cause if it cannot be loaded."""
    from transformers import AutoConfig

    try:
        return load_tokenizer(folder)
    except Exception as error:  # transformers and tokenizers raise many kinds for broken and for missing files
        what, how = f"its {CONFIG}", "correct the field that this names"  # it is read with the tokenizer
        with suppress(Exception):
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            what, how = "its tokenizer", f"expected tokenizer.json and {TOKENIZER}, as saved by transformers"
        raise BadInput(f"{files.title}: {what} cannot be loaded ({type(error).__name__}: {error}): {how}") from error


def check_scoring_head(files: ModelFiles) -> None:
    """Refuse a reward model without a head that gives one number: a server makes up a missing head at random."""
    named, tensors = architecture(files), files.tensors()
    heads = [name for name in tensors if _is_head(name)]
    found = ", ".join(f"{name} {list(tensors[name])}" for name in heads[:6]) or "no tensor of a head"
    expected = (
        f"expected an architecture ...{CLASSIFIER} with one label and a tensor {SCORE} [1, hidden size], or {ARMORM}"
    )
    if named == ARMORM:
        if missing := [name for name in HEAD_TENSORS if name not in tensors]:
            raise BadInput(
                f"reward {files.title} says that it is a {ARMORM}, but lacks {', '.join(missing)}; found {found}: "
                "expected RLHFlow/ArmoRM-Llama3-8B-v0.1"
            )
        return
    if not named.endswith(CLASSIFIER):
        raise BadInput(
            f"reward {files.title} is a {named} ({CONFIG}) with {found}: its rewards would come from a head made up at "
            f"random; {expected}"
        )
    family = named.removesuffix(CLASSIFIER)
    head = next((name for name in (ENCODERS_HEAD if family in ENCODERS else (SCORE,)) if name in tensors), None)
    if head is None:
        raise BadInput(
            f"reward {files.title} ({named}) has no tensor {SCORE}, found {found}: its rewards would come from a head "
            f"made up at random; {expected}. If the head has another name, rename the tensor to {SCORE}"
        )
    labels = {f"{head} is {list(tensors[head])}": next(iter(tensors[head]), 0), **_labels(files.read(CONFIG))}
    wrong = [said for said, count in labels.items() if count != 1]
    told = language_part(files.read(CONFIG))
    hidden = told.get("word_embed_proj_dim", told.get("hidden_size"))
    if isinstance(hidden, int) and tensors[head][1:] != (hidden,):
        wrong.append(f"{head} is {list(tensors[head])} where hidden_size is {hidden} ({CONFIG})")
    if wrong:
        raise BadInput(f"reward {files.title} ({named}) must give one number, but {'; '.join(wrong)}; {expected}")


def _labels(config: Mapping[str, Any]) -> dict[str, int]:
    """What config.json says about the number of labels. transformers takes two if it says nothing."""
    names, count = config.get("id2label"), config.get("num_labels")
    said = {f"{CONFIG} has {len(names)} labels in id2label": len(names)} if isinstance(names, Mapping) else {}
    said |= {f"{CONFIG} has num_labels {count}": count} if isinstance(count, int) else {}
    return said or {f"{CONFIG} has neither id2label nor num_labels, which means two labels": 2}


def _is_head(name: str) -> bool:
    """Whether a tensor lies outside a model's body, for messages."""
    inner = (".layers.", ".layer.", ".h.", ".blocks.", "embed", "wte", "wpe", "norm", "ln_f", "rotary", "visual")
    return not any(part in name for part in inner) or name.startswith("gating.")
