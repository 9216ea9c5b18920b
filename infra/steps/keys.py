"""Cache keys: short digests of everything that a step's result depends on."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from tenacity import retry, retry_if_exception_type, stop_after_attempt

from infra.settings import PACKAGES, PROJECT_ROOT
from infra.store.manifest import Ref

KEY_LENGTH = 20  # hex digits: 80 bits

# With a colon it is the module of "module:function", also as the beginning of an f-string.
_MODULE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?=:|$)")
_TEXT_FILE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:/[\w-]+)+\.md")


class CodeChangedError(RuntimeError):
    """The code on disk is no longer the code that this process runs, so its results would get the wrong key."""


def cache_key(
    step: str,
    *,
    code: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Ref],
    ingredients: Mapping[str, str] = {},
) -> str:
    """`KEY_LENGTH` hex digits over the step's name, code, configuration, input digests and other ingredients.

    Args:
        step: the step's name.
        code: `code_fingerprint` of the step's module.
        config: plain JSON values, as `infra.steps.step` makes of arguments.
        inputs: the artifacts that the step reads; only their digests count, not their places.
        ingredients: further texts, such as the serving options of a model.

    Raises:
        TypeError: a value is not JSON.
        ValueError: a number is not finite.
    """
    for name, value in ingredients.items():
        if not isinstance(value, str):
            raise TypeError(f"cache key of {step}: ingredient {name} must be a string, not {type(value).__name__}")
    content = {
        "step": step,
        "code": code,
        "config": dict(config),
        "inputs": {name: ref.digest for name, ref in inputs.items()},
        "ingredients": dict(ingredients),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def code_fingerprint(module_name: str, root: Path = PROJECT_ROOT) -> str:
    """sha256 (hex) over the source of a module and of all project modules that it imports, directly or indirectly.

    Imports are found in the syntax tree, including those inside functions, and the `__init__` of packages counts. A
    string that names a project module ("infra.training.sft", as for `python -m`) counts as an import of it. A string
    that names a text file of the project ("evals/prompts/zebralogic.md") includes that file's text.

    Args:
        module_name: its dotted name, such as "tasks.responses.filter".
        root: the folder of the project's packages.

    Raises:
        ValueError: the module does not exist under `root`.
        SyntaxError: a module does not parse.
        CodeChangedError: a module of the project has changed since this process began.
    """
    if _source_file(root, module_name) is None:
        raise ValueError(f"no project module {module_name} under {root}")
    found: dict[str, str] = {}
    seen: set[str] = set()
    waiting = [module_name]
    while waiting:
        for name in _with_packages(waiting.pop()):
            if name in seen:
                continue
            seen.add(name)
            path = root / name if name.endswith(".md") else _source_file(root, name)
            if path is None or not path.is_file():
                continue
            source = path.read_text(encoding="utf-8")
            if root == PROJECT_ROOT and _at_start().get(path) != source:
                raise CodeChangedError(f"{path} was changed while this run was in progress: start the run again")
            found[name] = hashlib.sha256(source.encode()).hexdigest()
            if path.suffix == ".py":
                waiting += _imports(source, name, is_package=path.name == "__init__.py")
    return hashlib.sha256(json.dumps([module_name, sorted(found.items())]).encode()).hexdigest()


@cache
def _at_start() -> Mapping[Path, str]:
    """The source and text files of the project's packages when this process began and imported them."""
    packages = [PROJECT_ROOT / package for package in PACKAGES]
    found = (path for package in packages for end in ("*.py", "*.md") for path in package.rglob(end))
    return {path: path.read_text(encoding="utf-8") for path in found}


def _with_packages(name: str) -> list[str]:
    """ "a.b.c" -> ["a", "a.b", "a.b.c"], since importing a module runs its packages' `__init__` first. A file's name is
    returned as it is."""
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
    """Dotted names that a module may import; the caller ignores those that are not project modules."""
    nodes = ast.walk(_tree(source, module))
    return tuple(dict.fromkeys(name for node in nodes for name in _named_by(node, module, is_package)))


@retry(retry=retry_if_exception_type(SystemError), stop=stop_after_attempt(21), reraise=True)
def _tree(source: str, module: str) -> ast.Module:
    """The syntax tree of a module.

    CPython 3.11 counts the depth of this recursion per interpreter. A parse in another thread or in a finalizer
    disturbs this one, which then raises `SystemError` and succeeds when it is repeated.
    """
    return ast.parse(source, module)


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
        and (named := _MODULE.match(node.value) or _TEXT_FILE.fullmatch(node.value))
    ):
        yield named[0]


_at_start()
