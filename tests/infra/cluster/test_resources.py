"""What a run asks a Ray cluster for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from infra.cluster.config import RayConfig
from infra.cluster.fleet import ray_options, server_needs
from infra.serving.vllm_server import ServerOptions
from infra.settings import PROJECT_ROOT, Settings

OPTIONS = {"max_model_len": 64}


@pytest.mark.parametrize(
    ("resources", "gpus", "options"),
    [
        ({}, 0, {}),
        ({"CPU": 2}, 0, {"num_cpus": 2}),
        ({"CPU": 1, "big": 0.5}, 4, {"num_cpus": 1, "resources": {"big": 0.5}, "num_gpus": 4}),
        ({"GPU": 1}, 2, {"num_gpus": 3}),
    ],
)
def test_resources_become_options_of_ray(resources, gpus, options):
    assert ray_options(resources, gpus) == options


def test_a_server_takes_the_gpus_of_its_tensor_parallel_size(monkeypatch):
    monkeypatch.setattr("infra.cluster.fleet.runs_on_cpu", lambda: False)
    options = ServerOptions(**OPTIONS, tensor_parallel_size=4)
    assert server_needs(options, {"a100": 1}) == {"num_cpus": 0, "resources": {"a100": 1}, "num_gpus": 4}


def test_a_server_over_several_nodes_leaves_its_gpus_to_vllm(monkeypatch):
    monkeypatch.setattr("infra.cluster.fleet.runs_on_cpu", lambda: False)
    assert server_needs(ServerOptions(**OPTIONS, pipeline_parallel_size=2), {}) == {"num_cpus": 0}


def test_paths_of_settings_become_absolute_and_addresses_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(store="artifacts", work_dir="work").absolute()
    assert (settings.store, str(settings.work_dir)) == (str(tmp_path / "artifacts"), str(tmp_path / "work"))
    assert Settings(store="s3://bucket/prefix").absolute().store == "s3://bucket/prefix"


def test_flows_load_without_ray():
    """Whoever leaves the extra `ray` out needs nothing of it."""
    code = (
        "import sys; sys.modules |= {'ray': None, 'prefect_ray': None}\n"
        "import flows.bolt, flows.still1, flows.still2, flows.study, flows.publish, flows.rerun"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)


@pytest.mark.parametrize("given", [{"wait_s": 0}, {"restarts": -1}, {"shards_at_once": 0}, {"gpus": 1}])
def test_settings_that_make_no_sense_are_refused(given):
    with pytest.raises(ValidationError):
        RayConfig(**given)
