"""How many OpenMP threads our children have, and how these wait for each other."""

from __future__ import annotations

import os
from collections.abc import Mapping

SPINS = "1000"
UNSET = "BOLT_OMP_NUM_THREADS_UNSET"
"""Set where OMP_NUM_THREADS was not: Ray sets it to 1 in every process of its own that begins to work."""


def keep_unset() -> None:
    """Remember for this process and its children that nobody has set OMP_NUM_THREADS, if so."""
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ[UNSET] = "1"


def thread_count(ours: int) -> str:
    """OMP_NUM_THREADS for a child: as the environment has it, else `ours`."""
    given = "" if UNSET in os.environ else os.environ.get("OMP_NUM_THREADS", "")
    return given or str(ours)


def short_spin(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables by which GNU OpenMP's threads sleep soon while they wait for each other.

    By default a waiting thread keeps its core busy for milliseconds. Beside any other work on these cores, that takes
    the time of the threads that are waited for: on two cores, two trainings at once were 1.6 times (135M parameters)
    and seven times (1.8M) slower each than with this. On an idle machine this costs up to a tenth with the smallest
    models.

    Args:
        environment: the present one. If it says how threads wait, nothing is added.
    """
    return {} if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys() else {"GOMP_SPINCOUNT": SPINS}
