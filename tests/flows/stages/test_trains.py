"""Flows that train: their machines."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from small import bootstrap_parameters, small_world

from flows.bootstrap import BootstrapConfig
from flows.online import OnlineConfig
from flows.sft import SftFlowConfig
from infra.serving.servers import ServingConfig
from infra.serving.vllm_server import ServerOptions
from infra.store.manifest import Kind, Ref
from infra.training.config import SftRecipe
from infra.training.hosts import HERE, Hosts
from tasks.training.sft import train_sft

KINDS: dict[str, Kind] = {"longcot": "table", "model": "model"}
SERVING = ServingConfig(policy=ServerOptions(max_model_len=20480), reward=ServerOptions(max_model_len=16384))
GIVEN = {"model": "m", "longcot": "longcot/k", "serving": SERVING}


def test_a_batch_is_over_all_hosts():
    pair = {"hosts": ["gpu-0", "gpu-1"]}
    assert SftFlowConfig(**GIVEN, sft=SftRecipe(ranks=8, batch=16), training=pair).training.nodes == 2
    with pytest.raises(ValidationError, match=r"sft, on 2 hosts: batch 24 is not a multiple of .* ranks 16"):
        SftFlowConfig(**GIVEN, sft=SftRecipe(ranks=8, batch=24), training=pair)
    assert SftFlowConfig(**GIVEN, sft=SftRecipe(ranks=8, batch=24)).training == HERE


def test_a_trainer_that_asks_for_rewards_needs_one_host():
    queries = {"sources": [{"path": "nano/data/queries.jsonl"}]}
    stage = {"queries": queries, "method": "rloo", "rl": {"on_policy": True}}
    given = {"model": "m", "reward_model": "r", "serving": SERVING, "online": stage}
    assert OnlineConfig(**given).training == HERE
    with pytest.raises(ValidationError, match=r"online.rl.on_policy is true, but only the machine of the flow reaches"):
        OnlineConfig(**given, training={"hosts": ["gpu-0", "gpu-1"]})


def test_hosts_are_in_no_key():
    refs = {name: Ref(kind=kind, step=name, key="k", uri=name, digest=name, rows=1) for name, kind in KINDS.items()}
    keys = {
        train_sft.plan("sft", {"config": SftRecipe(), **refs, "servers": None, **more}).key
        for more in ({}, {"hosts": HERE}, {"hosts": Hosts(hosts=("gpu-0", "gpu-1"), lost_after_s=5)})
    }
    assert len(keys) == 1


def test_a_flow_that_does_not_train_has_no_such_parameter(tmp_path):
    given = bootstrap_parameters(small_world(tmp_path))
    with pytest.raises(ValidationError, match="training"):
        BootstrapConfig(**given, training={"hosts": ["gpu-0", "gpu-1"]})
