"""Children's OpenMP threads wait asleep, so that processes that share cores do not stop each other."""

from __future__ import annotations

import os

import pytest

from infra.processes import torchrun
from infra.processes.openmp import SPINS, UNSET, keep_unset, short_spin, thread_count
from infra.serving import vllm_server


def test_trainers_and_servers_on_a_cpu_spin_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "runs_on_cpu", lambda: True)
    for environment in (lambda: torchrun._environment(2), lambda: vllm_server._environment("generate")):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        assert environment()["GOMP_SPINCOUNT"] == SPINS
        monkeypatch.setenv("GOMP_SPINCOUNT", "7")
        assert "GOMP_SPINCOUNT" not in environment()  # which is added to the present one


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(None, "1", "8"), ("3", "3", "3"), (None, None, "8"), ("", "", "8")]
)
def test_rays_one_thread_is_nobodys_wish(
    before: str | None, after: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray sets OMP_NUM_THREADS to 1 before it calls a task, unless it is set."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv(UNSET, "")
    monkeypatch.delenv(UNSET)
    if before is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    keep_unset()
    if after is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", after)
    assert thread_count(8) == expected
    cores = len(os.sched_getaffinity(0))
    assert torchrun._environment(1)["OMP_NUM_THREADS"] == (expected if before else str(cores))


def test_what_you_say_about_waiting_stays() -> None:
    assert short_spin({"OMP_WAIT_POLICY": "active"}) == {}
