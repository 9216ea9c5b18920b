"""`python -m flows` and prefect.yaml: every preset fits its flow; what does not is refused by name."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.__main__ import PROJECT, changed, deployment, flow_name, main

DEPLOYMENTS = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
NAMES = [f"{flow_name(each)}/{each['name']}" for each in DEPLOYMENTS]


def flow_of(each: dict):
    module, _, function = each["entrypoint"].rpartition(":")
    return getattr(importlib.import_module(module.removesuffix(".py").replace("/", ".")), function)


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
        ("config.bootstrap.generate.truncated_limit=2", "truncated_limit"),
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
    assert capsys.readouterr().out == "there\n"


def test_flows_load_without_the_heavy_libraries():
    modules = ["flows.__main__", *(f"flows.{path.stem}" for path in Path(PROJECT, "flows").glob("[a-z]*.py"))]
    code = (
        f"import {', '.join(modules)}, sys; "
        "print([n for n in ('torch', 'vllm', 'transformers', 'trl', 'deepspeed', 'datasets') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout.strip() == "[]"
