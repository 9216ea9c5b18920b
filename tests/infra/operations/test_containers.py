"""The container files: job templates that Prefect can render, with the GPUs, memory and volumes that a run needs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.types import HostConfig
from prefect.utilities.templating import apply_values, find_placeholders
from prefect.workers.base import BaseJobConfiguration

from infra.training import node
from infra.training.hosts import Hosts

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


# ---- several machines


def test_the_agents_pods_are_the_nodes_of_a_training_with_the_flows_pod():
    flow, agents, stateful = yaml.safe_load_all((FOLDER / "nodes.yaml").read_text())
    job = rendered("kubernetes", gpus=8)["job_manifest"]
    assert flow["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    pod = stateful["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert agents["spec"]["selector"] == stateful["spec"]["selector"]["matchLabels"] == labels
    assert not flow["spec"]["selector"].items() <= labels.items()
    assert flow["spec"]["clusterIP"] == agents["spec"]["clusterIP"] == "None"  # names of pods, not of a balancer
    assert stateful["spec"]["serviceName"] == agents["metadata"]["name"]
    first, count = stateful["spec"]["ordinals"]["start"], stateful["spec"]["replicas"]
    names = [f"{stateful['metadata']['name']}-{number}.{agents['metadata']['name']}" for number in range(1, 8)]
    assert (first, count) == (1, len(names))
    assert Hosts(hosts=(flow["metadata"]["name"], *names)).nodes == 8
    (container,), (runs,) = pod["spec"]["containers"], job["spec"]["template"]["spec"]["containers"]
    assert container["volumeMounts"] == runs["volumeMounts"]
    assert pod["spec"]["volumes"] == job["spec"]["template"]["spec"]["volumes"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == runs["resources"]["limits"]["nvidia.com/gpu"]
    work = {"name": "BOLT_WORK_DIR", "value": rendered("kubernetes")["env"]["BOLT_WORK_DIR"]}
    assert work in container["env"]


def stubs(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment in which commands are stand-ins: the texts of shell scripts."""
    for name, script in scripts.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SAID": str(folder / "said")}


def test_the_agents_command_is_one_that_the_agent_knows(tmp_path, monkeypatch):
    """In a pod, the node's number is the end of the pod's name."""
    _, _, stateful = yaml.safe_load_all((FOLDER / "nodes.yaml").read_text())
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    environment = stubs(tmp_path, python='echo "$@" > "$SAID"') | {"HOSTNAME": "bolt-node-7"}
    subprocess.run(container["args"], env=environment, check=True)
    module, *given = (tmp_path / "said").read_text().split()[1:]
    served: list[Any] = []
    monkeypatch.setattr(node, "serve", lambda *arguments: served.append(arguments))
    monkeypatch.setattr(node.signal, "signal", lambda *_: None)
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path))
    node.main(given)
    assert (module, served) == ("infra.training.node", [(7, tmp_path)])


SRUN = """
nodes=1 first=0
while [[ "$1" == --* ]]; do
    case "$1" in --nodes=*) nodes="${1#*=}";; --relative=*) first="${1#*=}";; esac; shift
done
echo "step from $first on $nodes" >> "$SAID"
for ((task = 0; task < nodes; task++)); do SLURM_PROCID=$task "$@" & done
trap 'kill $(jobs -p)' TERM
wait -n || exit 1
wait"""


@pytest.fixture
def slurm(tmp_path: Path) -> Any:
    """Submit the Slurm script to a stand-in for Slurm. Returns the status and what was started, sorted."""
    python = """
    echo "$@" >> "$SAID"
    [[ "$*" == *infra.training.node* ]] && exec sleep 60
    until [ "$(grep -c node-rank "$SAID")" = "$AGENTS" ]; do sleep 0.02; done
    exit "$STATUS" """
    environment = stubs(tmp_path, srun=SRUN, scontrol="printf '%s\\n' $3")
    (tmp_path / ".venv").mkdir()
    stubs(tmp_path / ".venv", python=python)

    def submit(nodes: str, *arguments: str, status: int = 0, **more: str) -> tuple[int, list[str]]:
        (tmp_path / "said").unlink(missing_ok=True)
        folders = {"BOLT_STORE": "s3://bucket/bolt", "BOLT_WORK_DIR": str(tmp_path), "SLURM_JOB_NODELIST": nodes}
        own = {"STATUS": str(status), "AGENTS": str(nodes.count(" "))}
        command = ["bash", str(FOLDER / "nodes.sbatch"), *arguments]
        done = subprocess.run(command, env=environment | folders | own | more, cwd=tmp_path, timeout=50)
        said = (tmp_path / "said").read_text().splitlines() if (tmp_path / "said").exists() else []
        return done.returncode, sorted(said)

    return submit


def test_slurm_runs_the_flow_on_the_first_machine_and_an_agent_on_each_other(slurm):
    status, said = slurm("gpu-0 gpu-1 gpu-2", "bolt/nano", "--set", "config.sft.epochs=1")
    assert status == 0
    assert said == [
        '-m flows bolt/nano --set config.sft.epochs=1 --set config.training.hosts=["gpu-0","gpu-1","gpu-2"]',
        "-m infra.training.node --node-rank 1",
        "-m infra.training.node --node-rank 2",
        "step from 0 on 1",
        "step from 1 on 2",
    ]


def test_slurm_ends_with_the_flows_status_and_takes_one_machine_too(slurm):
    assert slurm("gpu-0 gpu-1", "bolt/nano", status=1)[0] == 1
    status, said = slurm("gpu-0", "bolt/nano")
    assert (status, said) == (
        0,
        ['-m flows bolt/nano --set config.training.hosts=["gpu-0"]', "step from 0 on 1"],
    )


def test_slurm_wants_a_flow_and_shared_folders(slurm):
    assert slurm("gpu-0 gpu-1") == (2, [])
    assert slurm("gpu-0 gpu-1", "bolt/nano", BOLT_WORK_DIR="") == (1, [])


@pytest.fixture
def ray_on_slurm(tmp_path: Path) -> Any:
    """Submit the Slurm script for Ray to a stand-in for Slurm. Returns the status, what was started, and the errors."""
    node = 'echo "ray $*" >> "$SAID"; [ -z "$FAILS" ] || exit 1; echo $$ >> "$NODES"; exec sleep 60'
    python = """
    if [[ "$*" == *infra.cluster.joined* ]]; then
        [ -z "$FAILS" ] || exit 1
        until [ -s "$NODES" ] && [ "$(wc -l < "$NODES")" = "$3" ]; do sleep 0.02; done
    fi
    echo "$*${RAY_ADDRESS:+ on $RAY_ADDRESS}" >> "$SAID"
    [[ "$*" != *flows* ]] || exit "$STATUS" """
    resolve = '[ -z "$UNKNOWN" ] || exit 2; echo "10.0.0.1 STREAM $2"; echo "10.0.0.1 DGRAM"'
    environment = stubs(tmp_path, srun=SRUN, scontrol="printf '%s\\n' $3", getent=resolve)
    (tmp_path / ".venv").mkdir()
    stubs(tmp_path / ".venv", python=python, ray=node)
    nodes_file = tmp_path / "nodes"

    def submit(nodes: str, *arguments: str, status: int = 0, **more: str) -> tuple[int, list[str], str]:
        for file in (tmp_path / "said", nodes_file):
            file.unlink(missing_ok=True)
        needed = {"BOLT_STORE": "s3://bucket/bolt", "BOLT_WORK_DIR": "/local", "PREFECT_API_URL": "http://server/api"}
        own = {"STATUS": str(status), "NODES": str(nodes_file), "FAILS": "", "UNKNOWN": "", "SLURM_JOB_NODELIST": nodes}
        command = ["bash", str(FOLDER / "ray.sbatch"), *arguments]
        done = subprocess.run(
            command, env=environment | needed | own | more, cwd=tmp_path, timeout=50, capture_output=True, text=True
        )
        said = (tmp_path / "said").read_text().splitlines() if (tmp_path / "said").exists() else []
        return done.returncode, said, done.stderr

    return submit


RAY_NODE = "ray start --block --disable-usage-stats --object-store-memory=1073741824"
RAY_HEAD = f"{RAY_NODE} --head --node-ip-address=10.0.0.1 --port=6379 --include-dashboard=false"
JOINED = "-m infra.cluster.joined {} --address 10.0.0.1:6379"


def test_slurm_runs_the_flow_beside_rays_head_once_all_nodes_have_joined(ray_on_slurm, tmp_path):
    status, said, _ = ray_on_slurm("gpu-0 gpu-1 gpu-2", "bolt/nano", "--set", "config.sft.epochs=1")
    assert status == 0
    assert said == [
        "step from 2 on 1",  # which looks up the first machine's address
        "step from 0 on 1",
        RAY_HEAD,
        JOINED.format(1),
        "step from 1 on 2",
        f"{RAY_NODE} --address=10.0.0.1:6379",
        f"{RAY_NODE} --address=10.0.0.1:6379",
        JOINED.format(3),
        "step from 0 on 1",
        "-m flows bolt/nano --set config.sft.epochs=1 --set config.cluster=ray on 10.0.0.1:6379",
    ]
    for pid in (tmp_path / "nodes").read_text().split():  # all nodes end with the flow
        until = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert not Path(f"/proc/{pid}").exists()


def test_slurm_with_ray_ends_with_the_flows_status_and_takes_one_machine_too(ray_on_slurm):
    assert ray_on_slurm("gpu-0 gpu-1", "bolt/nano", status=1)[0] == 1
    status, said, _ = ray_on_slurm("gpu-0", "bolt/nano")
    flow = "-m flows bolt/nano --set config.cluster=ray on 10.0.0.1:6379"
    assert (status, said[2:]) == (0, [RAY_HEAD, JOINED.format(1), "step from 0 on 1", flow])


def test_slurm_with_ray_starts_no_flow_without_its_nodes(ray_on_slurm):
    status, said, _ = ray_on_slurm("gpu-0 gpu-1", "bolt/nano", FAILS="1")
    assert status == 1
    assert not any("flows" in line for line in said)
    status, said, errors = ray_on_slurm("gpu-0 gpu-1", "bolt/nano", UNKNOWN="1")
    assert (status, said, errors) == (1, ["step from 1 on 1"], "gpu-1 knows no address of gpu-0\n")


@pytest.mark.parametrize("missing", ["BOLT_STORE", "BOLT_WORK_DIR", "PREFECT_API_URL"])
def test_slurm_with_ray_wants_a_flow_and_what_all_machines_reach(ray_on_slurm, missing):
    assert ray_on_slurm("gpu-0 gpu-1")[:2] == (2, [])
    status, said, errors = ray_on_slurm("gpu-0 gpu-1", "bolt/nano", **{missing: ""})
    assert (status, said) == (1, [])
    assert f"{missing}: set it to" in errors
