"""The files of a model, to be looked at before the model is used: configurations, and the names of its tensors.

Nothing here loads a tensor. A safetensors file begins with a table of its tensors, and only that is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.store.manifest import Ref, expect
from infra.store.models import ADAPTER, IS_ADAPTER, ModelError, model_files
from infra.store.store import Store

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
WEIGHTS, WHOLE, INDEX = ".safetensors", "model.safetensors", "model.safetensors.index.json"
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its table
_LONGEST_TABLE = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, in a local folder or in the store. `title` names the model in messages."""

    title: str
    names: tuple[str, ...]
    _store: Store
    _folder: str  # in the store, with a "/" at its end; or ""

    @classmethod
    def in_folder(cls, folder: Path) -> ModelFiles:
        """Those of a local folder. Raises `ModelError` if it is no model: missing, pickled, or without config.json."""
        store = Store(root=str(folder.absolute()), is_local=True)
        return cls(f"model {folder}", tuple(model_files(folder)), store, "")

    @classmethod
    def of(cls, store: Store, model: Ref) -> ModelFiles:
        """Those of an artifact. Raises `BadArtifact` if it is gone."""
        names = tuple(part.path for part in expect(store, model).parts)
        return cls(f"model {model.step}/{model.key}", names, store, f"{model.step}/{model.key}/")

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine."""
        return self._store.is_local

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the model; empty if there is none.

        Raises:
            ModelError: it is not a JSON object.
        """
        if name not in self.names:
            return {}
        try:
            found = json.loads(self._store.read_bytes(self._folder + name))
        except ValueError as error:
            raise ModelError(f"{self.title}: {name} is not JSON ({error}): fetch the file again") from None
        if not isinstance(found, dict):
            raise ModelError(f"{self.title}: {name} is not a JSON object: fetch the file again")
        return found

    def weights(self) -> list[str]:
        """The names of the safetensors files that hold the model's tensors.

        Raises:
            ModelError: there are none that transformers would load, or a file that the index names is missing.
        """
        if INDEX not in self.names:
            if WHOLE in self.names:
                return [WHOLE]
            if ADAPTER in self.names:
                raise ModelError(f"{self.title} {IS_ADAPTER}")
            files = [name for name in self.names if name.endswith(WEIGHTS)] or self.names
            raise ModelError(
                f"{self.title}: it has no weights that transformers loads, found {', '.join(files[:8])}: expected "
                f"{WHOLE}, or {INDEX} and its files. Save the model with transformers' save_pretrained"
            )
        index = self.read(INDEX).get("weight_map")
        if not (isinstance(index, dict) and index and all(isinstance(file, str) for file in index.values())):
            raise ModelError(
                f"{self.title}: {INDEX} lists no tensors: expected a weight_map from the name of each to its file. "
                f"Fetch the file again; or delete it, if {WHOLE} is the whole model"
            )
        if missing := sorted(set(index.values()) - set(self.names)):
            raise ModelError(
                f"{self.title}: {INDEX} names {missing[0]} ({len(missing)} such files in all), which is not there: "
                "fetch the model again"
            )
        return sorted(set(index.values()))

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by its name.

        Raises:
            ModelError: as `weights`; or a file is not whole.
        """
        return {name: shape for name, (_, shape) in self._tables().items()}

    def number_formats(self) -> dict[str, str]:
        """The number format of every tensor as safetensors names it, such as BF16. Raises as `tensors`."""
        return {name: number_format for name, (number_format, _) in self._tables().items()}

    def _tables(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for file in self.weights():
            found |= self._table(file)
        return found

    def _table(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Number format and shape of each tensor, from the beginning of a file, whose size must be what they need."""
        path, broken = self._folder + name, f"{self.title}: {name} is not a whole safetensors file"
        stat = self._store.stat(path)
        with self._store.open_read(path) as file:
            begin = self._store.read_chunk(file, path, _LENGTH_BYTES)
            if begin.startswith(b"version "):
                raise ModelError(f"{broken}, but a pointer of Git LFS: run `git lfs pull` in the folder")
            length = int.from_bytes(begin, "little")
            if len(begin) < _LENGTH_BYTES or length > _LONGEST_TABLE:
                raise ModelError(f"{broken} ({stat.size if stat else 0} bytes): fetch the file again")
            text = self._store.read_chunk(file, path, length)
        try:
            table = {tensor: held for tensor, held in json.loads(text).items() if tensor != "__metadata__"}
            end = max((held["data_offsets"][1] for held in table.values()), default=0)
            found = {tensor: (str(held["dtype"]), tuple(held["shape"])) for tensor, held in table.items()}
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ModelError(f"{broken} ({type(error).__name__} in its table): fetch the file again") from None
        if stat is None or stat.size != (expected := _LENGTH_BYTES + length + end):
            size = stat.size if stat else 0
            raise ModelError(f"{broken}: expected {expected} bytes, found {size}: fetch the file again")
        return found

    @contextmanager
    def without_weights(self) -> Iterator[Path]:
        """A local folder with the model's files, from which a tokenizer and configurations can be loaded.

        For a model on S3 they are copied, all but the weights; the copies are deleted afterwards.
        """
        if self._store.is_local:
            yield Path(self._store.uri(self._folder.rstrip("/")) if self._folder else self._store.root)
            return
        with TemporaryDirectory(prefix="bolt-model-") as folder:
            for name in self.names:
                if not name.endswith(WEIGHTS):
                    path = Path(folder, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self._store.read_bytes(self._folder + name))
            yield Path(folder)


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model: of a model that also reads images, a nested one."""
    nested = (config.get(name) for name in ("text_config", "llm_config", "language_config"))
    return next((each for each in nested if isinstance(each, Mapping)), config)
