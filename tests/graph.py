"""The graph of a flow run as Prefect's UI draws it, beside the manifests of what its steps made.

As a script, `python tests/graph.py STORE`, it checks the latest flow run in the Prefect database of PREFECT_HOME.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun

Links = dict[str, set[str]]  # by the step/key of a task: the step/key of its parents


def task_runs(client: SyncPrefectClient, run: FlowRun) -> list[TaskRun]:
    """All task runs, once those that ended have been recorded: Prefect writes them a moment later."""
    found: list[TaskRun] = []
    for _ in range(60):
        found, offset = [], 0
        while page := client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])), limit=200, offset=offset
        ):
            found, offset = found + page, offset + 200
        if found and all(each.state and each.state.is_final() for each in found):
            return found
        time.sleep(0.5)
    raise AssertionError(f"task runs without an end: {[each.name for each in found]}")


def drawn(client: SyncPrefectClient, run: FlowRun) -> Links:
    """What the UI draws."""
    graph: dict[str, Any] = client.request("GET", f"/flow_runs/{run.id}/graph-v2").json()
    names = {identity: node["label"] for identity, node in graph["nodes"]}
    return {node["label"]: {names[each["id"]] for each in node["parents"]} for _, node in graph["nodes"]}


def recorded(client: SyncPrefectClient, run: FlowRun) -> dict[str, Counter[str]]:
    """What each task run says of its parents, and how often."""
    found = task_runs(client, run)
    names = {each.id: each.name for each in found}
    parents = {each.name: [link.id for links in each.task_inputs.values() for link in links] for each in found}
    return {name: Counter(names[identity] for identity in links) for name, links in parents.items()}


def expected(store: Path, names: set[str]) -> Links:
    """The inputs that the manifests name, less those that no task of the run made or found: imported models."""
    found = {}
    for name in names:
        inputs = json.loads((store / name / "manifest.json").read_text())["inputs"].values()
        found[name] = {f"{ref['step']}/{ref['key']}" for ref in inputs} & names
    return found


def check_graph(store: Path, run: FlowRun) -> int:
    """Assert that the graph shows the inputs of the manifests and nothing else, each once; the number of links."""
    with get_client(sync_client=True) as client:
        links = recorded(client, run)
        assert drawn(client, run) == expected(store, set(links))
        assert {name: set(found) for name, found in links.items()} == expected(store, set(links))
        assert {name: found for name, found in links.items() if found and max(found.values()) > 1} == {}
    return sum(map(len, links.values()))


def latest() -> FlowRun:
    with get_client(sync_client=True) as client:
        return max(client.read_flow_runs(limit=200), key=lambda run: run.created)


if __name__ == "__main__":
    print(check_graph(Path(sys.argv[1]), latest()))
