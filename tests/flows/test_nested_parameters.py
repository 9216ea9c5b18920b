"""A nested object given in part keeps the documented defaults of its other fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_type_hints

import pytest
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from flows.__main__ import changed, deployments, flow_of
from flows.stages.parameters import leaves, nested
from infra.settings import PROJECT_ROOT

FLOWS = {each["entrypoint"]: flow_of(each) for each in deployments().values()}
CONFIGS = {run.name: get_type_hints(run.fn)["config"] for run in FLOWS.values()}


def fields_below(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[tuple[str, FieldInfo]]:
    """Every field of a model and of the models nested in it, also in lists and unions; each model once."""
    seen.add(model)
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        for inner in nested(field.annotation):
            if inner not in seen:
                yield from fields_below(inner, seen)


DEFAULTED = {
    f"{flow} {place}": field
    for flow, model in CONFIGS.items()
    for place, field in fields_below(model, set())
    if isinstance(field.default, BaseModel)
}


def test_the_walk_finds_the_nested_objects():
    assert {"evaluate EvaluateStage.generate", "evaluate JudgedStage.generate"} < DEFAULTED.keys()
    assert {"bolt ProblemsConfig.draw", "mine MineStage.draw", "nano NanoConfig.reward"} < DEFAULTED.keys()


@pytest.mark.parametrize("place", DEFAULTED)
def test_a_nested_object_given_in_part_keeps_the_documented_defaults(place):
    field = DEFAULTED[place]
    documented = field.default.model_dump()
    reader = TypeAdapter(field.annotation)
    assert reader.validate_python({}).model_dump() == documented
    for name, value in documented.items():
        assert reader.validate_python({name: value}).model_dump() == documented, name


@pytest.mark.parametrize("name", deployments())
def test_a_default_that_is_spelled_out_changes_nothing(name, monkeypatch):
    monkeypatch.chdir(PROJECT_ROOT)
    each = deployments()[name]
    run = flow_of(each)
    model, given = get_type_hints(run.fn)["config"], each["parameters"]
    plain = model.model_validate(given["config"])
    for path, field, value in leaves(model, given["config"], "config"):
        if not field.is_required() and value is not None and not isinstance(value, list | dict):
            text = TypeAdapter(object).dump_json(value).decode()
            assert model.model_validate(changed(given, [f"{path}={text}"])["config"]) == plain, path
