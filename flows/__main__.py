"""Run a deployment of prefect.yaml in this process: `python -m flows bolt/nano [--dry-run] [--set config.online.iterations=3]`.

`prefect deployment run` starts the same flow with the same parameters on a worker.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[1]


def deployment(name: str, path: Path = PROJECT / "prefect.yaml") -> dict[str, Any]:
    """The deployment FLOW/NAME of prefect.yaml. Raises `ValueError` listing what there is."""
    found = {f"{flow_name(each)}/{each['name']}": each for each in yaml.safe_load(path.read_text())["deployments"]}
    if name not in found:
        raise ValueError(f"no deployment {name!r} in {path.name}; there are {', '.join(sorted(found))}")
    return dict(found[name])


def flow_name(each: dict[str, Any]) -> str:
    return str(each["entrypoint"]).rpartition(":")[2].replace("_", "-")


def changed(parameters: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """The parameters with each `a.b.c=VALUE` set; VALUE is JSON, or else a plain string. Raises `ValueError`."""
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
        place = result
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {assignment}: {name} holds a plain value, so nothing can be set inside it")
        place[last] = value
    return result


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m flows", description="Run a deployment of prefect.yaml here.")
    parser.add_argument("deployment", help="FLOW/NAME, e.g. bolt/nano")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="a.b.c=VALUE")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    told = parser.parse_args(argv)
    extra = ["config.dry_run=true"] if told.dry_run else []
    try:
        each = deployment(told.deployment)
        parameters = changed(each.get("parameters", {}), [*told.assignments, *extra])
    except ValueError as error:
        parser.error(str(error))
    module, _, function = each["entrypoint"].rpartition(":")
    run = getattr(importlib.import_module(module.removesuffix(".py").replace("/", ".")), function)
    result = run(**parameters)
    if isinstance(result, dict) and "path" in result:
        print(result["path"])


if __name__ == "__main__":
    main(sys.argv[1:])
