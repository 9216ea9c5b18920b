"""Room on a Ray cluster, and nodes that train together: the step runs on the first, an agent on each of the others.

The agents are those of `infra.training.node`, so the nodes must share BOLT_WORK_DIR. A training on one node needs none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from infra.errors import BadInput
from infra.processes.watchdog import GuardedProcess
from infra.settings import PROJECT_ROOT
from infra.training.hosts import Hosts


@ray.remote(max_restarts=0)
class AgentActor:
    """The agent of one node, in a process of its own that ends with this actor."""

    def address(self) -> str:
        """The node's address."""
        return str(ray.util.get_node_ip_address())

    def begin(self, node: int, folder: Path) -> None:
        """Start the agent of node number `node` in the shared `folder`."""
        command = [sys.executable, "-m", "infra.training.node", "--node-rank", str(node), "--folder", str(folder)]
        log_path, env = folder / "logs" / f"agent-{node}.log", {"PYTHONPATH": str(PROJECT_ROOT)}
        self._agent = GuardedProcess(command, log_path=log_path, env=env)


@contextmanager
def room(what: str, nodes: int, needs: dict[str, Any], wait_s: float) -> Iterator[PlacementGroup]:
    """Hold room on as many different nodes: a placement group with a bundle on each.

    Args:
        what: it is for, for the message: the name of a step.
        needs: Ray's options for what each node must have free (`infra.cluster.fleet.ray_options`).

    Raises:
        BadInput: there is no such room within `wait_s` seconds.
    """
    bundle = {"CPU": needs.get("num_cpus", 0), "GPU": needs.get("num_gpus", 0), **needs.get("resources", {})}
    wanted = {name: amount for name, amount in bundle.items() if amount} or {"CPU": 0.001}  # a bundle must not be empty
    group = placement_group([wanted] * nodes, strategy="STRICT_SPREAD")
    try:
        try:
            ray.get(group.ready(), timeout=wait_s)
        except GetTimeoutError:
            raise BadInput(
                f"{what}: it needs {nodes} node{'s' * (nodes > 1)} with {wanted} free, which there were not within "
                f"{wait_s:g} s (ray.wait_s); the cluster has {ray.cluster_resources()}, of which "
                f"{ray.available_resources()} are free: add nodes, ask for less (ray.shard, ray.training, "
                "ray.training_nodes, ranks), or let servers end before trainings (serving.share_devices)"
            ) from None
        yield group
    finally:
        remove_placement_group(group)


@contextmanager
def team(
    what: str, nodes: int, needs: dict[str, Any], folder: Path, wait_s: float
) -> Iterator[tuple[PlacementGroup, Hosts]]:
    """As many different nodes with room for their ranks, agents on all but the first; their group and their addresses.

    Arguments as `room`, and `folder`: the work folder, which all nodes share. Raises as `room`.
    """
    agents = []
    with room(what, nodes, needs, wait_s) as group:
        try:
            for number in range(nodes):  # the first one holds nothing: the step itself takes the room there
                place, held = PlacementGroupSchedulingStrategy(group, number), needs if number else {"num_cpus": 0}
                agent = AgentActor.options(**held, scheduling_strategy=place)  # type: ignore[attr-defined]
                agents.append(agent.remote())
            addresses = ray.get([each.address.remote() for each in agents])
            ray.get([each.begin.remote(number, folder) for number, each in enumerate(agents) if number])
            yield group, Hosts(hosts=tuple(addresses))
        finally:
            for each in agents:
                ray.kill(each)
