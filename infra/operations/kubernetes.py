"""Manifests of an installation on Kubernetes: `python -m infra kubernetes --image ... --worker-image ... > bolt.yaml`.

One namespace with PostgreSQL, Prefect's server, a worker for each work pool, a job that deploys the flows, the volume
that all runs share, agents if a training uses several machines, and a Ray cluster if one is wanted. The runs' own
template is `infra/containers/kubernetes.json`, the agents are those of `infra/containers/nodes.yaml`. No manifest holds
a secret: the two that they name are made by the commands in the comments at the head.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from infra.operations import kuberay
from infra.operations.cluster import Installation, check, labels
from infra.operations.pods import Manifest, confined, digest, env, manifest, pod_of, resources, service, workload
from infra.settings import PROJECT_ROOT

CONTAINERS = PROJECT_ROOT / "infra" / "containers"
POSTGRES_IMAGE = "postgres:17.6-bookworm"
POSTGRES, SERVER, WORKER, DEPLOY = "bolt-postgres", "bolt-prefect", "bolt-worker", "bolt-deploy"
SETTINGS, CLAIM, TEMPLATES = "bolt-settings", "bolt-data", "bolt-pools"
API_URL = f"http://{SERVER}:4200/api"

ANYWHERE: dict[str, Any] = {"gpus": 0, "node_selector": {}, "tolerations": []}
# What the pools' runs need where it differs from kubernetes.json. Only runs of bolt-gpu have the label `app: bolt`, by
# which nodes.yaml finds the first machine of a training.
POOLS: dict[str, dict[str, Any]] = {
    "bolt-gpu": {},
    "bolt-cpu": {**ANYWHERE, "cpu": "4", "memory": "32Gi", "labels": {"app": "bolt-cpu"}},
    "bolt-rerun": {**ANYWHERE, "cpu": "1", "memory": "4Gi", "labels": {"app": "bolt-rerun"}},
}


def rendered(given: Installation) -> str:
    """The manifests as YAML, headed by the commands that belong to them.

    Raises:
        BadInput: an option does not fit; the text names it, what was expected, and what to give instead.
    """
    documents = yaml.dump_all(manifests(given), Dumper=_Dumper, sort_keys=False, explicit_start=True, width=120)
    return instructions(given) + documents


def instructions(given: Installation) -> str:
    """What to type, as comments. No secret is given on a command line, where other processes could read it."""
    kubectl = f"kubectl -n {given.namespace}"
    lines = [
        "BOLT on Kubernetes, as `python -m infra kubernetes` rendered it. To change something, render it again.",
        "1. kubectl apply -f THIS_FILE",
        f"2. Once, the database's password, which nobody needs to know. Pods wait until {POSTGRES} exists:",
        f"   openssl rand -hex 24 | tr -d '\\n' | {kubectl} create secret generic {POSTGRES}"
        " --from-file=password=/dev/stdin",
        f"3. If runs need keys (BOLT_ACCESS_KEY_ID, HF_TOKEN, ...), a file of lines NAME=VALUE as {SETTINGS}:",
        f"   {kubectl} create secret generic {SETTINGS} --from-env-file=FILE",
        f"4. {kubectl} wait --for=condition=Complete job -l app={DEPLOY} --timeout=15m",
        f"5. {kubectl} port-forward service/{SERVER} 4200:4200    # then Prefect's UI is at http://localhost:4200",
        *(kuberay.instructions(given) if given.ray_workers else []),
    ]
    return "".join(f"# {line}\n" for line in lines)


def manifests(given: Installation) -> list[Manifest]:
    """All manifests, in an order in which they can be applied."""
    check(given)
    found = [
        manifest("v1", "Namespace", given.namespace),
        _from_this_namespace_only(),
        _claim(given),
        *_postgres(),
        *_server(given),
        *_workers(given),
        _deployer(given),
        *(_agents(given) if given.machines > 1 else []),
        *(_ray_cluster(given) if given.ray_workers else []),
    ]
    for each in found[1:]:
        each["metadata"]["namespace"] = given.namespace
    return found


def pool_template(given: Installation, pool: str) -> dict[str, Any]:
    """The base job template of a work pool: that of kubernetes.json with this installation's values as defaults."""
    template: dict[str, Any] = json.loads((CONTAINERS / "kubernetes.json").read_text(encoding="utf-8"))
    variables = template["variables"]["properties"]
    values: dict[str, Any] = {
        "image": given.image,
        "namespace": given.namespace,
        "volume_claim": CLAIM,
        "settings_secret": SETTINGS,
        "env": {**variables["env"]["default"], "BOLT_STORE": given.store},
        "gpus": given.gpus,
        "memory": given.memory,
        "node_selector": labels(given.node_selector),
        **POOLS[pool],
    }
    for name, value in values.items():
        variables[name]["default"] = value
    template["variables"]["required"] = []
    return template


def _from_this_namespace_only() -> Manifest:
    """Prefect's server asks for no password, and whoever reaches it can run code."""
    policy = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}
    return manifest("networking.k8s.io/v1", "NetworkPolicy", "bolt-from-this-namespace-only", spec=policy)


def _claim(given: Installation) -> Manifest:
    claim: dict[str, Any] = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": given.storage}},
    }
    if given.storage_class is not None:
        claim["storageClassName"] = given.storage_class
    return manifest("v1", "PersistentVolumeClaim", CLAIM, spec=claim)


def _password(variable: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": POSTGRES, "key": "password"}}}


def _postgres() -> list[Manifest]:
    folder = "/var/lib/postgresql/data"
    ready = {"exec": {"command": ["pg_isready", "--username=prefect", "--dbname=prefect"]}}
    container = {
        "name": "postgres",
        "image": POSTGRES_IMAGE,
        # The volume's own folder may hold `lost+found`, and the database wants an empty one.
        "env": [
            *env(POSTGRES_USER="prefect", POSTGRES_DB="prefect", PGDATA=f"{folder}/pgdata"),
            _password("POSTGRES_PASSWORD"),
        ],
        "ports": [{"containerPort": 5432}],
        "readinessProbe": {**ready, "periodSeconds": 10},
        "livenessProbe": {**ready, "initialDelaySeconds": 60, "periodSeconds": 30, "failureThreshold": 5},
        "resources": resources("250m", "512Mi", "2Gi"),
        "volumeMounts": [{"name": "database", "mountPath": folder}],
    }
    volume = {
        "metadata": {"name": "database"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}},
    }
    pod = pod_of(container, user=999)  # the image's user `postgres`
    more = {"serviceName": POSTGRES, "volumeClaimTemplates": [volume]}
    return [service(POSTGRES, 5432, clusterIP="None"), workload("apps/v1", "StatefulSet", POSTGRES, pod, **more)]


def _server(given: Installation) -> list[Manifest]:
    health = {"httpGet": {"path": "/api/health", "port": 4200}, "timeoutSeconds": 5}
    container = {
        "name": "server",
        "image": given.worker_image,
        "args": ["prefect", "server", "start", "--host", "0.0.0.0"],  # noqa: S104  # the pod's own network
        # Prefect makes the database's address of these, and quotes the password in it.
        "env": [
            *env(
                PREFECT_SERVER_DATABASE_DRIVER="postgresql+asyncpg",
                PREFECT_SERVER_DATABASE_HOST=POSTGRES,
                PREFECT_SERVER_DATABASE_PORT="5432",
                PREFECT_SERVER_DATABASE_USER="prefect",
                PREFECT_SERVER_DATABASE_NAME="prefect",
                PREFECT_SERVER_UI_API_URL="http://localhost:4200/api",
                PREFECT_SERVER_ANALYTICS_ENABLED="false",
                DO_NOT_TRACK="1",
            ),
            _password("PREFECT_SERVER_DATABASE_PASSWORD"),
        ],
        "ports": [{"containerPort": 4200}],
        "startupProbe": {**health, "periodSeconds": 5, "failureThreshold": 60},  # it makes its tables first
        "readinessProbe": {**health, "periodSeconds": 10},
        "livenessProbe": {**health, "periodSeconds": 30, "failureThreshold": 5},
        "resources": resources("500m", "1Gi", "4Gi"),
    }
    deployment = workload("apps/v1", "Deployment", SERVER, pod_of(container), strategy={"type": "Recreate"})
    return [service(SERVER, 4200), deployment]


def _workers(given: Installation) -> list[Manifest]:
    """The pools' templates, the workers' rights, and a worker for each pool.

    A worker creates jobs, deletes them when their run is cancelled, and watches them and their pods. With the variable
    OBSERVER_NAMESPACES it watches its own namespace alone. It reads the logs of pods that crashed, but no secret.
    """
    templates = {f"{pool}.json": json.dumps(pool_template(given, pool), indent=1) for pool in POOLS}
    rules = [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "delete", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    ]
    group = "rbac.authorization.k8s.io"
    return [
        manifest("v1", "ConfigMap", TEMPLATES, data=templates),
        manifest("v1", "ServiceAccount", WORKER),
        manifest(f"{group}/v1", "Role", WORKER, rules=rules),
        manifest(
            f"{group}/v1",
            "RoleBinding",
            WORKER,
            roleRef={"apiGroup": group, "kind": "Role", "name": WORKER},
            subjects=[{"kind": "ServiceAccount", "name": WORKER, "namespace": given.namespace}],
        ),
        *(_worker(given, pool, templates[f"{pool}.json"]) for pool in POOLS),
    ]


def _worker(given: Installation, pool: str, template: str) -> Manifest:
    """A worker that first makes its pool, or gives it the template. A new template is a new pod, by the annotation."""
    file = f"/pools/{pool}.json"
    makes = (  # an update keeps the limit, which the user may have raised
        f"prefect work-pool update {pool} --base-job-template {file}"
        f" || (prefect work-pool create {pool} --type kubernetes --base-job-template {file}"
        f" && prefect work-pool set-concurrency-limit {pool} 1)"
    )
    common = {
        "image": given.worker_image,
        "env": env(
            PREFECT_API_URL=API_URL,
            PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES=given.namespace,
            DO_NOT_TRACK="1",
        ),
        "resources": resources("100m", "512Mi", "1Gi"),
    }
    start = ["prefect", "worker", "start", "--pool", pool, "--type", "kubernetes", "--install-policy", "never"]
    mounted = [{"name": "pools", "mountPath": "/pools", "readOnly": True}]
    pod = pod_of(
        {
            "name": "worker",
            **common,
            "args": [*start, "--with-healthcheck"],
            "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 60, "failureThreshold": 5},
        },
        serviceAccountName=WORKER,
        automountServiceAccountToken=True,
        initContainers=[confined({"name": "pool", **common, "args": ["sh", "-c", makes], "volumeMounts": mounted})],
        volumes=[{"name": "pools", "configMap": {"name": TEMPLATES}}],
        metadata={"annotations": {"bolt/template": digest(template)}},
    )
    return workload("apps/v1", "Deployment", f"{WORKER}-of-{pool}", pod, strategy={"type": "Recreate"})


def _deployer(given: Installation) -> Manifest:
    """A job that registers the deployments and automations from the runs' image, whose folder they then name. It is
    tried again until the pools exist. A job cannot be changed, so that its name has a digest of what it does."""
    commands = [
        "prefect --no-prompt deploy --all",
        *(kuberay.deploying(given) if given.ray_workers else []),
        "python -m infra.operations.automations",
    ]
    container = {
        "name": "deploy",
        "image": given.image,
        "args": ["sh", "-c", " && ".join(commands)],
        "env": env(PREFECT_API_URL=API_URL, DO_NOT_TRACK="1"),
        "resources": resources("500m", "2Gi", "4Gi"),
    }
    job = workload(
        "batch/v1",
        "Job",
        DEPLOY,
        pod_of(container, restartPolicy="Never"),
        backoffLimit=8,
        ttlSecondsAfterFinished=86_400,
    )
    job["metadata"]["name"] += f"-{digest(json.dumps(job))}"
    return job


def _agents(given: Installation) -> list[Manifest]:
    """nodes.yaml for this installation: the machines of a training but the first, which runs the flow."""
    text = (CONTAINERS / "nodes.yaml").read_text(encoding="utf-8")
    found: list[Manifest] = list(yaml.safe_load_all(text))
    stateful = next(each for each in found if each["kind"] == "StatefulSet")
    stateful["spec"]["replicas"] = given.machines - 1
    pod = stateful["spec"]["template"]["spec"]
    variables = pool_template(given, "bolt-gpu")["variables"]["properties"]
    pod["nodeSelector"] = variables["node_selector"]["default"]
    pod["tolerations"] = variables["tolerations"]["default"]
    (container,) = pod["containers"]
    container["image"] = given.image
    container["resources"]["requests"]["memory"] = given.memory
    container["resources"]["limits"] = {"memory": given.memory, "nvidia.com/gpu": given.gpus}
    return found


def _ray_cluster(given: Installation) -> list[Manifest]:
    """The Ray cluster, whose workers are like a run of bolt-gpu."""
    variables = pool_template(given, kuberay.GPU_POOL)["variables"]["properties"]
    runs = {name: each.get("default") for name, each in variables.items()}
    return [kuberay.ray_cluster(given, runs, API_URL)]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are, and equal parts each time anew."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
