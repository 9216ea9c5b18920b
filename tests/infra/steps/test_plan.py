"""The plan of a call: which arguments are inputs, which are configuration, and what enters the key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.store import Store
from infra.text.templates import text_of


class Nested(BaseModel, frozen=True):
    rate: float = 0.5
    template: Path | None = None


class Config(BaseModel):
    model_config = ConfigDict(frozen=True)

    size: int = 3
    in_flight: int = 8
    nested: Nested = Nested()


class Folder(BaseModel, frozen=True):
    path: Path
    also: tuple[Path, ...] = ()

    def contents(self) -> str:
        return "".join(sorted(path.read_text() for path in self.path.glob("*.md")))


class Mutable(BaseModel):
    size: int = 3


@step(outside_key=("config.in_flight", "asked"), serves={"model": "policy"})
def thing(
    plan: Plan,
    store: Store,
    *,
    config: Config,
    given: Ref,
    shards: Sequence[Ref] = (),
    turns: Sequence[Sequence[Ref]] = (),
    model: Ref | None = None,
    folder: Folder | None = None,
    name: str = "a",
    asked: Any = None,
    servers: Any = None,
) -> Ref:
    raise NotImplementedError


thing.make.__module__ = "tasks.rewards.pair"  # a module of the project, as a step's is


def ref(digest: str) -> Ref:
    return Ref(kind="table", step="in", key=f"key of {digest}", uri="/somewhere", digest=digest, rows=1)


def served(engine: str = "e") -> Any:
    return SimpleNamespace(engine=lambda role: f"{role} {engine}")


def planned(**changes: Any) -> Plan:
    return thing.plan("thing", {"config": Config(), "given": ref("d"), "servers": served(), **changes})


def test_references_are_inputs_and_the_rest_is_configuration():
    made = planned(shards=[ref("0"), ref("1")], turns=[[ref("a")], [ref("b"), ref("c")]], model=ref("m"))
    assert made.step == "thing"
    assert made.provenance.inputs == {
        "given": ref("d"),
        "shards/0": ref("0"),
        "shards/1": ref("1"),
        "turns/0/0": ref("a"),
        "turns/1/0": ref("b"),
        "turns/1/1": ref("c"),
        "model": ref("m"),
    }
    config = {"size": 3, "nested": {"rate": 0.5, "template": None}}
    assert made.provenance.config == {"config": config, "name": "a", "folder": None, "engine of model": "policy e"}
    assert len(made.provenance.code) == 64


def test_an_omitted_argument_is_its_default():
    assert planned().key == thing.plan("thing", {"config": Config(), "given": ref("d"), "shards": []}).key


@pytest.mark.parametrize(
    "changes",
    [
        {"config": Config(size=4)},
        {"config": Config(nested=Nested(rate=0.25))},
        {"given": ref("e")},
        {"shards": [ref("0")]},
        {"turns": [[ref("0")]]},
        {"model": ref("m")},
        {"name": "b"},
    ],
)
def test_each_argument_counts(changes):
    assert planned(**changes).key != planned().key


def test_the_order_and_place_of_references_count():
    keys = {
        planned(shards=[ref("0"), ref("1")]).key,
        planned(shards=[ref("1"), ref("0")]).key,
        planned(turns=[[ref("0"), ref("1")]]).key,
        planned(turns=[[ref("0")], [ref("1")]]).key,
    }
    assert len(keys) == 4


def test_a_mapping_counts_by_its_names_and_values_in_any_order():
    keys = {planned(turns={"a": 1, "b": 2}).key, planned(turns={"b": 2, "a": 1}).key}
    assert len(keys) == 1
    keys |= {planned(turns={"a": 1}).key, planned(turns={"a": 2, "b": 1}).key, planned(turns={"a": 1, "c": 2}).key}
    assert len(keys) == 4


def test_the_name_of_the_step_counts():
    assert planned().key != thing.plan("other", {"config": Config(), "given": ref("d"), "servers": served()}).key


def test_the_place_of_an_input_does_not_count():
    moved = ref("d").model_copy(update={"uri": "/elsewhere", "key": "another"})
    assert planned(given=moved).key == planned().key


def test_what_is_declared_outside_the_key_does_not_count():
    assert planned(config=Config(in_flight=1)).key == planned().key
    assert planned(asked=object()).key == planned().key


def test_serving_options_count_where_the_model_is_served():
    assert planned(servers=served("f")).key == planned().key
    with_model = planned(model=ref("m"))
    assert planned(model=ref("m"), servers=served("f")).key != with_model.key


def test_a_path_counts_by_its_files_name_and_text(tmp_path):
    def key(path: Path) -> str:
        text_of.cache_clear()  # each run is a process of its own
        return planned(config=Config(nested=Nested(template=path))).key

    (tmp_path / "elsewhere").mkdir()
    for path in (tmp_path / "a.md", tmp_path / "b.md", tmp_path / "elsewhere" / "a.md"):
        path.write_text("ask {query}")
    first = key(tmp_path / "a.md")
    assert key(tmp_path / "elsewhere" / "a.md") == first
    assert key(tmp_path / "b.md") != first
    (tmp_path / "a.md").write_text("ask {query} kindly")
    assert key(tmp_path / "a.md") != first


def test_a_file_edited_after_the_plan_is_used_as_planned(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("one")
    before = planned(config=Config(nested=Nested(template=path))).key
    path.write_text("two")
    assert planned(config=Config(nested=Nested(template=path))).key == before
    assert text_of(path) == "one"


def test_a_configuration_that_reads_files_decides_what_counts(tmp_path):
    (tmp_path / "one.md").write_text("one")
    first = planned(folder=Folder(path=tmp_path)).key
    (tmp_path / "notes.txt").write_text("no candidate")
    assert planned(folder=Folder(path=tmp_path)).key == first
    (tmp_path / "two.md").write_text("two")
    assert planned(folder=Folder(path=tmp_path)).key != first


@pytest.mark.parametrize(("content", "message"), [(None, "no file"), (b"\xff\xfe", "not UTF-8")])
def test_an_unreadable_file_is_named_with_its_argument(tmp_path, content, message):
    path = tmp_path / "prompt.md"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"config\.nested\.template: .*{message}") as error:
        planned(config=Config(nested=Nested(template=path)))
    assert str(path) in str(error.value)
    assert "config.nested.template" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"given": object()}, "given: object has no exact JSON form"),
        ({"name": {1: "a"}}, "name: dict has no exact JSON form"),
        ({"name": {"a": object()}}, "name.a: object has no exact JSON form"),
        ({"name": {1, 2}}, "name: set has no exact JSON form"),
        ({"name": b"x"}, "name: bytes has no exact JSON form"),
        ({"name": np.int64(1)}, "name: int64 has no exact JSON form"),
        ({"name": [1, object()]}, "name/1: object has no exact JSON form"),
        ({"config": Mutable()}, "config: Mutable is mutable"),
        ({"shard": 1}, "unexpected keyword argument 'shard'"),
    ],
)
def test_arguments_that_cannot_enter_a_key_are_errors(changes, message):
    with pytest.raises(TypeError, match=message):
        planned(**changes)


def test_a_missing_argument_is_an_error():
    with pytest.raises(TypeError, match="given"):
        thing.plan("thing", {"config": Config()})


@pytest.mark.parametrize("rate", ["nan", "inf"])
def test_a_number_that_is_not_finite_is_an_error(rate):
    with pytest.raises(ValueError, match=rf"^config\.nested\.rate: {rate} has no JSON form"):
        planned(config=Config(nested=Nested(rate=float(rate))))
