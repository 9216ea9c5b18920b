"""The container files: job templates that Prefect can render, with the GPUs, memory and volumes that a run needs."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from docker.types import HostConfig
from prefect.utilities.templating import apply_values, find_placeholders
from prefect.workers.base import BaseJobConfiguration

FOLDER = Path(__file__).resolve().parents[3] / "infra" / "containers"
TEMPLATES = ["docker", "kubernetes"]
PREFECTS_OWN = {"command", "env", "labels", "name"}  # filled in by the worker


def template(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def rendered(name: str, **given: Any) -> dict[str, Any]:
    """The job as Prefect renders it: the variables' defaults, overridden by `given`."""
    found = template(name)
    defaults = BaseJobConfiguration._get_base_config_defaults(found["variables"]["properties"])
    values = {**defaults, "image": "registry/bolt:1", "command": "prefect flow-run execute", **given}
    return dict(apply_values(found["job_configuration"], values))


def placeholders(value: Any) -> set[str]:
    return {each.name for each in find_placeholders(value)}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_placeholders_are_the_variables_and_each_has_a_description(name):
    found = template(name)
    variables = found["variables"]["properties"]
    assert placeholders(found["job_configuration"]) == set(variables)
    assert set(variables) >= PREFECTS_OWN
    assert [name for name, each in variables.items() if not (each.get("description") and each.get("title"))] == []
    assert found["variables"]["required"] == ["image"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_without_placeholders_left(name):
    job = rendered(name)
    assert placeholders(job) == set()
    assert "{{" not in json.dumps(job)
    assert job["env"] == {"BOLT_STORE": "/data/artifacts", "BOLT_WORK_DIR": "/data/work"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_prefect_accepts_the_template_and_adds_a_deployments_environment(name):
    env = {"env": {"PREFECT_LOGGING_EXTRA_LOGGERS": "infra,tasks"}, "image": "registry/bolt:1"}
    found = asyncio.run(BaseJobConfiguration.from_template_and_values(template(name), env))
    assert found.env["PREFECT_LOGGING_EXTRA_LOGGERS"] == "infra,tasks"


def test_a_pod_requests_what_a_run_needs():
    manifest = rendered("kubernetes", gpus=8, memory="512Gi")["job_manifest"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    spec = manifest["spec"]
    pod = spec["template"]["spec"]
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")  # only `rerun` retries, and it counts
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "512Gi", "nvidia.com/gpu": 8}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][1]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}


def test_a_container_gets_every_gpu_and_shared_memory():
    more = rendered("docker")["container_create_kwargs"]
    host = HostConfig(version="1.41", **more)
    assert host["DeviceRequests"][0]["Capabilities"] == [["gpu"]]
    assert host["DeviceRequests"][0]["Count"] == -1
    assert host["ShmSize"] == 16 * 2**30
    assert rendered("docker", device_requests=[])["container_create_kwargs"]["device_requests"] == []


def test_the_image_uses_the_projects_setup_script():
    text = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in lines} <= known
    assert lines[0].startswith("FROM python:3.11")
    assert any("infra/setup.sh" in line for line in lines)
    assert lines.index("USER bolt") > max(n for n, line in enumerate(lines) if line.startswith("RUN"))
    for line in lines:
        if line.startswith(("ENTRYPOINT", "CMD")):
            assert json.loads(line.partition(" ")[2])
    assert not re.search(r"(?i)(token|secret|password|access_key)\s*=\S", text)
    assert ".venv" in (FOLDER / "Dockerfile.dockerignore").read_text().split()
