"""`python -m flows` and prefect.yaml: every preset fits its flow; what does not is refused by name."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from pydantic import BaseModel

from flows.__main__ import PROJECT, changed, deployment, flow_name, main, told
from flows.stages.run import SHARDS_AT_ONCE
from infra.store.manifest import Ref

DEPLOYMENTS = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
NAMES = [f"{flow_name(each)}/{each['name']}" for each in DEPLOYMENTS]


def flow_of(each: dict):
    module, _, function = each["entrypoint"].rpartition(":")
    return getattr(importlib.import_module(module.removesuffix(".py").replace("/", ".")), function)


FLOWS = list({each["entrypoint"]: flow_of(each) for each in DEPLOYMENTS}.values())


def test_deployments_are_found_by_flow_and_name():
    assert len(set(NAMES)) == len(NAMES)
    assert deployment("bolt/nano")["entrypoint"] == "flows/bolt.py:bolt"
    for name, each in zip(NAMES, DEPLOYMENTS, strict=True):
        assert deployment(name) == each


def test_an_unknown_deployment_is_told_with_those_there_are():
    with pytest.raises(ValueError, match=r"no deployment 'bolt/huge' in prefect\.yaml; there are .*bolt/nano"):
        deployment("bolt/huge")


@pytest.mark.parametrize("each", DEPLOYMENTS, ids=NAMES)
def test_every_presets_parameters_fit_its_flow(each, monkeypatch):
    monkeypatch.chdir(PROJECT)
    found = flow_of(each)
    assert found.name == flow_name(each)
    parameters = found.validate_parameters(each["parameters"])
    assert set(parameters) == {"config"}
    assert parameters["config"].dry_run is False
    config = parameters["config"].model_dump()
    assert "paper" not in json.dumps(config, default=str)


@pytest.mark.parametrize("each", DEPLOYMENTS, ids=NAMES)
def test_an_unknown_parameter_is_refused_by_name(each):
    parameters = changed(each["parameters"], ["config.temprature=1"])
    with pytest.raises(Exception, match="temprature"):
        flow_of(each).validate_parameters(parameters)


@pytest.mark.parametrize(
    ("assignment", "field"),
    [
        ("config.online.dpo.betta=1", "betta"),
        ("config.online.iterations=0", "iterations"),
        ("config.bootstrap.generate.max_truncated_share=2", "max_truncated_share"),
        ("config.bootstrap.examples.format=plain", "format"),
        ("config.sft.ranks=many", "ranks"),
        ("config.serving.policy.gpus=1", "gpus"),
        ("config.evaluate.problems.path=null", "path"),
    ],
)
def test_a_wrong_value_deep_inside_is_refused_by_name(assignment, field):
    each = deployment("bolt/nano")
    with pytest.raises(Exception, match=field):
        flow_of(each).validate_parameters(changed(each["parameters"], [assignment]))


def test_changed_sets_json_or_text_and_leaves_the_rest_alone():
    given = {"config": {"a": {"b": 1}, "c": 2}}
    result = changed(given, ["config.a.b=[1, 2]", "config.name=sft/KEY=x", "config.new.deep=true", "config.c=null"])
    assert result == {"config": {"a": {"b": [1, 2]}, "c": None, "name": "sft/KEY=x", "new": {"deep": True}}}
    assert given == {"config": {"a": {"b": 1}, "c": 2}}


def test_later_assignments_win():
    assert changed({}, ["a=1", "a=2"]) == {"a": 2}


def test_changed_takes_a_lists_places_as_numbers():
    given = {"models": [{"name": "a"}, {"name": "b"}], "urls": ["x", "y"]}
    result = changed(given, ["models.1.name=c", "urls.0=z", 'models.0={"name": "d"}', "models.0.deep.er=1"])
    assert result == {"models": [{"name": "d", "deep": {"er": 1}}, {"name": "c"}], "urls": ["z", "y"]}
    assert given["models"][1] == {"name": "b"}


@pytest.mark.parametrize("place", ["models.2.name", "models.-1.name", "models.name", "models.2", "models.+", "models."])
def test_a_place_that_a_list_has_not_is_refused(place):
    with pytest.raises(ValueError, match=rf"--set {re.escape(place)}=x: .*expected a number from 0 to 1"):
        changed({"models": [{}, {}]}, [f"{place}=x"])


@pytest.mark.parametrize(
    ("assignment", "said"), [("config.c", "expected a.b.c=VALUE"), ("config.c.d=1", "c holds a plain value")]
)
def test_bad_assignments_are_told(assignment, said):
    with pytest.raises(ValueError, match=said) as error:
        changed({"config": {"c": 2}}, [assignment])
    assert assignment in str(error.value)


def test_the_command_line_hands_the_parameters_to_the_flow(monkeypatch, capsys):
    seen = {}
    import flows.bolt

    monkeypatch.setattr(flows.bolt, "bolt", lambda **parameters: seen.update(parameters) or {"path": "there"})
    main(["bolt/nano", "--dry-run", "--set", "config.online.iterations=3", "--set", "config.sft.epochs=1"])
    assert seen["config"]["dry_run"] is True
    assert (seen["config"]["online"]["iterations"], seen["config"]["sft"]["epochs"]) == (3, 1)
    assert capsys.readouterr().out == ""  # what a dry run returns has not been made
    main(["bolt/nano"])
    assert capsys.readouterr().out == "there\n"


def test_a_made_artifact_is_told_and_an_evaluation_shown():
    made = Ref(kind="model", step="sft", key="k", uri="", digest="", rows=1)
    assert told(made) == "sft/k"
    stage = dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "greedy_accuracy"), 0.5)
    stage |= dict.fromkeys(("thought_tokens", "solution_tokens", "truncated", "malformed"), 0.25)
    assert told([{"name": "sft", **stage}]).splitlines()[-1].startswith("| sft | 0.500 | 0.500 to 0.500 |")


def parameter_models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A flow's parameter model and all that it nests."""
    return {model}.union(
        *(parameter_models(each) for field in model.model_fields.values() for each in nested(field.annotation))
    )


def nested(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in nested(each)]


@pytest.mark.parametrize("each", FLOWS, ids=lambda each: each.name)
def test_every_parameter_is_described_and_frozen(each):
    for model in parameter_models(get_type_hints(each.fn)["config"]):
        assert model.model_config.get("frozen"), model
        assert model.model_config.get("extra") == "forbid", model
        assert [name for name, field in model.model_fields.items() if not field.description] == [], model


@pytest.mark.parametrize("each", FLOWS, ids=lambda each: each.name)
def test_shards_do_not_all_run_at_once(each):
    assert each.task_runner._max_workers == SHARDS_AT_ONCE


def test_a_reward_model_is_asked_for_only_where_it_is_used():
    using = {each.name for each in FLOWS if "reward_model" in get_type_hints(each.fn)["config"].model_fields}
    assert using == {"bolt", "bootstrap", "curate-examples", "online"}


def test_flows_load_without_the_heavy_libraries():
    modules = ["flows.__main__", *(f"flows.{path.stem}" for path in Path(PROJECT, "flows").glob("[a-z]*.py"))]
    code = (
        f"import {', '.join(modules)}, sys; "
        "print([n for n in ('torch', 'vllm', 'transformers', 'trl', 'deepspeed', 'datasets') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout.strip() == "[]"
