"""`python -m flows` and prefect.yaml: every preset fits its flow; what does not is refused by name."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from pydantic import BaseModel

from flows.__main__ import FAILED, OK, WRONG_INPUT, changed, check, deployment, deployments, flow_name, main, shown
from flows.__main__ import flow_of as flow_at
from flows.stages.run import SHARDS_AT_ONCE
from infra.errors import BadInput
from infra.settings import PROJECT_ROOT
from infra.store.manifest import Ref
from infra.store.store import StoreError

DEPLOYMENTS = yaml.safe_load((PROJECT_ROOT / "prefect.yaml").read_text())["deployments"]
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


@pytest.mark.parametrize(("name", "near"), [("bolt/nan", "bolt/nano"), ("evaluate/benchmark", "evaluate/benchmarks")])
def test_an_unknown_preset_is_refused_with_the_nearest_and_all_there_are(name, near):
    with pytest.raises(
        BadInput, match=rf"no preset '{name}' in prefect\.yaml: did you mean {near}\? There are .*mine/nano"
    ):
        deployment(name)


ONE = "deployments:\n- name: one\n  entrypoint: flows/sft.py:sft\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "prefect.yaml: Input should be a valid dictionary"),
        ("deployments:\n\t- x", "prefect.yaml cannot be read: .*line 2"),
        (ONE + "  parameters: *base\n", "undefined alias 'base' .*line 4"),
        (ONE.replace("name: one", "tags: []"), r"deployments\.0\.name: Field required"),
        (ONE + "  parameters:\n", r"deployments\.0\.parameters: Input should be a valid dictionary"),
        (ONE + "  parameters: {config: {day: 2020-01-01}}\n", r"parameters\.config.*day: .* not a valid JSON value"),
        (ONE + "  parameters: {config: {day: 2020-13-01}}\n", "month must be in"),
        (ONE.replace(".py:sft", ""), r"deployments\.0\.entrypoint: .* such as flows/sft\.py:sft"),
        (ONE + ONE.partition("\n")[2], "two presets sft/one"),
        (ONE + "  name: two\n", "the key name stands here twice .*line 4"),
        (ONE + "  parameters: {config: {a: 1, a: 2}}\n", "the key a stands here twice .*line 4"),
    ],
)
def test_a_mistake_in_prefect_yaml_is_told(tmp_path, text, said):
    path = tmp_path / "prefect.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        deployments(path)
    path.unlink()
    with pytest.raises(BadInput, match=r"prefect\.yaml cannot be read: .*No such file"):
        deployments(path)


def test_a_merged_key_may_be_given_another_value(tmp_path):
    path = tmp_path / "prefect.yaml"
    path.write_text(f"base: &base {{a: 1, b: 1}}\n{ONE}  parameters: {{config: {{<<: *base, a: 2}}}}\n")
    assert deployments(path)["sft/one"]["parameters"]["config"] == {"a": 2, "b": 1}


@pytest.mark.parametrize("entrypoint", ["flows/nothing.py:sft", "flows/sft.py:nothing", "flows/sft.py:sft_stage"])
def test_an_entrypoint_without_a_flow_is_told(monkeypatch, capsys, entrypoint):
    each = {"name": "one", "entrypoint": entrypoint, "parameters": {"config": {}}}
    with pytest.raises(BadInput, match=f"preset one in prefect.yaml: there is no flow at its entrypoint {entrypoint}"):
        flow_at(each)
    monkeypatch.setattr("flows.__main__.deployments", lambda: {"x/one": each})
    assert main([]) == WRONG_INPUT
    assert entrypoint in capsys.readouterr().err


@pytest.mark.parametrize("each", DEPLOYMENTS, ids=NAMES)
def test_every_presets_parameters_fit_its_flow(each, monkeypatch):
    monkeypatch.chdir(PROJECT_ROOT)
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
        ("config.online.iterations=-1", "iterations"),
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
def test_bad_assignments_are_refused(assignment, said):
    with pytest.raises(ValueError, match=said) as error:
        changed({"config": {"c": 2}}, [assignment])
    assert assignment in str(error.value)


class Stub:
    """In place of the flow `bolt`: takes its parameters and does as it is told."""

    def __init__(self, does: Callable[[dict[str, Any]], Any]) -> None:
        self.fn, self.does = flow_of(deployment("bolt/nano")).fn, does

    def __call__(self, **parameters: Any) -> Any:
        return self.does(parameters)


@pytest.fixture
def bolt(monkeypatch, tmp_path) -> Callable[[Callable[[dict[str, Any]], Any]], None]:
    """Put a stub in the place of the flow; its logs go to a temporary folder."""
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path))
    return lambda does: monkeypatch.setattr("flows.bolt.bolt", Stub(does))


def test_the_command_line_hands_the_parameters_to_the_flow(bolt, capsys):
    seen: dict[str, Any] = {}
    bolt(lambda parameters: seen.update(parameters) or {"path": "there"})
    changes = ["--set", "config.online.iterations=3", "--set", "config.sft.epochs=1"]
    assert main(["bolt/nano", "--dry-run", *changes]) == OK
    assert seen["config"]["dry_run"] is True
    assert (seen["config"]["online"]["iterations"], seen["config"]["sft"]["epochs"]) == (3, 1)
    assert capsys.readouterr().out == ""  # what a dry run returns has not been made
    assert main(["bolt/nano"]) == OK
    assert capsys.readouterr().out == "there\n"


def raising(error: Exception) -> Callable[[dict[str, Any]], Any]:
    def does(_parameters: dict[str, Any]) -> None:
        raise error

    return does


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (BadInput("queries.jsonl, row 3: no JSON"), WRONG_INPUT, "wrong input: queries.jsonl, row 3: no JSON"),
        (StoreError("the bucket does not exist"), FAILED, "failed: StoreError: the bucket does not exist"),
        (KeyError("reward"), FAILED, "failed: KeyError: 'reward'"),
    ],
)
def test_an_error_is_one_paragraph_and_the_logs_path_without_a_trace(bolt, tmp_path, capsys, error, status, said):
    bolt(raising(error))
    assert main(["bolt/nano"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    (log,) = (tmp_path / "logs").glob("flows-*.log")
    assert err.rstrip().endswith(str(log))


@pytest.mark.parametrize(
    "arguments", [["bolt/nanoo"], ["bolt/nano", "--set", "config.a"], ["bolt/nano", "--set", "sft=1"]]
)
def test_wrong_arguments_end_with_status_2_before_anything_runs(bolt, tmp_path, capsys, arguments):
    bolt(lambda _: pytest.fail("the flow ran"))
    assert main(arguments) == WRONG_INPUT
    assert capsys.readouterr().err.startswith("wrong input: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("config.online.itertions=3", "config.online.itertions: there is no such setting; did you mean 'iterations'?"),
        (
            "config.sft.learning_rat=1",
            "sft.learning_rat: there is no such setting; did you mean 'learning_rate'?",
        ),
        ("config.evaluate.problems.xyzzy=1", "there is no such setting; expected one of sources, draw"),
        ("config.bootstrap.queries.sources.0.pth=x", "sources.0.pth: there is no such setting; did you mean 'path'?"),
        ("config.online.iterations=many", "config.online.iterations: Input should be a valid integer"),
        (
            f"config.online.iterations={'9' * 5_000}",
            "config.online.iterations: Unable to parse input string as an integer",
        ),
        (f"config.online.iterations={'[' * 100_000}", "config.online.iterations: Input should be a valid integer"),
        ("config.online.generate.temperature=Infinity", "online.generate.temperature is inf: expected a finite number"),
        ("config.estimates.memory_share=1e999", "estimates.memory_share is inf: expected a finite number"),
        ("config.bootstrap.score.format_weight=nan", "score.format_weight: Input should be"),
        ("online.iterations=3", "every path begins with `config.`, say config.online"),
    ],
)
def test_a_mistyped_setting_is_refused_with_the_nearest(assignment, said):
    each = deployment("bolt/nano")
    with pytest.raises(BadInput) as error:
        check(changed(each["parameters"], [assignment]), flow_of(each))
    assert said in str(error.value)


def test_all_wrong_settings_are_named_at_once():
    each = deployment("bolt/nano")
    with pytest.raises(BadInput) as error:
        check(changed(each["parameters"], ["config.modell=x", "config.sft.epochs=-1"]), flow_of(each))
    assert len(str(error.value).splitlines()) == 2


def test_without_arguments_flows_and_presets_are_listed(capsys):
    assert main([]) == OK
    lines = capsys.readouterr().out.splitlines()
    for name, each in zip(NAMES, DEPLOYMENTS, strict=True):
        assert any(line.split() == [name, *each["description"].split()] for line in lines)
    for each in FLOWS:
        found = next(line for line in lines if line.startswith(f"{each.name} "))
        assert len(found.split()) > 3  # its first line


@pytest.mark.parametrize("each", FLOWS, ids=lambda each: each.name)
def test_help_lists_every_parameter_with_its_default(each, capsys):
    assert main([each.name, "--help"]) == OK
    out = capsys.readouterr().out
    assert "config.dry_run  (true, false; `false`)" in out
    assert "[" not in "".join(line for line in out.splitlines() if line.startswith("config."))  # no links of Markdown


def test_help_of_a_preset_shows_its_values(capsys):
    assert main(["bolt/nano", "--help"]) == OK
    out = capsys.readouterr().out
    assert "config.online.queries_per_iteration  (int, ≥ 1; `1200`)" in out
    assert "config.model  (text; `nano/models/instruct`)" in out


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == OK
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_bad_setting_of_the_environment_is_wrong_input(tmp_path):
    """The real command: one paragraph, no trace, the log has it."""
    own = {"BOLT_STORE": "ftp://somewhere", "BOLT_WORK_DIR": str(tmp_path), "PREFECT_HOME": str(tmp_path)}
    changes = ["--set", "config.longcot=longcot/a", "--set", "config.repo=a/b"]
    command = [sys.executable, "-m", "flows", "publish/hub", *changes]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=PROJECT_ROOT, env={**os.environ, **own}, check=False
    )
    assert done.returncode == WRONG_INPUT
    assert "wrong input: BOLT_STORE: must be a local folder, file:///folder or s3://bucket/prefix" in done.stderr
    assert "Traceback" not in done.stderr
    (log,) = (tmp_path / "logs").glob("flows-*.log")
    assert f"log: {log}" in done.stderr
    assert "Traceback" in log.read_text()


def test_a_locale_without_the_characters_is_no_error():
    own = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "flows", "sft", "--help"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, env={**os.environ, **own}, capture_output=True, check=True)
    assert b"config.sft.seed  (int, ? 0, < 4294967296; `0`)" in done.stdout


def test_a_work_folder_that_cannot_be_is_wrong_input(bolt, monkeypatch, capsys):
    bolt(lambda _: pytest.fail("the flow ran"))
    monkeypatch.setenv("BOLT_WORK_DIR", "/proc/self/status")
    assert main(["bolt/nano"]) == WRONG_INPUT
    assert capsys.readouterr().err.startswith("wrong input: BOLT_WORK_DIR: no logs can be kept in /proc/self/status")


def test_what_a_flow_made_is_shown():
    made = Ref(kind="model", step="sft", key="k", uri="", digest="", rows=1)
    assert shown(made) == "sft/k"
    stage = dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "greedy_accuracy"), 0.5)
    stage |= dict.fromkeys(("thought_tokens", "solution_tokens", "truncated", "malformed"), 0.25)
    assert shown([{"name": "sft", **stage}]).splitlines()[-1].startswith("| sft | 0.500 | 0.500 to 0.500 |")


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
    assert using == {"bolt", "bootstrap", "curate-examples", "online", "search"}


def test_flows_load_without_the_heavy_libraries():
    modules = ["flows.__main__", *(f"flows.{path.stem}" for path in Path(PROJECT_ROOT, "flows").glob("[a-z]*.py"))]
    code = (
        f"import {', '.join(modules)}, sys; "
        "print([n for n in ('torch', 'vllm', 'transformers', 'trl', 'deepspeed', 'datasets') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT_ROOT, check=True)
    assert done.stdout.strip() == "[]"
