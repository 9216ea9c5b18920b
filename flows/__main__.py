"""Run a deployment of prefect.yaml here: `python -m flows bolt/nano [--dry-run] [--set config.online.iterations=3]`.

The last line printed is what the flow made: the path of its summary, or the artifact STEP/KEY; `evaluate` prints its
table. `prefect deployment run` starts the same flow with the same parameters on a worker.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml

from infra.settings import PROJECT_ROOT
from infra.store.manifest import Ref


def deployment(name: str, path: Path = PROJECT_ROOT / "prefect.yaml") -> dict[str, Any]:
    """The deployment FLOW/NAME of prefect.yaml. Raises `ValueError` listing what there is."""
    found = {f"{flow_name(each)}/{each['name']}": each for each in yaml.safe_load(path.read_text())["deployments"]}
    if name not in found:
        raise ValueError(f"no deployment {name!r} in {path.name}; there are {', '.join(sorted(found))}")
    return dict(found[name])


def flow_name(each: dict[str, Any]) -> str:
    return str(each["entrypoint"]).rpartition(":")[2].replace("_", "-")


def changed(parameters: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """The parameters with each `a.b.c=VALUE` set; VALUE is JSON, or else a plain string. A list's places are numbers.

    Raises:
        ValueError: no such place.
    """
    result: dict[str, Any] = json.loads(json.dumps(parameters))
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign:
            raise ValueError(f"--set {assignment}: expected a.b.c=VALUE")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *parents, last = path.split(".")
        place: Any = result
        for name in parents:
            place = place.setdefault(name, {}) if isinstance(place, dict) else place[_number(place, name, assignment)]
            if not isinstance(place, dict | list):
                raise ValueError(f"--set {assignment}: {name} holds a plain value, so nothing can be set inside it")  # noqa: TRY004
        place[last if isinstance(place, dict) else _number(place, last, assignment)] = value
    return result


def _number(place: list[Any], name: str, assignment: str) -> int:
    """The place in a list that part of a path names, from 0."""
    if not name.isdecimal() or int(name) >= len(place):
        raise ValueError(f"--set {assignment}: {name}: expected a number from 0 to {len(place) - 1}, a place in a list")
    return int(name)


def told(result: Any) -> str:
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


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m flows", description="Run a deployment of prefect.yaml here.")
    parser.add_argument("deployment", help="FLOW/NAME, e.g. bolt/nano")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="a.b.c=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    given = parser.parse_args(argv)
    extra = ["config.dry_run=true"] if given.dry_run else []
    try:
        each = deployment(given.deployment)
        parameters = changed(each.get("parameters", {}), [*given.assignments, *extra])
    except ValueError as error:
        parser.error(str(error))
    module, _, function = each["entrypoint"].rpartition(":")
    run = getattr(importlib.import_module(module.removesuffix(".py").replace("/", ".")), function)
    result = run(**parameters)
    if result and not parameters["config"].get("dry_run"):
        print(told(result))


def _end(signum: int, _frame: object) -> NoReturn:
    """End with the usual status of the signal, and with Prefect's own server: SIGTERM's default leaves it behind."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    main(sys.argv[1:])
