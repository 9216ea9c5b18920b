"""The run form in Prefect's UI, from the schema that a deployment stores: what people change first comes first."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from flows.__main__ import deployments, flow_of

FLOWS = list({each["entrypoint"]: flow_of(each) for each in deployments().values()}.values())
LAST = ("serving", "cluster", "ray", "estimates", "dry_run")
FIRST = {
    "bolt": ("model", "reward_model", "bootstrap", "sft", "online", "evaluate"),
    "bootstrap": ("model", "reward_model", "queries"),
    "curate-examples": ("examples", "model", "reward_model"),
    "evaluate": ("models", "benchmarks"),
    "mine": ("queries",),
    "nano": ("instruct", "reward"),
    "online": ("model", "reward_model", "online"),
    "publish": ("longcot", "repo"),
    "rerun": ("hours",),
    "search": ("model", "reward_model", "judge", "steps", "problems", "searches", "sampling", "verifier"),
    "sft": ("model", "longcot", "sft"),
    "still1": ("model", "steps", "adapt", "sft", "improve", "evaluate", "search"),
    "still2": ("model", "format", "imitate", "sft", "explore", "improve", "evaluate"),
    "study": ("arms", "seeds", "only", "base"),
}


@pytest.mark.parametrize("each", FLOWS, ids=lambda each: each.name)
def test_the_order_of_the_form(each):
    stored = each.parameters.model_dump()
    properties = stored["definitions"][stored["properties"]["config"]["$ref"].rpartition("/")[2]]["properties"]
    # Both UIs sort by `position`; properties without one keep their order.
    order = sorted(properties, key=lambda name: properties[name].get("position", 0))
    assert order == list(properties) == list(get_type_hints(each.fn)["config"].model_fields)
    first, shared = FIRST[each.name], [name for name in LAST if name in properties]
    assert tuple(order[: len(first)]) == first
    assert order[-len(shared) :] == shared


def test_the_form_has_the_bounds_of_settings():
    stored = next(each for each in FLOWS if each.name == "bolt").parameters.model_dump()["definitions"]
    assert stored["SftRecipe"]["properties"]["epochs"]["maximum"] == 10_000
    assert (
        stored["SftRecipe"]["properties"]["seed"] | {"minimum": 0, "exclusiveMaximum": 2**32, "type": "integer"}
        == (stored["SftRecipe"]["properties"]["seed"])
    )
    formats = {"enum": ["auto", "bfloat16", "float16", "float32"], "type": "string"}
    assert stored["ServerOptions"]["properties"]["dtype"]["anyOf"] == [formats, {"type": "null"}]


@pytest.mark.parametrize("each", FLOWS, ids=lambda each: each.name)
def test_the_listed_line_of_a_flow_is_short(each):
    line = each.description.partition("\n")[0]
    assert line.endswith(".")
    assert len(line) < 90
    assert each.fn.__globals__["__doc__"].startswith("`python -m flows " + each.name + "/")


def test_the_listed_line_of_a_preset_is_short():
    assert [name for name, each in deployments().items() if len(each["description"]) >= 110] == []
