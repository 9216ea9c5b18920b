"""Write docs/parameters.md from the flows' parameter models: `python docs/parameters.py [--check]`.

With `--check` nothing is written; the exit status is 1 if the file is out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

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
from flows.stages.parameters import about, bounds_text, default_text, nested, type_text
from flows.still2 import Still2Config
from flows.study import StudyConfig

TARGET = Path(__file__).resolve().with_name("parameters.md")
FLOWS: dict[str, type[BaseModel]] = {
    "bolt": BoltConfig,
    "mine": MineConfig,
    "bootstrap": BootstrapConfig,
    "curate-examples": CurateConfig,
    "sft": SftFlowConfig,
    "online": OnlineConfig,
    "evaluate": EvaluateConfig,
    "still2": Still2Config,
    "study": StudyConfig,
    "nano": NanoConfig,
    "publish": PublishConfig,
    "rerun": RerunConfig,
}
HEAD = """# Parameters

Written by `docs/parameters.py` from the code; do not edit. How flows are run is in [flows.md](flows.md).

Every flow takes one parameter, `config`, an object with the fields below. An unknown field is refused. A field whose
type is a link is an object of its own: `config.sft.learning_rate` on the command line, a nested form in the Prefect UI.
Paths are relative to the folder that the flow runs in: the checkout.
"""


def linked(annotation: Any) -> str:
    """A type as a reader of YAML would say it; a nested model as a link to its section."""
    text = type_text(annotation)
    for model in nested(annotation):
        text = re.sub(rf"\b{model.__name__}\b(?!\])", f"[{model.__name__}](#{model.__name__.lower()})", text)
    return text


def row(name: str, field: FieldInfo) -> str:
    """A field's row in the table of its model."""
    default = "**required**" if field.is_required() else default_text(field.get_default(call_default_factory=True))
    meaning = field.description or about(*nested(field.annotation)[:1])
    cells = (f"`{name}`", linked(field.annotation) + bounds_text(field), default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def table(model: type[BaseModel]) -> str:
    """A model's fields as a Markdown table."""
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *(row(name, field) for name, field in model.model_fields.items())])


def section(title: str, model: type[BaseModel]) -> str:
    """A model's section: heading, docstring, table."""
    text = about(model)
    return f"## {title}\n\n{text}{text and chr(10) * 2}{table(model)}\n"


def page() -> str:
    """The text of docs/parameters.md: the flows first, then each nested object once, in order of first mention.

    Raises:
        ValueError: two models have the same name, and so would have the same link.
    """
    waiting = list(FLOWS.values())
    inner: dict[str, type[BaseModel]] = {}
    while waiting:
        for field in waiting.pop(0).model_fields.values():
            for model in nested(field.annotation):
                if inner.setdefault(model.__name__, model) is not model:
                    raise ValueError(f"two parameter models are called {model.__name__}: rename one")
                waiting.append(model)
    flows = [section(f"flow `{name}`", model) for name, model in FLOWS.items()]
    return "\n".join([HEAD, *flows, *(section(name, model) for name, model in inner.items())])


def main(arguments: list[str]) -> int:
    """Write or check the file; returns the exit status."""
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
