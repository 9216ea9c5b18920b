"""Saving a trained model: what saving needs is tried before training, and each tensor is saved once.

transformers refuses to save a configuration that contradicts itself, although it loads and trains with it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from infra.errors import BadInput
from infra.text.chat import load_tokenizer
from infra.training.inputs import tokenizer_difference

KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
"""Fields of config.json that transformers' trainer changes. A trained model has them as the given one does."""
_FLAG = re.compile(r"^- `(\w+)`:", re.MULTILINE)  # how GenerationConfig.validate lists settings without effect


def make_savable(
    config: PretrainedConfig, generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, title: str
) -> list[str]:
    """Make what belongs to a model's weights savable, and try it, before the model is trained.

    Settings that have no effect but that transformers refuses to save are dropped: sampling settings (`temperature`,
    `top_p`) without `do_sample`, and the like; and settings of generation in config.json, which old models have there.

    Returns:
        What was dropped, to be logged.

    Raises:
        BadInput: configuration, generation configuration or tokenizer cannot be saved.
    """
    dropped = []
    for name, value in config._get_generation_parameters().items():
        dropped.append(f"{name}={value!r}")
        delattr(config, name)
    if generation is not None:
        dropped += _without_idle_settings(generation, title)
    with TemporaryDirectory(prefix="bolt-rehearsal-") as folder:
        for what, part in (("config.json", config), ("generation_config.json", generation), ("tokenizer", tokenizer)):
            try:
                if part is not None:
                    part.save_pretrained(folder)
            except Exception as error:  # whatever it is, it would be raised after the training as well
                raise BadInput(
                    f"{title}: its {what} can be loaded but not saved, so that a trained model would be lost "
                    f"({said(error)}): correct the model's files"
                ) from error
        try:
            again = load_tokenizer(Path(folder))
        except Exception as error:
            raise BadInput(
                f"{title}: its tokenizer, once saved, cannot be loaded again ({said(error)}): correct the model's files"
            ) from error
        if difference := tokenizer_difference(tokenizer, again):
            raise BadInput(
                f"{title}: its tokenizer, once saved and loaded again, is another one ({difference}): correct the "
                "model's files, or save the tokenizer with this version of transformers"
            )
    return dropped


def said(error: Exception) -> str:
    """What an error says, with its kind, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _without_idle_settings(generation: GenerationConfig, title: str) -> list[str]:
    """Reset the settings that transformers itself says have no effect. Returns them. Raises `BadInput`."""
    dropped = []
    try:
        generation.validate()  # raises for what cannot be meant, and only logs what has no effect
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"{title}: its settings of generation contradict each other ({said(error)}): correct generation_config.json"
        ) from error
    try:
        generation.validate(strict=True)
    except ValueError as error:
        plain = GenerationConfig()
        for name in dict.fromkeys(_FLAG.findall(str(error))):
            dropped.append(f"{name}={getattr(generation, name)!r}")
            setattr(generation, name, getattr(plain, name, None))
    return dropped


def rehearse(folder: Path, title: str, tensors: Mapping[str, tuple[int, ...]], *, trust_remote_code: bool) -> list[str]:
    """Try, without weights, whether the model in `folder` could be trained and saved.

    The model is built on torch's meta device, which takes no memory: parts of a configuration are only looked at then.

    Args:
        tensors: the shape of each tensor in its files, by name.

    Returns:
        What would be dropped, as `make_savable`.

    Raises:
        BadInput: as `make_savable` and `check_fit`; or it cannot be loaded, or is quantised.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # transformers raises many kinds
        raise BadInput(f"{title}: it cannot be loaded ({said(error)})") from error
    if quantised := getattr(config, "quantization_config", None):
        told = quantised if isinstance(quantised, Mapping) else quantised.to_dict()
        raise BadInput(
            f"{title}: its weights are quantised ({told.get('quant_method')}, in config.json), and such weights cannot "
            "be trained in full: give the model as it was before quantisation"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a model's code raises
        raise BadInput(
            f"{title}: config.json describes no causal language model that transformers can build ({said(error)})"
        ) from error
    check_fit(model, tensors, title)
    return make_savable(model.config, _generation_of(folder, title), tokenizer, title)


def check_fit(model: PreTrainedModel, tensors: Mapping[str, tuple[int, ...]], title: str) -> None:
    """Refuse tensors, by name and shape, that do not make up a model as its config.json describes it.

    transformers compares them itself, as it renames, joins and ties tensors of many families. A model with code of its
    own may load its weights in its own way, and is not judged.

    Raises:
        BadInput: a tensor is missing or of another shape, or there are more layers.
    """
    if not type(model).__module__.startswith("transformers."):
        return
    disable_progress_bar()
    for name in ("modeling_utils", "distributed.tensor_parallel"):  # a table of what does not fit; layers "not sharded"
        logging.getLogger(f"transformers.{name}").setLevel(logging.ERROR)
    state = {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
    how = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        _, told = type(model).from_pretrained(None, config=model.config, state_dict=state, **how)
    except Exception as error:  # the trainer would load them in the same way
        raise BadInput(f"{title}: its tensors cannot be loaded ({said(error)}): fetch the whole model") from error
    missing, others = sorted(told["missing_keys"]), sorted(told["mismatched_keys"])
    predicts = getattr(model.config.get_text_config(), "num_nextn_predict_layers", 0)  # more layers, for decoding only
    own = set() if predicts else set(model.state_dict())
    more = [name for name in sorted(told["unexpected_keys"]) if re.sub(r"\.\d+\.", ".0.", name, count=1) in own]
    faults = [f"{len(missing)} tensors are missing, such as {missing[0]}"] if missing else []
    faults += [f"{name} is {list(found)}, expected {list(shape)}" for name, found, shape in others[:1]]
    faults += [f"{len(more)} tensors are of further layers, such as {more[0]}"] if more else []
    if faults:
        raise BadInput(
            f"{title}: its weights are not what config.json describes: {'; '.join(faults)}. Fetch the whole model "
            "again, or correct config.json (num_hidden_layers, hidden_size, vocab_size, ...) or the tensors' names"
        )


def given_generation(folder: Path, title: str) -> tuple[GenerationConfig, list[str]]:
    """The generation configuration that the trained copy of the model in `folder` has, and what it leaves out.

    Raises:
        BadInput: as `make_savable`.
    """
    generation = _generation_of(folder, title)
    return generation, _without_idle_settings(generation, title)


def restore_settings(model: PreTrainedModel, folder: Path, title: str, *, trust_remote_code: bool) -> None:
    """Undo what transformers' trainer changed in the settings of the model in `folder`: token ids, and the use of a
    cache while text is generated. Raises `BadInput` as `make_savable`."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    given, own = config.get_text_config(), model.config.get_text_config()
    for name in KEPT:
        setattr(own, name, getattr(given, name, None))
    model.generation_config, _ = given_generation(folder, title)


def _generation_of(folder: Path, title: str) -> GenerationConfig:
    """The generation configuration that a model loaded from `folder` has. Old models have it in config.json."""
    own = (folder / "generation_config.json").is_file()
    name = "generation_config.json" if own else "config.json"
    try:
        return GenerationConfig.from_pretrained(
            folder, config_file_name=name, local_files_only=True, _from_model_config=not own
        )
    except (OSError, TypeError, ValueError) as error:
        raise BadInput(
            f"{title}: the settings of generation in {name} contradict each other ({said(error)}): correct them"
        ) from error


def tied(model: PreTrainedModel, state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of `state`, a copy of the model's, sharing memory where the model's parameters are the same.

    DeepSpeed copies each tensor by itself. transformers saves a tensor once only if its names share memory.
    """
    first: dict[int, str] = {}
    found = dict(state)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        one = first.setdefault(id(parameter), name)
        if name in found and one in found:
            found[name] = found[one]
    return found
