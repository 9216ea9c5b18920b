"""The gate of a trained model: its folder is checked against the model that it was made from before it is published.

What is certain to be broken stops the publication: tensors, tokenizer, chat template, settings of generation. The model
is also asked for an answer. The step (`tasks.training.card`) judges its format, which an honest training of few rows
need not have taught yet.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from infra.store.model_files import WEIGHTS, ModelFiles
from infra.text.chat import end_token, load_tokenizer
from infra.training.config import TrainingConfig
from infra.training.inputs import Rows, check_weights, tokenizer_difference
from infra.training.saving import KEPT, given_generation

SPARE = 1.3
"""A model is asked on the GPU if this multiple of its weights' bytes is free there, else on the CPU."""


def check_saved(config: TrainingConfig) -> dict[str, Any]:
    """Check the saved model, reload it, and ask it for one greedy answer.

    Returns `prompt`, `text`, and whether the answer `ended` by itself within `sample_tokens` tokens.

    Raises:
        ValueError: something is broken in the saved model; the text says what.
    """
    check_shapes(config)
    check_weights(config.output, f"trained model {config.output}")
    tokenizer = check_settings(config)
    model = reloaded(config)
    return answer(model, tokenizer, config)


def check_shapes(config: TrainingConfig) -> None:
    """Compare the tables of the two models' files. No tensor is read.

    Names may differ, since transformers renames tensors of old files, and saves tied ones once: `reloaded` compares
    them as transformers reads them.

    Raises:
        ValueError: a tensor has another shape than in the given model; or a file is not whole.
    """
    given, saved = (ModelFiles.in_folder(folder).tensors() for folder in (config.model, config.output))
    if wrong := [name for name in given.keys() & saved.keys() if given[name] != saved[name]]:
        name = min(wrong)
        raise ValueError(
            f"{len(wrong)} saved tensors differ in shape from {config.model}, such as {name}: {list(saved[name])}, "
            f"expected {list(given[name])}"
        )


def check_settings(config: TrainingConfig) -> PreTrainedTokenizerBase:
    """Compare tokenizer, chat template, settings of generation and token ids with the given model's.

    Returns the saved tokenizer.

    Raises:
        ValueError: one of them was changed by training or saving.
    """
    saved, title = load_tokenizer(config.output), f"model {config.model}"
    if difference := tokenizer_difference(load_tokenizer(config.model), saved):
        raise ValueError(f"the saved tokenizer differs from that of {config.model}: {difference}")
    given, _ = given_generation(config.model, title)
    found = GenerationConfig.from_pretrained(config.output, local_files_only=True)
    _same("generation_config.json", _settings(given), _settings(found))
    configs = [
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=config.trust_remote_code)
        for folder in (config.model, config.output)
    ]
    texts = [each.get_text_config() for each in configs]
    _same("config.json", *({name: getattr(each, name, None) for name in KEPT} for each in texts))
    return saved


def _settings(generation: GenerationConfig) -> dict[str, Any]:
    """All settings that were set, without those that only say who wrote the file."""
    return {
        name: value
        for name, value in generation.to_dict().items()
        if name not in ("transformers_version", "_from_model_config") and value is not None
    }


def _same(file: str, given: dict[str, Any], found: dict[str, Any]) -> None:
    for name in sorted(given.keys() | found.keys()):
        if given.get(name) != found.get(name):
            raise ValueError(
                f"{name} in the saved {file} is {found.get(name)!r}, but {given.get(name)!r} in the given model"
            )


def reloaded(config: TrainingConfig) -> PreTrainedModel:
    """The saved model, whose tensors have the names and shapes that the given model's configuration asks for.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """
    model, told = AutoModelForCausalLM.from_pretrained(
        config.output, local_files_only=True, trust_remote_code=config.trust_remote_code, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told[kind]:
            raise ValueError(f"saved tensors do not make up the model: {kind} {sorted(map(str, told[kind]))[:10]}")
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(config.model, local_files_only=True, trust_remote_code=config.trust_remote_code),
            trust_remote_code=config.trust_remote_code,
        )
    shapes = [{name: tuple(each.shape) for name, each in held.state_dict().items()} for held in (expected, model)]
    if wrong := {name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)}:
        raise ValueError(f"saved tensors differ in name or shape from {config.model}: {sorted(wrong)[:10]}")
    return model


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: TrainingConfig) -> dict[str, Any]:
    """A greedy answer to the first prompt that leaves room for one, decoded as vLLM decodes it."""
    prompts = (row["prompt"] for _, row in Rows(config.data, config.columns, most_bad=1))
    encoded = ((prompt, tokenizer.encode(prompt, add_special_tokens=False)) for prompt in prompts)
    prompt, ids = next((prompt, ids) for prompt, ids in encoded if len(ids) < config.max_length)
    stops = stop_tokens(model, tokenizer)
    given = torch.tensor([ids], device=_device(config))
    greedy = GenerationConfig(
        do_sample=False,
        use_cache=True,
        max_new_tokens=min(config.sample_tokens, config.max_length - len(ids)),
        eos_token_id=sorted(stops),
        pad_token_id=min(stops),
    )
    with torch.inference_mode():
        made = model.to(given.device).generate(given, attention_mask=torch.ones_like(given), generation_config=greedy)
    found = made[0, len(ids) :].tolist()
    ended = bool(found) and found[-1] in stops
    return {"prompt": prompt, "text": tokenizer.decode(found[:-1] if ended else found), "ended": ended}


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: those of the model's generation settings, and that of the template's turns."""
    listed = model.generation_config.eos_token_id
    stops = {*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id, end_token(tokenizer)[1]}
    return stops - {None}


def _device(config: TrainingConfig) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        if torch.cuda.mem_get_info()[0] > SPARE * sum(
            file.stat().st_size for file in config.output.glob(f"*{WEIGHTS}")
        ):
            return torch.device("cuda")
    return torch.device("cpu")
