"""What the benches of serving share: the options of those that send prompts, and a store with the served model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from bench.common import ROOT, bench_parser, model_folder
from infra.settings import Settings
from infra.store.manifest import Ref
from infra.store.models import import_model
from infra.store.store import Store


def prompts_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that say which prompts are sent to which model; by default the nano world's."""
    parser, nano = bench_parser(doc), ROOT / "nano"
    parser.add_argument("--model", type=model_folder, default=str(nano / "models" / "instruct"))
    parser.add_argument("--queries", type=Path, default=nano / "data" / "queries.jsonl")
    parser.add_argument("--examples", type=Path, default=nano / "examples")
    parser.add_argument("--template", type=Path, default=nano / "prompts" / "in_context.md")
    parser.add_argument("--example-template", type=Path, default=nano / "prompts" / "example.md")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--max-model-len", type=int, default=1024)
    return parser


def imported(model: Path, folder: Path) -> tuple[Settings, Store, Ref]:
    """A store in `folder` that holds a model, and its settings."""
    settings = Settings(store=str(folder / "store"), work_dir=folder)
    store = Store.open(settings)
    return settings, store, import_model(store, model.resolve(), model.resolve().name)


def bare_engine(command: list[str], log: Path) -> Any:
    """`vllm.LLM` with the options of a server's command line, in this process; its output goes to `log` from now on."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from vllm import LLM, EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(allow_abbrev=False))
    named, _of_the_http_server = parser.parse_known_args(command)
    return LLM.from_engine_args(EngineArgs.from_cli_args(named))
