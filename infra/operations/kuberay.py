"""A Ray cluster on Kubernetes (docs/scale.md): `python -m infra kubernetes ... --ray-workers N`.

The manifest is a RayCluster, whose pods KubeRay's operator makes: a head without GPUs, and workers. A Prefect worker
beside the head takes the runs of the pool `bolt-ray`, so that a flow runs on a node of the cluster, as it must.

A deployment belongs to one pool, and `prefect deployment run` cannot choose another. So each deployment of `bolt-gpu`
has a copy in `bolt-ray`, with `-ray` at the end of its name. `python -m infra.operations.kuberay WORKERS GPUS` prints
these copies for `prefect deploy`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.operations.cluster import SHARED, Installation
from infra.operations.pods import Manifest, env, manifest, pod_of
from infra.settings import PROJECT_ROOT

NAME = POOL = "bolt-ray"
GPU_POOL = "bolt-gpu"
ENDING = "-ray"
RAY_VERSION = "2.60.0"
"""As in constraints.txt. By it, KubeRay asks for a node's health over HTTP: the image has no wget."""
KUBERAY = "1.7.0"
FILE = f"/tmp/{POOL}.yaml"  # noqa: S108  # in the container of the job that deploys
HEAD_CPU, HEAD_MEMORY = "4", "32Gi"
OBJECT_STORE_BYTES = str(2**30)
"""What nodes exchange is small, and /dev/shm is for vLLM and torchrun. Ray's own default is a third of the memory."""

OPEN_FILES = "ulimit -n 65536"
"""KubeRay leaves this to whoever gives the container's command."""

# Ray is in a session of its own, so that it is there until the run has ended: tini passes a signal to our process group
# alone. If Ray ends, so do the worker and the container, which is then started again. Kubernetes makes `$` of `$$`.
HEAD = f"""\
{OPEN_FILES}
worker=$BASHPID
(setsid --wait $KUBERAY_GEN_RAY_START_CMD; kill "$worker") &
python -m infra.cluster.joined 1 || exit
exec prefect worker start --pool {POOL} --type process --limit 1 --install-policy never
"""
WORKER = f"{OPEN_FILES}; exec $KUBERAY_GEN_RAY_START_CMD"


def ray_cluster(given: Installation, runs: Mapping[str, Any], api_url: str) -> Manifest:
    """The RayCluster.

    Args:
        runs: the defaults of the variables of bolt-gpu's job template: its workers are like a run there.
        api_url: Prefect's address.
    """
    cpu, memory, gpus = runs["cpu"], runs["memory"], runs["gpus"]
    variables = {**runs["env"], "PREFECT_API_URL": api_url, "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    # The head has no cores for Ray to deal out: the flow has them.
    on_head = {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "127.0.0.1"}
    head = {
        "rayStartParams": {**on_head, "object-store-memory": OBJECT_STORE_BYTES},
        "template": _template(runs, variables, "head", HEAD, HEAD_CPU, {"memory": HEAD_MEMORY}),
    }
    limits = {"memory": memory, "nvidia.com/gpu": gpus}
    worker: dict[str, Any] = {
        "groupName": "workers",
        "replicas": given.ray_workers,
        "minReplicas": given.ray_workers,
        "maxReplicas": given.ray_workers,
        "rayStartParams": {"num-cpus": cpu, "num-gpus": str(gpus), "object-store-memory": OBJECT_STORE_BYTES},
        "template": _template(runs, variables, "worker", WORKER, cpu, limits),
    }
    worker["template"]["spec"] |= {"nodeSelector": runs["node_selector"], "tolerations": runs["tolerations"]}
    spec = {
        "rayVersion": RAY_VERSION,
        "enableInTreeAutoscaling": False,
        "upgradeStrategy": {"type": "Recreate"},  # without it, running pods would keep the old image
        "headGroupSpec": head,
        "workerGroupSpecs": [worker],
    }
    made = manifest("ray.io/v1", "RayCluster", NAME, spec=spec)
    made["metadata"]["annotations"] = {"ray.io/overwrite-container-cmd": "true"}  # the containers' own commands
    return made


def _template(
    runs: Mapping[str, Any], variables: Mapping[str, str], role: str, script: str, cpu: str, limits: dict[str, Any]
) -> dict[str, Any]:
    """The template of a pod: the image's own entry point, tini, runs the script. Volumes are those of a run."""
    container = {
        "name": f"ray-{role}",
        "image": runs["image"],
        "imagePullPolicy": runs["image_pull_policy"],
        "args": ["bash", "-c", script],
        "env": env(**variables),
        "envFrom": [{"secretRef": {"name": runs["settings_secret"], "optional": True}}],
        "resources": {"requests": {"cpu": cpu, "memory": limits["memory"]}, "limits": limits},
        "volumeMounts": [{"name": "data", "mountPath": SHARED}, {"name": "shm", "mountPath": "/dev/shm"}],  # noqa: S108
    }
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": runs["volume_claim"]}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": runs["shm_size"]}},
    ]
    # No label `app: bolt`, by which nodes.yaml finds the first machine of a training without Ray.
    labels = {"app": f"{NAME}-{role}"}
    pod = pod_of(container, terminationGracePeriodSeconds=60, volumes=volumes)
    return {"metadata": {"labels": labels}, "spec": pod}


def deploying(given: Installation) -> list[str]:
    """The commands, in the runs' image, that register the pool and its deployments."""
    return [
        f"(prefect work-pool inspect {POOL} || prefect work-pool create {POOL} --type process)",
        f"python -m infra.operations.kuberay {given.ray_workers} {given.gpus} > {FILE}",
        f"prefect --no-prompt deploy --all --prefect-file {FILE}",
    ]


def instructions(given: Installation) -> list[str]:
    """What to type besides, and what to know, for the comments at the manifests' head."""
    kubectl = f"kubectl -n {given.namespace}"
    return [
        "The Ray cluster needs KubeRay's operator, 1.6 or later. Before step 1, once in a Kubernetes cluster:",
        "   helm repo add kuberay https://ray-project.github.io/kuberay-helm/",
        f"   helm install kuberay-operator kuberay/kuberay-operator --version {KUBERAY}"
        " --namespace kuberay --create-namespace",
        f"6. {kubectl} wait --for=condition=RayClusterProvisioned raycluster/{NAME} --timeout=30m",
        f"7. {kubectl} exec $({kubectl} get pod -o name -l ray.io/cluster={NAME},ray.io/node-type=head) -- ray status",
        f"A Prefect worker beside Ray's head takes the runs of the work pool {POOL}, one at a time. A deployment",
        f"belongs to one pool: the job of step 4 registers a copy of each one of {GPU_POOL}, with {ENDING} at the end",
        "of its name. The copy has cluster: ray, as many policy servers for each Ray worker as the preset has for its",
        "machine (fewer, if the GPUs do not suffice), and training.hosts as ray.training_nodes. From CI, or by hand:",
        f"   PREFECT_API_URL=http://localhost:4200/api prefect deployment run 'bolt/nano{ENDING}' --watch",
        "Applying another image or other pods ends a run in progress, since all pods of the Ray cluster are made anew;",
        "another number of workers does not.",
    ]


def deployments(workers: int, gpus: int, path: Path = PROJECT_ROOT / "prefect.yaml") -> dict[str, Any]:
    """What `prefect deploy` is to register for the cluster: the copies, and `rerun`, which then looks at them too."""
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    made = []
    for each in json.loads(json.dumps(whole["deployments"])):  # a copy of each part, also of those that YAML shares
        config = each["parameters"]["config"]
        if each["work_pool"]["name"] == GPU_POOL:
            made.append(_on_ray(each, workers, gpus))
        elif GPU_POOL in config.get("work_pools", ()):
            config["work_pools"].append(POOL)
            made.append(each)
    return {"name": whole["name"], "deployments": made}


def _on_ray(preset: dict[str, Any], workers: int, gpus: int) -> dict[str, Any]:
    """A deployment as it runs on the cluster. It has no schedule, which the preset itself keeps."""
    config = preset["parameters"]["config"]
    common = config.get("base", config)  # a study's cells have the parameters of its base
    common["cluster"] = "ray"
    common["serving"].pop("policy_devices", None)
    common["serving"]["policy_servers"] = _servers(common["serving"], workers, gpus)
    if hosts := common.get("training", {}).pop("hosts", ()):
        common["ray"] = {**common.get("ray", {}), "training_nodes": len(hosts)}
    preset["work_pool"]["name"] = POOL
    return {**preset, "name": preset["name"] + ENDING, "schedules": []}


def _servers(serving: Mapping[str, Any], workers: int, gpus: int) -> int:
    """As many servers of the policy for each worker as the preset has for its machine, if there are GPUs for them."""
    wanted = workers * int(serving.get("policy_servers", 1))
    if gpus == 0:
        return wanted
    policy, reward = (int(serving[role].get("tensor_parallel_size", 1)) for role in ("policy", "reward"))
    free = workers * gpus - (0 if serving.get("share_devices", True) else reward)
    return max(1, min(wanted, free // policy))


if __name__ == "__main__":
    of_workers, of_gpus = map(int, sys.argv[1:])
    yaml.safe_dump(deployments(of_workers, of_gpus), sys.stdout, sort_keys=False, width=120)
