"""Run a preset here: `python -m flows bolt/nano [--set config.online.iterations=3] [--dry-run]`.

Without arguments, all flows and presets are listed. `python -m flows FLOW --help` lists a flow's parameters. A preset
is a deployment of prefect.yaml: `prefect deployment run` starts the same flow with the same parameters on a worker.

The last line printed is what the flow made: the path of its summary, or the artifact STEP/KEY; `evaluate` prints its
table. The exit status is 0 if all went well, 1 if the run failed, and 2 if the input was wrong.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import pkgutil
import signal
import sys
import textwrap
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from pydantic import BaseModel, Field, JsonValue, ValidationError

from flows.stages.logs import logged, paragraph
from flows.stages.parameters import bounds_text, default_text, leaves, nearest, problems, type_text
from infra.errors import BadInput
from infra.proxies import spare_loopback
from infra.settings import PROJECT_ROOT
from infra.store.manifest import Ref

USAGE = "python -m flows FLOW/PRESET [--set config.a.b=VALUE ...] [--dry-run] [--debug]"
OK, FAILED, WRONG_INPUT = 0, 1, 2

Deployment = dict[str, Any]


class Preset(BaseModel):
    """What a deployment must have to be a preset."""

    name: str
    entrypoint: str = Field(pattern=r"^\w+(/\w+)*\.py:\w+$")
    description: str = ""
    parameters: dict[str, JsonValue] = {}


class Presets(BaseModel):
    """What prefect.yaml must have."""

    deployments: list[Preset]


class Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice; of these, YAML's own loader silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value]
        for number, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:number]]:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} stands here twice", problem_mark=key.start_mark
                )
        return node


def deployments(path: Path = PROJECT_ROOT / "prefect.yaml") -> dict[str, Deployment]:
    """All deployments of prefect.yaml, by FLOW/PRESET.

    Raises:
        BadInput: it is no YAML, a deployment is not as `Preset`, or two have the same name.
    """
    try:
        with path.open("rb") as file:
            read = yaml.load(file, Loader)  # noqa: S506  # a safe one
        Presets.model_validate(read)
    except ValidationError as error:
        raise BadInput(
            f"{'; '.join(problems(error, Presets, path.name))}. Correct it there (the first deployment is number 0): "
            "each has a `name`, an `entrypoint` such as flows/sft.py:sft, and `parameters` as in JSON"
        ) from None
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        raise BadInput(f"{path.name} cannot be read: {' '.join(str(error).split())}. Correct it there") from None
    names = [f"{flow_name(each)}/{each['name']}" for each in read["deployments"]]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"{path.name} has two presets {doubled[0]}: give one of them another name")
    return dict(zip(names, read["deployments"], strict=True))


def deployment(name: str, path: Path = PROJECT_ROOT / "prefect.yaml") -> Deployment:
    """The deployment FLOW/PRESET.

    Raises:
        BadInput: there is none of that name; the text has the nearest one and all there are.
    """
    found = deployments(path)
    if name not in found:
        near = nearest(name, found)
        hint = f"did you mean {near}? " if near else ""
        raise BadInput(f"no preset {name!r} in {path.name}: {hint}There are {', '.join(found)}")
    return found[name]


def flow_name(each: Deployment) -> str:
    """The name of a deployment's flow, as Prefect shows it."""
    return str(each["entrypoint"]).rpartition(":")[2].replace("_", "-")


def flow_of(each: Deployment) -> Any:
    """The flow of a deployment, imported. Raises `BadInput` if there is none."""
    _definition(each)
    return pkgutil.resolve_name(each["entrypoint"].replace(".py:", ":").replace("/", "."))


def listing() -> str:
    """All flows with their first line, and below each its presets with theirs."""
    lines = [f"usage: {USAGE}", "       python -m flows FLOW --help    the parameters of a flow", ""]
    presets: dict[str, list[tuple[str, Deployment]]] = {}
    for name, each in deployments().items():
        presets.setdefault(flow_name(each), []).append((name, each))
    for flow, found in presets.items():
        lines.append(f"{flow:26}{_first_line(found[0][1])}")
        lines += [f"  {name:24}{each.get('description', '')}" for name, each in found]
    return "\n".join(lines)


def _first_line(each: Deployment) -> str:
    """The first line of a flow's docstring, read without importing the flow."""
    return (ast.get_docstring(_definition(each)) or "").partition("\n")[0]


def _definition(each: Deployment) -> ast.FunctionDef:
    """The definition of a deployment's flow, which is not imported. Raises `BadInput` if there is none."""
    file, _, function = each["entrypoint"].rpartition(":")
    path = PROJECT_ROOT / file
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == function and node.decorator_list:
            return node
    raise BadInput(
        f"preset {each['name']} in prefect.yaml: there is no flow at its entrypoint {each['entrypoint']}: expected "
        "FILE.py:FUNCTION, a function with @flow, such as flows/sft.py:sft"
    )


def help_text(name: str) -> str:
    """The parameters of a flow, or of a preset with its values.

    Raises:
        BadInput: there is no such flow or preset.
    """
    flows = {flow_name(each): each for each in reversed(deployments().values())}
    each = flows[name] if name in flows else deployment(name)
    given = {} if name in flows else each.get("parameters", {}).get("config", {})
    run = flow_of(each)
    lines = [f"usage: {USAGE}", "", f"{name}: {run.description or ''}".rstrip(), ""]
    for path, field, value in leaves(_config_of(run), given, "config"):
        required = value is None and field.is_required()
        shown = "required" if required else json.dumps(value) if isinstance(value, list | dict) else default_text(value)
        lines.append(f"{path}  ({type_text(field.annotation)}{bounds_text(field)}; {shown})")
        lines.append(textwrap.fill(field.description or "", 110, initial_indent="    ", subsequent_indent="    "))
    return "\n".join(lines)


def _config_of(run: Any) -> type[BaseModel]:
    """The model of a flow's one parameter."""
    model: type[BaseModel] = get_type_hints(run.fn)["config"]
    return model


def changed(parameters: Mapping[str, Any], assignments: list[str]) -> dict[str, Any]:
    """The parameters with each `a.b.c=VALUE` set; VALUE is JSON, or else plain text. Items of a list go by number.

    Raises:
        BadInput: there is no such place.
    """
    result: dict[str, Any] = json.loads(json.dumps(parameters))
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign:
            raise BadInput(f"--set {assignment}: expected a.b.c=VALUE")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):  # a number of 5,000 digits, or brackets as deep, are no JSON for Python
            value = text
        *parents, last = path.split(".")
        place: Any = result
        for name in parents:
            place = place.setdefault(name, {}) if isinstance(place, dict) else place[_number(place, name, assignment)]
            if not isinstance(place, dict | list):
                raise BadInput(f"--set {assignment}: {name} holds a plain value, so nothing can be set inside it")
        place[last if isinstance(place, dict) else _number(place, last, assignment)] = value
    return result


def _number(place: list[Any], name: str, assignment: str) -> int:
    """The place in a list that part of a path names, from 0."""
    if not name.isdecimal() or int(name) >= len(place):
        raise BadInput(f"--set {assignment}: {name}: expected a number from 0 to {len(place) - 1}, a place in a list")
    return int(name)


def check(parameters: Mapping[str, Any], run: Any) -> None:
    """Validate the parameters before anything starts.

    Raises:
        BadInput: every parameter that is unknown, missing or wrong, a line each.
    """
    if odd := [name for name in parameters if name != "config"]:
        raise BadInput(f"{odd[0]}: there is no such parameter: every path begins with `config.`, say config.{odd[0]}")
    try:
        _config_of(run).model_validate(parameters.get("config", {}))
    except ValidationError as error:
        raise BadInput("\n".join(problems(error, _config_of(run)))) from None


def shown(result: Any) -> str:
    """What to print of a flow's result."""
    from infra.text.markdown import markdown_table
    from tasks.report.report import stage_rows

    if isinstance(result, Ref):
        return f"{result.step}/{result.key}"
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        return str(result["path"])
    return markdown_table(stage_rows(result)) if result else ""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows", usage=USAGE, add_help=False)
    parser.add_argument("deployment", nargs="?")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="config.a.b=VALUE")
    for flag in ("--dry-run", "--debug", "--version", "--help", "-h"):
        parser.add_argument(flag, action="store_true")
    given = parser.parse_args(argv)
    if given.version:
        print(version("bolt-longcot"))
        return OK
    try:
        if given.deployment is None:
            print(listing())
            return OK
        spare_loopback()
        if given.help or given.h:
            print(help_text(given.deployment))
            return OK
        # Before Prefect is imported. A temporary server does not start in its 20 s on a busy machine.
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
        each = deployment(given.deployment)
        extra = ["config.dry_run=true"] if given.dry_run else []
        parameters = changed(each.get("parameters", {}), [*given.assignments, *extra])
        run = flow_of(each)
        check(parameters, run)
        return run_flow(run, parameters, debug=given.debug)
    except BadInput as error:
        print(f"wrong input: {error}", file=sys.stderr)
        return WRONG_INPUT


def run_flow(run: Any, parameters: Mapping[str, Any], *, debug: bool = False) -> int:
    """Run a flow and print what it made; an error is one paragraph and the log's path. Returns the exit status.

    Raises:
        BadInput: as `logged`; nothing was run.
    """
    with logged(debug=debug) as log:
        try:
            result = run(**parameters)
        except BadInput as error:
            print(f"\nwrong input: {paragraph(error)}\nlog: {log}", file=sys.stderr)
            return WRONG_INPUT
        except Exception as error:  # noqa: BLE001  # the end of the program: the log has the trace
            print(f"\nfailed: {paragraph(error)}\nlog, with the trace: {log}", file=sys.stderr)
            return FAILED
    if result and not parameters["config"].get("dry_run"):
        print(shown(result))
    return OK


def _end(signum: int, _frame: object) -> NoReturn:
    """End with the usual status of the signal, and with Prefect's own server: SIGTERM's default leaves it behind."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a locale may lack the characters
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main(sys.argv[1:]))
