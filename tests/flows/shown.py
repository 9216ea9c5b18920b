"""What a flow run shows in Prefect's UI. (Runs of other tests write artifacts under the same keys.)"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId


def artifacts_of(flow_run: UUID) -> dict[str, Any]:
    """The artifacts of one flow run: their data by key."""
    of_the_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
    with get_client(sync_client=True) as client:
        return {str(each.key): each.data for each in client.read_artifacts(artifact_filter=of_the_run)}
