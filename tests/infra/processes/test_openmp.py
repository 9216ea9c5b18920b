"""Children's OpenMP threads wait asleep, so that processes that share cores do not stop each other."""

from __future__ import annotations

import pytest

from infra.processes import torchrun
from infra.processes.openmp import SPINS, short_spin
from infra.serving import vllm_server


def test_trainers_and_servers_on_a_cpu_spin_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "runs_on_cpu", lambda: True)
    for environment in (lambda: torchrun._environment(2), lambda: vllm_server._environment("generate")):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        assert environment()["GOMP_SPINCOUNT"] == SPINS
        monkeypatch.setenv("GOMP_SPINCOUNT", "7")
        assert "GOMP_SPINCOUNT" not in environment()  # which is added to the present one


def test_what_you_say_about_waiting_stays() -> None:
    assert short_spin({"OMP_WAIT_POLICY": "active"}) == {}
