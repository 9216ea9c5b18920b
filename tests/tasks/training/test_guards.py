"""What a guard stopped a training for is shown in Prefect's UI."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

from infra.processes.torchrun import TrainerError
from infra.training.config import DpoConfig
from infra.training.limits import guards_path
from tasks.training.guards import stop_shown


def training(folder: Path, figures: dict[str, float] | None) -> None:
    """A training that fails, by a guard if there are figures."""
    config = DpoConfig(model=folder, data=(folder,), output=folder / "model", reference=folder)
    with stop_shown("dpo-1", config):
        assert not guards_path(config.output).exists()  # an earlier attempt's figures are gone
        if figures:
            guards_path(config.output).write_text(json.dumps(figures))
        raise TrainerError("stopped")


@flow
def training_flow(folder: Path, figures: dict[str, float] | None) -> UUID:
    state = task(training)(folder, figures, return_state=True)
    with pytest.raises(TrainerError, match="stopped"):
        state.result()
    return UUID(flow_run.id)


def shown(run: UUID) -> dict[str, object]:
    of_the_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    with get_client(sync_client=True) as client:
        return {str(each.key): json.loads(each.data) for each in client.read_artifacts(artifact_filter=of_the_run)}


@pytest.mark.usefixtures("prefect_server")
def test_the_figures_of_a_stopped_training_are_an_artifact(tmp_path: Path) -> None:
    figures = {"max_nonfinite_steps": 0, "max_kl": 0.125, "max_chosen_fall": 0.75}
    assert shown(training_flow(tmp_path, figures)) == {
        "guards-dpo-1": [
            {"guard": "steps that are not finite", "value": 0, "limit": 0, "setting": "guards.max_nonfinite_steps"},
            {"guard": "KL to pi_0, nats per token", "value": 0.125, "limit": 0.5, "setting": "guards.max_kl"},
            {
                "guard": "fall of the chosen log-probability, nats per token",
                "value": 0.75,
                "limit": 0.5,
                "setting": "guards.max_chosen_fall",
            },
        ]
    }
    assert shown(training_flow(tmp_path, None)) == {}
    with pytest.raises(TrainerError):  # outside of a run there is none, and no error of Prefect
        training(tmp_path, figures)
