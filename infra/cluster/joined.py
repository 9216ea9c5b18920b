"""`python -m infra.cluster.joined N`: wait until N nodes have joined a Ray cluster.

Called between the start of the nodes and that of a flow: by `infra/containers/ray.sbatch`, and in the head's pod on
Kubernetes (`infra/operations/kuberay.py`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time

POLL_S = 1.0


def living(address: str) -> int:
    """How many nodes of the cluster live. Raises `RuntimeError` or `OSError` if nothing answers there, or only to those
    who have its token."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # a C extension
    from ray.exceptions import AuthenticationError

    try:
        return sum(each.state == 0 for each in GcsClient(address=address).get_all_node_info().values())
    except AuthenticationError as error:
        raise RuntimeError(error) from None


def wait(count: int, address: str, seconds: float) -> str:
    """Wait until `count` nodes live. Returns "", or in words how far it came within `seconds`."""
    deadline, found, why = time.monotonic() + seconds, 0, ""
    while True:
        try:
            found, why = living(address), ""
        except (RuntimeError, OSError) as error:  # it does not listen yet
            why = f" ({' '.join(str(error).split())})"
        if found >= count:
            return ""
        if time.monotonic() >= deadline:
            return f"{found} of {count} nodes joined the Ray cluster at {address} within {seconds:g} s{why}"
        time.sleep(POLL_S)


def main(argv: list[str]) -> int:
    """Wait; returns the exit status, 1 if the nodes did not come."""
    parser = argparse.ArgumentParser(prog="python -m infra.cluster.joined", description="Wait for nodes of Ray.")
    parser.add_argument("nodes", type=int, help="how many, the head included")
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="HOST:PORT (default: RAY_ADDRESS)")
    parser.add_argument("--seconds", type=float, default=600, help="how long to wait for them (default: 600)")
    given = parser.parse_args(argv)
    if not given.address:
        parser.error("give the cluster's --address, or set RAY_ADDRESS")
    if missing := wait(given.nodes, given.address, given.seconds):
        print(f"error: {missing}; the nodes' own lines say why", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
