"""Settings that a Ray cluster decides itself are refused beside `cluster: ray`, before anything is started."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from flows.__main__ import deployments
from flows.bolt import BoltConfig


def changed(place: str, value: Any, **more: Any) -> dict[str, Any]:
    """The parameters of bolt/nano with one setting changed; `more`: settings of the flow itself."""
    config = copy.deepcopy(deployments()["bolt/nano"]["parameters"]["config"]) | more
    *folders, name = place.split(".")
    inner = config
    for each in folders:
        inner = inner.setdefault(each, {})
    inner[name] = value
    return config


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("serving.policy_devices", ["0"], "leave it out with `cluster: ray`"),
        ("training.hosts", ["a", "b"], "training.hosts: leave it out with `cluster: ray`"),
        ("online.method", "grpo", "on_policy is true, but with `cluster: ray`"),
    ],
)
def test_what_the_cluster_decides_is_refused(place, value, message):
    config = changed(place, value, cluster="ray")
    config["serving"]["policy_servers"] = 1
    if value == "grpo":
        config["online"]["rl"] = {**config["online"].get("rl", {}), "on_policy": True}
    with pytest.raises(ValidationError, match=message):
        BoltConfig.model_validate(config)


def test_several_servers_of_several_gpus_need_a_list_of_them_on_one_machine_only():
    config = changed("serving.policy.tensor_parallel_size", 2)
    config["serving"]["policy_servers"] = 2
    config["serving"].pop("policy_devices", None)
    with pytest.raises(ValidationError, match="list the GPUs of each server in policy_devices"):
        BoltConfig.model_validate(config)
    assert BoltConfig.model_validate(config | {"cluster": "ray"}).cluster == "ray"
