"""How the OpenMP threads of our children wait for each other."""

from __future__ import annotations

from collections.abc import Mapping

SPINS = "1000"


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
