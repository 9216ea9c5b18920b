"""Fixtures for the tests of steps: a local store, tables in it, the nano world's tokenizer as a model artifact."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import Answer, FakeVllm

from infra.settings import Settings
from infra.steps.step import Job, Plan
from infra.store.manifest import Provenance, Ref, read_manifest
from infra.store.models import import_model
from infra.store.store import Store
from infra.store.tables import read_rows, write_table
from nano.vocabulary import save_tokenizer, tokenizer


class World:
    """A store for one test, with shorthands for what tests do with it."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(store=str(folder / "store"), work_dir=folder / "work")
        self.store = Store.open(self.settings)
        self.work_dir = folder / "work"

    def table(self, schema: Any, rows: list[dict[str, Any]], step: str = "given", key: str = "k") -> Ref:
        return write_table(self.store, step, key, schema, [rows], Provenance())

    def do(
        self, step: Any, name: str = "made", key: str = "k", inputs: dict[str, Ref] | None = None, **more: Any
    ) -> Ref:
        """Run a step as a Prefect worker does, but without Prefect."""
        planned = Plan(step=name, key=key, provenance=Provenance(inputs=inputs or {}))
        made = step.task.fn(Job(planned, self.settings, more))
        assert isinstance(made, Ref)
        return made

    def rows(self, ref: Ref) -> list[dict[str, Any]]:
        return list(read_rows(self.store, ref))

    def counts(self, ref: Ref) -> dict[str, Any]:
        return dict(read_manifest(self.store, ref)["counts"])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[[str], World]:
    return lambda name: World(tmp_path / name)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The final progress of each step, as a share, by the step's name; recorded without Prefect."""
    drawn: dict[str, float] = {}

    @contextmanager
    def drawing(step: str, done: Callable[[], float], total: Any, *_: Any, **__: Any) -> Iterator[None]:
        yield
        drawn[step] = done() / (total() if callable(total) else total)

    for module in (
        "infra.steps.progress",
        "tasks.responses.generate",
        "tasks.rewards.score",
        "tasks.queries.ask",
        "tasks.evaluation.verdicts",
        "tasks.training.train",
    ):
        monkeypatch.setattr(f"{module}.progress", drawing)
    return drawn


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the nano world's tokenizer and no weights."""
    folder = tmp_path_factory.mktemp("nano-model")
    save_tokenizer(folder)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def model(world: World, tokenizer_folder: Path) -> Ref:
    return import_model(world.store, tokenizer_folder, "nano")


@pytest.fixture
def opening_model(world: World, tmp_path: Path) -> Callable[[str], Ref]:
    """A model whose chat template, like R1's, ends the prompt with the opening delimiter of the thoughts."""

    def make(opened: str = "<think>\n") -> Ref:
        spoken = tokenizer()
        opening = "{% if add_generation_prompt %}{{ " + json.dumps(opened) + " }}{% endif %}"
        spoken.chat_template += opening
        spoken.save_pretrained(tmp_path / "opening")
        (tmp_path / "opening" / "config.json").write_text("{}")
        return import_model(world.store, tmp_path / "opening", "opening")

    return make


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeVllm]]:
    """Start fake servers; they are closed after the test."""
    started: list[FakeVllm] = []

    def start(**answers: Answer) -> FakeVllm:
        started.append(FakeVllm(**answers))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def response() -> Callable[..., dict[str, Any]]:
    """A row of `responses`, well-formed apart from `changes`."""

    def row(query_id: str = "q", sample: int = 0, **changes: Any) -> dict[str, Any]:
        plain = {
            "query_id": query_id,
            "sample": sample,
            "example_ids": [],
            "seed": None,
            "text": f"text of {query_id}/{sample}",
            "thoughts": f"plan : {sample} .",
            "solution": f"answer : {sample} .",
            "violations": [],
            "finish_reason": "stop",
            "prompt_tokens": 5,
            "completion_tokens": 9,
            "thought_tokens": 4,
            "solution_tokens": 4,
        }
        return {**plain, **changes}

    return row


@pytest.fixture
def query() -> Callable[..., dict[str, Any]]:
    """A row of `queries`, with `changes`."""

    def row(query_id: str, text: str = "which day is it ?", **changes: Any) -> dict[str, Any]:
        plain = {"query_id": query_id, "query": text, "source": "f.jsonl", "source_row": 0, "reference": None}
        return {**plain, "criteria": None, "difficulty": 5, "topic": None, "step_count": None, **changes}

    return row
