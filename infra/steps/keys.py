"""Cache keys: a short digest of everything that a step's result depends on."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from infra.settings import PROJECT_ROOT
from infra.store.manifest import Ref

PACKAGES = ("flows", "tasks", "cot_formats", "evals", "infra", "nano")
KEY_LENGTH = 20  # hex digits: 80 bits

_MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+")
_TEXT_FILE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:/[\w-]+)+\.md")


class CodeChangedError(RuntimeError):
    """The code on disk is no longer the code that this process runs: its results would stand under a wrong key."""


def cache_key(
    step: str,
    *,
    module: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Ref],
    ingredients: Mapping[str, str] = {},
    root: Path = PROJECT_ROOT,
) -> str:
    """20 hex digits over the step's name, its code, configuration, input digests and other ingredients.

    Args:
        step: the step's name.
        module: dotted name of the module that does the step, e.g. "tasks.responses.filter"; see `code_fingerprint`.
        config: plain JSON values; of a Pydantic model, `model_dump(mode="json")`.
        inputs: the artifacts read; only their digests count, not where they lie.
        ingredients: model id and revision, digests of chat template and prompts, ...
        root: folder that holds the project's packages.

    Raises:
        TypeError: a value has no exact JSON form (it is never turned into text instead).
        ValueError: a number is not finite; or as `code_fingerprint`.
    """
    for name, value in ingredients.items():
        if not isinstance(value, str):
            raise TypeError(f"cache key of {step}: ingredient {name} must be a string, not {type(value).__name__}")
    content = {
        "step": step,
        "code": code_fingerprint(module, root),
        "config": _plain(config, f"cache key of {step}: config"),
        "inputs": {name: ref.digest for name, ref in inputs.items()},
        "ingredients": dict(ingredients),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def code_fingerprint(module_name: str, root: Path = PROJECT_ROOT) -> str:
    """sha256 (hex) over the source of a module and of all project modules that it imports, directly or not.

    Imports are found in the syntax tree, those inside functions too, and packages' `__init__` count. A string that
    spells a project module ("infra.training.sft", say for `python -m`) counts as an import of it, and one that spells a
    text file of the project ("evals/prompts/zebralogic.md") counts with that file's text.

    Raises:
        ValueError: there is no such module under `root`.
        SyntaxError: a module does not parse.
        CodeChangedError: a module of the project is not as it was when this process began.
    """
    if _source_file(root, module_name) is None:
        raise ValueError(f"no project module {module_name} under {root}")
    found: dict[str, str] = {}
    waiting = [module_name]
    while waiting:
        for name in _with_packages(waiting.pop()):
            path = root / name if name.endswith(".md") else _source_file(root, name)
            if path is None or name in found or not path.is_file():
                continue
            source = path.read_text(encoding="utf-8")
            if root == PROJECT_ROOT and _at_start().get(path) != source:
                raise CodeChangedError(f"{path} was changed while this run was under way: start it again")
            found[name] = hashlib.sha256(source.encode()).hexdigest()
            if path.suffix == ".py":
                waiting += _imports(source, name, is_package=path.name == "__init__.py")
    return hashlib.sha256(json.dumps([module_name, sorted(found.items())]).encode()).hexdigest()


@cache
def _at_start() -> Mapping[Path, str]:
    """The sources and texts of the project's packages as this process began, when it imported them."""
    packages = [PROJECT_ROOT / package for package in PACKAGES]
    found = (path for package in packages for end in ("*.py", "*.md") for path in package.rglob(end))
    return {path: path.read_text(encoding="utf-8") for path in found}


def _with_packages(name: str) -> list[str]:
    """ "a.b.c" -> ["a", "a.b", "a.b.c"]: importing a module runs its packages' `__init__` first. Of a file, itself."""
    if "/" in name:
        return [name]
    names = name.split(".")
    return [".".join(names[:end]) for end in range(1, len(names) + 1)]


def _source_file(root: Path, name: str) -> Path | None:
    if name.split(".", 1)[0] not in PACKAGES:
        return None
    place = root.joinpath(*name.split("."))
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


@lru_cache(maxsize=1024)
def _imports(source: str, module: str, *, is_package: bool) -> tuple[str, ...]:
    """Dotted names that a module may import; those that are no project modules are sorted out by the caller."""
    return tuple(
        dict.fromkeys(
            name for node in ast.walk(ast.parse(source, module)) for name in _named_by(node, module, is_package)
        )
    )


def _named_by(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = module.split(".")
        if node.level:
            base = base[: len(base) - node.level + is_package]
        start = ".".join([*(base if node.level else []), *([node.module] if node.module else [])])
        yield start
        yield from (f"{start}.{alias.name}" for alias in node.names)
    elif (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and (_MODULE.fullmatch(node.value) or _TEXT_FILE.fullmatch(node.value))
    ):
        yield node.value


def _plain(value: Any, where: str) -> Any:
    """The value as JSON would read it back. Raises `TypeError`, `ValueError` naming the place."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no JSON form")
        return value
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{where}: keys must be strings, found {odd[0]!r}")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    hint = " (use model_dump(mode='json'))" if hasattr(value, "model_dump") else ""
    raise TypeError(f"{where}: {type(value).__name__} has no exact JSON form{hint}")


_at_start()
