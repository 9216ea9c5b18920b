"""A policy that drifts too far stops the flow with a reason; once the limit is raised, the flow goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.runtime import flow_run
from shown import artifacts_of

from flows.stages.common import Common
from flows.stages.guards import Watch
from flows.stages.run import begin
from infra.errors import GuardError
from infra.settings import Settings
from infra.store.manifest import Provenance, Ref, finish
from infra.store.manifest import begin as begin_artifact
from infra.store.schemas import RESPONSES
from infra.store.store import Store
from infra.store.tables import write_table
from infra.training.limits import DpoGuards
from tasks.rewards.drift import Guards

COMMON = Common(serving={"policy": {"max_model_len": 64}, "reward": {"max_model_len": 64}})
SEEN: dict[str, Any] = {}


def responses(store: Store, step: str, malformed: int) -> Ref:
    plain = {"example_ids": [], "seed": None, "text": "t", "thoughts": "t", "solution": "s", "finish_reason": "stop"}
    tokens = {"prompt_tokens": 5, "completion_tokens": 9, "thought_tokens": 4, "solution_tokens": 4}
    rows = [
        {"query_id": f"q{n}", "sample": 0, **plain, **tokens, "violations": ["no_end"] if n < malformed else []}
        for n in range(10)
    ]
    return write_table(store, step, "k", RESPONSES, [rows], Provenance())


@flow
def two_policies(guards: dict[str, Any]) -> None:
    SEEN["run"] = UUID(flow_run.id)
    with begin(COMMON) as run:
        watch = Watch(run, Guards(**guards), DpoGuards())
        models = [
            finish(run.store, "model", name, "k", [], [], Provenance(), None, begin_artifact(run.store, name, "k"))
            for name in ("sft", "dpo-1")
        ]
        for number, malformed in enumerate((0, 4)):
            watch.responses[number] = [responses(run.store, f"responses-online-{number + 1}", malformed)]
            watch.measure(number, models[number])
            SEEN["cached"] = {step.name: step.cached for step in run.steps}
            watch.stop_if_tripped()


@pytest.mark.usefixtures("prefect_server")
def test_the_stop_names_figure_limit_and_setting_and_a_raised_limit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    reason = (
        r"the policy after iteration 1: malformed share is 0\.4 \(pi_0: 0\); limit 0\.2, "
        r"config\.online\.guards\.max_malformed_share\. The table guards-1 has all figures"
    )
    for again in (False, True):  # the same run is stopped again, at once
        with pytest.raises(GuardError, match=reason):
            two_policies({})
        assert SEEN["cached"] == {"guards-0": again, "guards-1": again}
        shown = artifacts_of(SEEN["run"])
        assert '"malformed share"' in shown["guards-1"]
        assert '"tripped": "yes"' in shown["guards-1"]
        assert '"tripped": "yes"' not in shown["guards-0"]
    two_policies({"max_malformed_share": 0.5})
    assert SEEN["cached"] == {"guards-0": False, "guards-1": False}  # seconds; nothing else depends on the limits
    made = Store.open(Settings(store=str(tmp_path / "store"))).list("guards-1")
    assert sum(path.endswith("manifest.json") for path in made) == 2
