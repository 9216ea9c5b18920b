"""The Ray cluster of an installation on Kubernetes: pods like those of the runs, and the deployments that run on it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import prefect.settings
import pytest
import yaml
from prefect.cli.deploy._config import _load_deploy_configs_and_actions
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from rich.console import Console

from flows.__main__ import check, deployments, flow_of
from flows.rerun import RerunConfig
from infra.__main__ import main
from infra.errors import BadInput
from infra.operations import kuberay
from infra.operations.cluster import Installation
from infra.operations.kubernetes import POOLS, instructions, manifests, pool_template, rendered
from infra.settings import PROJECT_ROOT

PLAIN = Installation(
    image="registry.example.com/bolt:0.2.0", worker_image="registry.example.com/bolt-worker:0.2.0", ray_workers=2
)
FULL = PLAIN._replace(
    namespace="research",
    store="s3://bucket/bolt",
    gpus=8,
    memory="512Gi",
    ray_workers=4,
    node_selector=("accelerator=h200", "example.com/pool=training"),
)
CPU = PLAIN._replace(gpus=0)
EACH = pytest.mark.parametrize("given", [PLAIN, FULL, CPU], ids=["plain", "full", "cpu"])
# The fields of ray.io/v1, KubeRay 1.6 and 1.7 (ray-operator/apis/ray/v1/raycluster_types.go).
SPEC = {"rayVersion", "enableInTreeAutoscaling", "upgradeStrategy", "headGroupSpec", "workerGroupSpecs"}
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def spec(given: Installation) -> dict[str, Any]:
    found = [each for each in manifests(given) if each["kind"] == "RayCluster"]
    assert found == manifests(given)[-1:]  # where KubeRay is missing, all else is applied
    (cluster,) = found
    assert (cluster["apiVersion"], cluster["metadata"]["namespace"]) == ("ray.io/v1", given.namespace)
    return cluster["spec"]


def templates(given: Installation) -> dict[str, dict[str, Any]]:
    """The templates of the pods of the head and of the workers."""
    whole = spec(given)
    (workers,) = whole["workerGroupSpecs"]
    return {"head": whole["headGroupSpec"]["template"], "worker": workers["template"]}


def container(given: Installation, role: str) -> dict[str, Any]:
    (found,) = templates(given)[role]["spec"]["containers"]
    return found


def run(given: Installation) -> dict[str, Any]:
    """The pod of a run in bolt-gpu, without the values of its variables."""
    return pool_template(given, "bolt-gpu")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]


@EACH
@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("role", ["head", "worker"])
def test_kubernetes_accepts_the_pods(given, version, role):
    pod = {"apiVersion": "v1", "kind": "Pod", **templates(given)[role]}
    pod["metadata"]["name"] = role
    kubernetes_validate.validate(pod, version, strict=True)


@EACH
def test_the_groups_are_as_kuberay_wants_them(given):
    whole = spec(given)
    (workers,) = whole["workerGroupSpecs"]
    assert (set(whole), set(workers)) == (SPEC, GROUP)
    assert set(whole["headGroupSpec"]) == {"rayStartParams", "template"}
    assert {workers[f"{which}eplicas"] for which in ("r", "minR", "maxR")} == {given.ray_workers}
    assert whole["enableInTreeAutoscaling"] is False
    assert f"ray=={whole['rayVersion']}" in (PROJECT_ROOT / "constraints.txt").read_text().splitlines()
    for group in (whole["headGroupSpec"], workers):
        assert {type(value) for value in group["rayStartParams"].values()} == {str}
    assert whole["headGroupSpec"]["rayStartParams"].items() >= {"num-cpus": "0", "num-gpus": "0"}.items()
    requested = container(given, "worker")["resources"]["requests"]
    expected = {"num-cpus": requested["cpu"], "num-gpus": str(given.gpus)}
    assert workers["rayStartParams"].items() >= expected.items()


def test_a_worker_is_like_a_run_of_bolt_gpu():
    pod = templates(FULL)["worker"]["spec"]
    assert pod["nodeSelector"] == {"accelerator": "h200", "example.com/pool": "training"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert container(FULL, "worker")["resources"]["limits"] == {"memory": "512Gi", "nvidia.com/gpu": 8}
    assert "nvidia.com/gpu" not in container(FULL, "head")["resources"]["limits"]
    assert "nodeSelector" not in templates(FULL)["head"]["spec"]


@EACH
@pytest.mark.parametrize("role", ["head", "worker"])
def test_all_nodes_see_what_a_run_sees(given, role):
    """Code, store, work folder, shared memory, secrets, and Prefect's address."""
    own, pod, (runs,) = container(given, role), templates(given)[role]["spec"], run(given)["containers"]
    variables = pool_template(given, "bolt-gpu")["variables"]["properties"]
    expected = json.dumps([run(given)["volumes"], runs["envFrom"], runs["volumeMounts"], runs["image"]])
    for name, each in variables.items():
        expected = expected.replace(f"{{{{ {name} }}}}", str(each.get("default")))
    assert [pod["volumes"], own["envFrom"], own["volumeMounts"], own["image"]] == json.loads(expected)
    api = {"PREFECT_API_URL": "http://bolt-prefect:4200/api"}
    env = {each["name"]: each["value"] for each in own["env"]}
    assert env.items() >= {**variables["env"]["default"], **api}.items()
    assert env["BOLT_STORE"] == given.store


@EACH
@pytest.mark.parametrize("role", ["head", "worker"])
def test_pods_may_do_nothing_to_their_node_or_to_the_cluster_and_hold_no_secret(given, role):
    pod, own = templates(given)[role]["spec"], container(given, role)
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert [each for each in own["env"] if re.search(r"(?i)password|token|secret|key", each["name"])] == []


def test_no_service_of_a_training_without_ray_finds_the_pods():
    whole = manifests(PLAIN._replace(machines=2))
    selectors = [each["spec"]["selector"].items() for each in whole if each["kind"] == "Service"]
    for template in templates(PLAIN).values():
        assert not any(selector <= template["metadata"]["labels"].items() for selector in selectors)


# ---- what the containers do


def expanded(argument: str) -> str:
    """An argument as Kubernetes passes it on: `$$` is `$`, and `$(NAME)` the value of a variable."""
    assert not re.search(r"\$\(", argument)
    return argument.replace("$$", "$")


@pytest.mark.parametrize("role", ["head", "worker"])
def test_the_commands_are_the_containers_own(role):
    own = container(PLAIN, role)
    assert manifests(PLAIN)[-1]["metadata"]["annotations"] == {"ray.io/overwrite-container-cmd": "true"}
    assert "command" not in own  # the image's entry point, tini, stays
    assert own["args"][:2] == ["bash", "-c"]
    assert "$KUBERAY_GEN_RAY_START_CMD" in own["args"][2]


@pytest.fixture
def pod(tmp_path: Path) -> Any:
    """Start a container's script with stand-ins for ray, python and prefect, in a process group as tini's."""
    stubs = {
        "ray": 'echo "ray $*" >> said; echo $$ > ray.pid; exec sleep 30',
        "python": 'echo "python $*" >> said; until [ -s ray.pid ]; do sleep 0.02; done',
        "prefect": 'echo "prefect $*" >> said; echo $$ > prefect.pid; exec sleep 30',
    }
    for name, script in stubs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "KUBERAY_GEN_RAY_START_CMD": "ray start --block"}

    def start(role: str) -> subprocess.Popen[bytes]:
        command = [expanded(each) for each in container(PLAIN, role)["args"]]
        return subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True)

    yield start
    for file in tmp_path.glob("*.pid"):
        subprocess.run(["kill", "-9", file.read_text().strip()], check=False, capture_output=True)


def process(file: Path) -> int:
    """The process that has written its id to a file."""
    until = time.monotonic() + 20
    while time.monotonic() < until and not (file.exists() and file.read_text().strip()):
        time.sleep(0.02)
    return int(file.read_text())


def test_the_worker_starts_once_the_head_has_joined(pod, tmp_path):
    head = pod("head")
    assert process(tmp_path / "prefect.pid") == head.pid
    said = (tmp_path / "said").read_text().splitlines()
    assert said[-1] == "prefect worker start --pool bolt-ray --type process --limit 1 --install-policy never"
    assert sorted(said[:-1]) == ["python -m infra.cluster.joined 1", "ray start --block"]
    head.kill()
    head.wait(10)


def test_the_container_ends_with_ray(pod, tmp_path):
    head = pod("head")
    process(tmp_path / "prefect.pid")
    os.kill(process(tmp_path / "ray.pid"), signal.SIGKILL)
    assert head.wait(20) == -signal.SIGTERM


def test_ray_is_there_until_the_run_has_ended(pod, tmp_path):
    """Of what tini passes on to its process group, Ray sees nothing."""
    head = pod("head")
    process(tmp_path / "prefect.pid")
    ray = process(tmp_path / "ray.pid")
    os.killpg(head.pid, signal.SIGTERM)
    assert head.wait(20) == -signal.SIGTERM
    os.kill(ray, 0)


def test_a_workers_container_is_ray_alone(pod, tmp_path):
    worker = pod("worker")
    assert process(tmp_path / "ray.pid") == worker.pid
    worker.kill()
    worker.wait(10)


# ---- the deployments


def named(given: Installation) -> dict[str, dict[str, Any]]:
    """The deployments that the cluster's job registers, by FLOW/NAME."""
    made = kuberay.deployments(given.ray_workers, given.gpus)["deployments"]
    names = [f"{each['entrypoint'].rpartition(':')[2].replace('_', '-')}/{each['name']}" for each in made]
    assert len(set(names)) == len(names)
    return dict(zip(names, made, strict=True))


@EACH
def test_each_deployment_of_bolt_gpu_has_a_copy_whose_parameters_its_flow_takes(given):
    presets = deployments()
    copied = {f"{name}-ray" for name, each in presets.items() if each["work_pool"]["name"] == "bolt-gpu"}
    found = named(given)
    assert set(found) == copied | {"rerun/scheduled"}
    for name, each in found.items():
        check(each["parameters"], flow_of(each))
        if name in copied:
            config = each["parameters"]["config"]
            assert config.get("base", config)["cluster"] == "ray"
            assert (each["work_pool"]["name"], each["schedules"]) == ("bolt-ray", [])
            assert (
                each["work_pool"]["job_variables"] == presets[name.removesuffix("-ray")]["work_pool"]["job_variables"]
            )


def test_a_copy_uses_the_gpus_that_there_are():
    def servers(name: str, workers: int, gpus: int) -> int:
        given = PLAIN._replace(ray_workers=workers, gpus=gpus)
        return named(given)[name]["parameters"]["config"]["serving"]["policy_servers"]

    assert servers("bolt/llama-8b-ray", 4, 8) == 32  # 8 on one machine
    assert servers("bolt/llama-8b-ray", 4, 4) == 16
    assert servers("bootstrap/llama-70b-ray", 4, 8) == 4  # of 8 GPUs each
    assert servers("bolt/nano-ray", 4, 8) == 8
    assert servers("bolt/nano-ray", 2, 1) == 1  # the reward model's server keeps the other
    assert servers("bolt/nano-ray", 2, 0) == 4


def test_hosts_are_training_nodes():
    config = named(FULL)["sft/llama-70b-ray"]["parameters"]["config"]
    assert (config["ray"], config["training"]) == ({"training_nodes": 8}, {})


def test_failed_runs_on_the_cluster_are_rerun_too():
    rerun = named(FULL)["rerun/scheduled"]
    own = deployments()["rerun/scheduled"]
    pools = rerun["parameters"]["config"]["work_pools"]
    assert pools == [*RerunConfig().work_pools, "bolt-ray"]
    assert (rerun["schedules"], rerun["work_pool"]) == (own["schedules"], own["work_pool"])


def test_a_schedule_stays_with_the_preset(tmp_path):
    text = (PROJECT_ROOT / "prefect.yaml").read_text()
    whole = yaml.safe_load(text)
    whole["deployments"][0]["schedules"] = [{"cron": "0 3 * * *"}]
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(whole))
    assert kuberay.deployments(2, 1, tmp_path / "prefect.yaml")["deployments"][0]["schedules"] == []


def test_prefect_reads_all_of_them_from_the_printed_file(tmp_path):
    printed = subprocess.run(
        [sys.executable, "-m", "infra.operations.kuberay", "4", "8"], cwd=PROJECT_ROOT, capture_output=True, check=True
    )
    (tmp_path / "ray.yaml").write_bytes(printed.stdout)
    read, _ = _load_deploy_configs_and_actions(tmp_path / "ray.yaml", console=Console())
    assert {each["name"] for each in read} == {each["name"] for each in named(FULL).values()}
    assert len(read) == len(named(FULL))


def test_the_job_makes_the_pool_and_registers_the_copies_after_the_presets():
    def script(given: Installation) -> str:
        (job,) = (each for each in manifests(given) if each["kind"] == "Job")
        (container,) = job["spec"]["template"]["spec"]["containers"]
        return container["args"][2]

    steps = script(FULL).split(" && ")
    assert (steps[0], steps[-1]) == (
        "prefect --no-prompt deploy --all",
        "python -m infra.operations.automations",
    )
    assert steps[1:-1] == kuberay.deploying(FULL)
    assert "kuberay 4 8 >" in script(FULL)
    subprocess.run(["sh", "-n", "-c", script(FULL)], check=True)
    assert script(FULL._replace(ray_workers=0)) == f"{steps[0]} && {steps[-1]}"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_prefect_takes_the_pool_and_the_copies_as_the_job_registers_them(tmp_path):
    whole = yaml.safe_load((PROJECT_ROOT / "prefect.yaml").read_text())
    whole["deployments"] = [
        each for each in whole["deployments"] if each["entrypoint"] in ("flows/sft.py:sft", "flows/rerun.py:rerun")
    ]
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(whole))
    made = kuberay.deployments(4, 8, tmp_path / "prefect.yaml")
    (tmp_path / "ray.yaml").write_text(yaml.safe_dump(made))
    url = prefect.settings.PREFECT_API_URL.value()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def command(script: str) -> None:
        env = {**os.environ, "PREFECT_API_URL": url, "PATH": path}
        here = ["sh", "-c", script.replace(kuberay.FILE, str(tmp_path / "ray.yaml"))]
        done = subprocess.run(here, env=env, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    makes, _, deploys = kuberay.deploying(FULL)
    with SyncPrefectClient(url) as client:
        client.create_work_pool(WorkPoolCreate(name="bolt-rerun", type="process"))
        command(makes)
        command(makes)  # a job that is tried again
        command(deploys)
        pool, found = client.read_work_pool("bolt-ray"), client.read_deployment_by_name("sft/llama-8b-ray")
        rerun = client.read_deployment_by_name("rerun/scheduled")
    assert (pool.type, found.work_pool_name, rerun.work_pool_name) == ("process", "bolt-ray", "bolt-rerun")
    assert (found.parameters["config"]["cluster"], found.schedules, found.tags) == ("ray", [], ["bolt"])
    assert found.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    folder = {"prefect.deployments.steps.set_working_directory": {"directory": str(PROJECT_ROOT)}}
    assert (found.entrypoint, found.pull_steps) == ("flows/sft.py:sft", [folder])
    assert rerun.parameters["config"]["work_pools"][-1] == "bolt-ray"
    assert len(rerun.schedules) == 1


# ---- the command


def test_without_the_option_nothing_is_rendered_of_it():
    none = FULL._replace(ray_workers=0)
    assert not re.search(r"(?i)\bray\b|kuberay", rendered(none))
    assert list(POOLS) == ["bolt-gpu", "bolt-cpu", "bolt-rerun"]
    others = [each for each in manifests(FULL) if each["kind"] not in ("RayCluster", "Job")]
    assert others == [each for each in manifests(none) if each["kind"] != "Job"]


@EACH
def test_the_text_is_the_manifests_and_says_what_to_type(given):
    assert list(yaml.safe_load_all(rendered(given))) == manifests(given)
    text = instructions(given)
    assert all(line.startswith("# ") for line in text.splitlines())
    for word in ("helm install kuberay-operator", "raycluster/bolt-ray", "'bolt/nano-ray'", given.namespace):
        assert word in text
    assert "bolt/nano-ray" in named(given)


@pytest.mark.parametrize("number", ["-1", "-20"])
def test_a_bad_number_is_refused_by_the_options_name(number):
    said = f"--ray-workers {number}: is too small; expected 0 or more, e.g. --ray-workers 1"
    with pytest.raises(BadInput, match=re.escape(said)):
        rendered(PLAIN._replace(ray_workers=int(number)))


def test_the_command(capsys):
    images = ["--image", PLAIN.image, "--worker-image", PLAIN.worker_image]
    assert main(["kubernetes", *images, "--ray-workers", "2"]) == 0
    assert capsys.readouterr().out == rendered(PLAIN)
    assert main(["kubernetes", *images]) == main(["kubernetes", *images, "--ray-workers", "0"]) == 0
    both = capsys.readouterr().out
    assert both == rendered(PLAIN._replace(ray_workers=0)) * 2
    assert main(["kubernetes", *images, "--ray-workers", "-1"]) == 2
    assert capsys.readouterr().err.startswith("error: --ray-workers -1: is too small")
    with pytest.raises(SystemExit):
        main(["kubernetes", *images, "--ray-workers", "two"])
    assert "--ray-workers: invalid int value: 'two'" in capsys.readouterr().err
