"""Where a run's models are served and its heavy steps run: on this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flows.stages.common import Common
from infra.errors import BadInput
from infra.serving.servers import Servers
from infra.settings import Settings
from infra.store.store import Store

if TYPE_CHECKING:
    from infra.cluster.ray_cluster import Cluster


@contextmanager
def serving(common: Common, settings: Settings, store: Store) -> Iterator[tuple[Servers, Cluster | None]]:
    """The servers of a run, all of which end with the block, and its cluster, if it has one.

    Raises:
        BadInput: the cluster cannot be used (`infra.cluster.ray_cluster.connected`), or Ray is not installed.
    """
    if common.cluster is None or common.dry_run:
        with Servers(common.serving, store, settings.work_dir.resolve(), settings.policy_api_key) as servers:
            yield servers, None
        return
    try:
        from infra.cluster.ray_cluster import connected
    except ModuleNotFoundError as error:
        raise BadInput(
            f"cluster is ray, but {error.name} is not installed: install the extra `ray` (docs/scale.md)"
        ) from error
    with connected(common.ray, common.serving, settings) as cluster, cluster.servers as servers:
        yield servers, cluster
