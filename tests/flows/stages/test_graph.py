"""The run graph in Prefect's UI shows the true inputs of every step, made or found: one link for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graph import check_graph, latest
from small import small_world

from flows.mine import MineConfig, mine

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    world = small_world(tmp_path / "files")
    return {"serving": world["serving"], "queries": world["bootstrap"]["queries"]}


@pytest.mark.parametrize("times", [1, 2])
def test_the_graphs_parents_are_the_manifests_inputs(parameters, tmp_path, times):
    for _ in range(times):  # the second run finds everything
        mine(MineConfig(**parameters))
    # collected -> cleaned -> distinct; distinct and held-out -> contaminated;
    # distinct and contaminated -> decontaminated -> queries
    assert check_graph(tmp_path / "store", latest()) == 7
