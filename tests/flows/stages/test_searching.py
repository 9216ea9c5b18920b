"""Whether searches fit on the servers."""

from __future__ import annotations

from typing import Any

import pytest

from flows.stages.searching import beside_reward, unfit
from infra.serving.servers import ServingConfig
from tasks.search.ask import SearchSampling

OPTIONS = {"max_model_len": 4096, "gpu_memory_utilization": 0.9}
SERVING: dict[str, Any] = {"policy": OPTIONS, "reward": OPTIONS, "share_devices": False}


@pytest.mark.parametrize("urls", [{}, {"policy_urls": ["http://h:1"], "policy_name": "m"}])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_memory_is_enough_for_every_policy_that_is_served_here(urls: dict[str, Any], elsewhere: bool) -> None:
    """`policy_urls` serve no policy that was trained here."""
    found = list(unfit(ServingConfig(**SERVING, **urls), SearchSampling(), scores=True, elsewhere=elsewhere))
    assert [each for each in found if "add up to 1.8" in each] == ([] if elsewhere else found)
    assert bool(found) is not elsewhere


@pytest.mark.parametrize(
    ("devices", "reward", "fits"),
    [
        (("1",), 1, True),
        (("1", "2"), 1, True),
        (("0",), 1, False),
        (("0", "0"), 1, False),
        (("2,3", "0,1"), 1, False),
        (("2,3",), 2, True),
        (("1",), 2, False),
        (("GPU-5a",), 1, False),
    ],
)
def test_memory_is_shared_only_on_a_gpu_that_both_models_use(devices: tuple[str, ...], reward: int, fits: bool) -> None:
    given = {**SERVING, "reward": {**OPTIONS, "tensor_parallel_size": reward}}
    serving = ServingConfig(**given, policy_devices=devices, policy_servers=len(devices))
    assert (not list(unfit(serving, SearchSampling(), scores=True))) is fits


@pytest.mark.parametrize(
    ("devices", "count"), [(("0", "0", "1"), 2), (("0", "1"), 1), (("2", "2"), 0), (("GPU-5a",), 1)]
)
def test_every_server_on_a_gpu_of_the_reward_model_counts(devices: tuple[str, ...], count: int) -> None:
    reward = {**OPTIONS, "tensor_parallel_size": 2}
    serving = ServingConfig(**{**SERVING, "reward": reward}, policy_devices=devices, policy_servers=len(devices))
    assert beside_reward(serving) == count
