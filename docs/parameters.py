"""Write docs/parameters.md from the flows' parameter models: `python docs/parameters.py [--check]`.

With `--check` nothing is written; the exit status is 1 where the file is out of date.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flows.bolt import BoltConfig
from flows.bootstrap import BootstrapConfig
from flows.curate_examples import CurateConfig
from flows.evaluate import EvaluateConfig
from flows.mine import MineConfig
from flows.nano import NanoConfig
from flows.online import OnlineConfig
from flows.publish import PublishConfig
from flows.rerun import RerunConfig
from flows.sft import SftFlowConfig

TARGET = Path(__file__).resolve().with_name("parameters.md")
FLOWS: dict[str, type[BaseModel]] = {
    "bolt": BoltConfig,
    "mine": MineConfig,
    "bootstrap": BootstrapConfig,
    "curate-examples": CurateConfig,
    "sft": SftFlowConfig,
    "online": OnlineConfig,
    "evaluate": EvaluateConfig,
    "nano": NanoConfig,
    "publish": PublishConfig,
    "rerun": RerunConfig,
}
BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"), ("min_length", "length ≥"))
HEAD = """# Parameters

Written by `docs/parameters.py` from the code; do not edit. How flows are run is in [flows.md](flows.md).

Every flow takes one parameter, `config`, an object with the fields below. An unknown field is refused. A field whose
type is a link is an object of its own: `config.sft.learning_rate` on the command line, a nested form in the Prefect UI.
Paths are relative to the folder that the flow runs in: the checkout.
"""


def nested(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in nested(each)]


def type_text(annotation: Any) -> str:
    """A type as a reader of YAML would say it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        shown = ["null" if each is types.NoneType else type_text(each) for each in inner]
        return ", ".join(shown) if all(get_origin(each) is Literal for each in inner) else " or ".join(shown)
    if origin is dict:
        return f"map of {type_text(inner[0])} to {type_text(inner[1])}"
    if origin is tuple:
        return f"list of {type_text(inner[0])}"
    if nested(annotation):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {"str": "text", "bool": "true, false", "float": "number", "Path": "path"}.get(
        annotation.__name__, str(annotation.__name__)
    )


def bounds_text(field: FieldInfo) -> str:
    found = [f"{sign} {getattr(each, name)}" for name, sign in BOUNDS for each in field.metadata if hasattr(each, name)]
    return ", " + ", ".join(found) if found else ""


def default_text(value: Any) -> str:
    """A default; of a nested object only what differs from that object's own defaults."""
    if isinstance(value, BaseModel):
        own = type(value).model_fields
        changed = {name: held for name, held in value if held != own[name].get_default(call_default_factory=True)}
        return ", ".join(f"{name} {default_text(held)}" for name, held in changed.items()) or "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value == ():
        return "none"
    return f"`{value}`"


def row(name: str, field: FieldInfo) -> str:
    default = "**required**" if field.is_required() else default_text(field.get_default(call_default_factory=True))
    meaning = field.description or about(*nested(field.annotation)[:1])
    cells = (f"`{name}`", type_text(field.annotation) + bounds_text(field), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def table(model: type[BaseModel]) -> str:
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *(row(name, field) for name, field in model.model_fields.items())])


def about(model: type[BaseModel] | None = None) -> str:
    """A model's own docstring on one line."""
    return " ".join((vars(model).get("__doc__") or "").split()) if model else ""


def section(title: str, model: type[BaseModel]) -> str:
    told = about(model)
    return f"## {title}\n\n{told}{told and chr(10) * 2}{table(model)}\n"


def page() -> str:
    """The whole of docs/parameters.md: the flows first, then each nested object once, in order of first mention."""
    waiting = list(FLOWS.values())
    inner: dict[str, type[BaseModel]] = {}
    while waiting:
        for field in waiting.pop(0).model_fields.values():
            for model in nested(field.annotation):
                if inner.setdefault(model.__name__, model) is not model:
                    raise ValueError(f"two parameter models are called {model.__name__}")
                waiting.append(model)
    flows = [section(f"flow `{name}`", model) for name, model in FLOWS.items()]
    return "\n".join([HEAD, *flows, *(section(name, model) for name, model in inner.items())])


def main(arguments: list[str]) -> int:
    current = page()
    if arguments == ["--check"]:
        if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == current:
            return 0
        print(f"{TARGET} is out of date: run python docs/parameters.py", file=sys.stderr)
        return 1
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    TARGET.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
