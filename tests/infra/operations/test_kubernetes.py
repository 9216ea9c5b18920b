"""The manifests for Kubernetes: valid by its own schemas, consistent with each other, and without a secret."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import prefect.settings
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.utilities.templating import apply_values
from prefect.workers.base import BaseJobConfiguration

from flows.rerun import RerunConfig
from infra.__main__ import main
from infra.errors import BadInput
from infra.operations import stack
from infra.operations.cluster import Installation
from infra.operations.kubernetes import POOLS, instructions, manifests, pool_template, rendered
from infra.settings import PROJECT_ROOT

DOCKERFILE = PROJECT_ROOT / "infra" / "containers" / "Dockerfile.worker"
PLAIN = Installation(image="registry.example.com/bolt:0.2.0", worker_image="registry.example.com/bolt-worker:0.2.0")
FULL = PLAIN._replace(
    namespace="research",
    store="s3://bucket/bolt",
    gpus=8,
    memory="512Gi",
    machines=3,
    node_selector=("accelerator=h200", "example.com/pool=training"),
    storage="2Ti",
    storage_class="shared-nfs",
)
EACH = pytest.mark.parametrize("given", [PLAIN, FULL], ids=["plain", "full"])
VERSIONS = ["1.29", kubernetes_validate.latest_version()]
DOCKER = json.loads((DOCKERFILE.parent / "docker.json").read_text())
WORKLOADS = ("Deployment", "StatefulSet", "Job")


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within a manifest."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(each)


def job(given: Installation, pool: str) -> dict[str, Any]:
    """The job of a run: the pool's template with its defaults, then what the worker turns into lists."""
    template = pool_template(given, pool)
    defaults = BaseJobConfiguration._get_base_config_defaults(template["variables"]["properties"])
    made: dict[str, Any] = dict(apply_values(template["job_configuration"], defaults))["job_manifest"]
    pod = made["spec"]["template"]["spec"]
    # prefect-kubernetes refuses a template without these two. Kubernetes knows no such fields of a pod and drops them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    (container,) = pod["containers"]
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    container["args"] = ["prefect", "flow-run", "execute"]
    return made


def everything(given: Installation) -> list[dict[str, Any]]:
    """The manifests, and a job of each pool."""
    return [*yaml.safe_load_all(rendered(given)), *(job(given, pool) for pool in POOLS)]


def named(given: Installation, kind: str, name: str) -> dict[str, Any]:
    return next(each for each in manifests(given) if (each["kind"], each["metadata"]["name"]) == (kind, name))


def pods(given: Installation) -> dict[str, dict[str, Any]]:
    """The pods' templates of the manifests."""
    return {
        each["metadata"]["name"]: each["spec"]["template"] for each in manifests(given) if each["kind"] in WORKLOADS
    }


@EACH
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_each_manifest_and_each_job(given, version):
    for each in everything(given):
        kubernetes_validate.validate(each, version, strict=True)


def test_a_mistake_would_be_noticed():
    service = named(PLAIN, "Service", "bolt-prefect")
    service["spec"]["port"] = 4200
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, VERSIONS[-1], strict=True)


@EACH
def test_the_text_is_the_manifests(given):
    assert list(yaml.safe_load_all(rendered(given))) == manifests(given)
    assert "&id" not in rendered(given)


@EACH
def test_names_are_unique_and_all_is_in_the_namespace(given):
    namespace, *found = manifests(given)
    assert (namespace["kind"], namespace["metadata"]["name"]) == ("Namespace", given.namespace)
    assert {each["metadata"]["namespace"] for each in found} == {given.namespace}
    assert {job(given, pool)["metadata"]["namespace"] for pool in POOLS} == {given.namespace}
    names = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(names) == len(set(names))


@EACH
def test_selectors_match_the_pods_and_ports_that_they_are_meant_for(given):
    found = manifests(given)
    for each in found:
        if each["kind"] in ("Deployment", "StatefulSet"):
            assert each["spec"]["selector"]["matchLabels"] == each["spec"]["template"]["metadata"]["labels"]
        if each["kind"] == "StatefulSet":
            assert named(given, "Service", each["spec"]["serviceName"])
    running = {**pods(given), **{pool: job(given, pool)["spec"]["template"] for pool in POOLS}}
    selected = {}
    for each in (each for each in found if each["kind"] == "Service"):
        wanted = each["spec"]["selector"].items()
        (name,) = [name for name, pod in running.items() if wanted <= pod["metadata"]["labels"].items()]
        selected[each["metadata"]["name"]] = name
        (container,) = running[name]["spec"]["containers"]
        open_ports = {port["containerPort"] for port in container.get("ports", [])}
        assert {port["targetPort"] for port in each["spec"].get("ports", [])} == open_ports
    agents = {"bolt-flow": "bolt-gpu", "bolt-node": "bolt-node"} if given.machines > 1 else {}
    assert selected == {"bolt-postgres": "bolt-postgres", "bolt-prefect": "bolt-prefect", **agents}


@EACH
def test_all_that_is_referred_to_exists_or_is_made_by_a_printed_command(given):
    found = everything(given)
    made = {(each["kind"], each["metadata"].get("name")) for each in found}
    secrets = set(re.findall(rf"kubectl -n {given.namespace} create secret generic (\S+)", instructions(given)))
    used = {
        (kind, each[field]["name"])
        for manifest in found
        for each in parts(manifest)
        for field, kind in (("secretKeyRef", "Secret"), ("secretRef", "Secret"), ("configMap", "ConfigMap"))
        if field in each
    }
    for each in (each for manifest in found for each in parts(manifest)):
        if "claimName" in each:
            used.add(("PersistentVolumeClaim", each["claimName"]))
        if "roleRef" in each:
            used |= {("Role", each["roleRef"]["name"]), *((s["kind"], s["name"]) for s in each["subjects"])}
        if each.get("serviceAccountName", "default") != "default":
            used.add(("ServiceAccount", each["serviceAccountName"]))
    assert {name for kind, name in used if kind == "Secret"} == secrets
    assert used <= made | {("Secret", name) for name in secrets}
    for each in found:
        if each["kind"] in WORKLOADS:
            pod = each["spec"]["template"]["spec"]
            volumes = {volume["name"] for volume in pod.get("volumes", [])}
            volumes |= {claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])}
            containers = [*pod["containers"], *pod.get("initContainers", [])]
            assert {m["name"] for c in containers for m in c.get("volumeMounts", [])} == volumes


@EACH
def test_no_manifest_holds_a_secret(given):
    found = everything(given)
    assert "Secret" not in {each["kind"] for each in found}
    for each in (each for manifest in found for each in parts(manifest)):
        if re.search(r"(?i)password|token|secret|(access|api)_key", str(each.get("name"))) and "mountPath" not in each:
            assert "value" not in each, each
    assert not re.search(r"://[^\s/@]+:[^\s/@]+@", rendered(given))  # an address with a password in it
    assert "create secret" in rendered(given)
    assert not re.search(r"--from-literal", rendered(given))  # it would show the secret on a command line


@EACH
def test_images_are_those_given_and_none_moves(given):
    images = {each["image"] for manifest in everything(given) for each in parts(manifest) if "image" in each}
    assert images >= {given.image, given.worker_image}
    ours = images - {given.image, given.worker_image}
    assert len(ours) == 1
    assert re.fullmatch(r"postgres:\d+\.\d+-\w+", ours.pop())


def test_pods_may_do_nothing_to_their_node_and_only_workers_anything_to_the_cluster():
    for name, pod in pods(PLAIN).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in [*spec["containers"], *spec.get("initContainers", [])]:
            assert each["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert spec["automountServiceAccountToken"] == name.startswith("bolt-worker-of-")
        assert spec["enableServiceLinks"] is False
    assert {job(PLAIN, pool)["spec"]["template"]["spec"]["automountServiceAccountToken"] for pool in POOLS} == {False}


def test_a_worker_may_start_and_end_jobs_and_watch_their_pods_and_nothing_else():
    rules = named(PLAIN, "Role", "bolt-worker")["rules"]
    assert {(resource, verb) for each in rules for resource in each["resources"] for verb in each["verbs"]} == {
        *(("jobs", verb) for verb in ("create", "delete", "list", "watch")),
        *(("pods", verb) for verb in ("list", "watch")),
        ("pods/log", "get"),
    }
    (worker,) = pods(FULL)["bolt-worker-of-bolt-gpu"]["spec"]["containers"]
    observed = {"name": "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES", "value": FULL.namespace}
    assert observed in worker["env"]  # without it, the worker would watch all namespaces


def test_the_pools_are_those_of_the_deployments():
    deployed = yaml.safe_load((PROJECT_ROOT / "prefect.yaml").read_text())["deployments"]
    assert {each["work_pool"]["name"] for each in deployed} == set(POOLS) == set(stack.POOLS)
    assert {*RerunConfig().work_pools, "bolt-rerun"} == set(POOLS)
    for pool in POOLS:
        (worker,) = pods(PLAIN)[f"bolt-worker-of-{pool}"]["spec"]["containers"]
        assert worker["args"][:5] == ["prefect", "worker", "start", "--pool", pool]


def test_runs_with_gpus_go_to_the_nodes_selected_and_others_anywhere():
    for pool in POOLS:
        spec = job(FULL, pool)["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        selected = {"accelerator": "h200", "example.com/pool": "training"}
        tolerated = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        expected = (8, selected, tolerated) if pool == "bolt-gpu" else (0, {}, [])
        assert (gpus, spec["nodeSelector"], spec["tolerations"]) == expected
        assert {"name": "BOLT_STORE", "value": "s3://bucket/bolt"} in container["env"]
        assert container["envFrom"] == [{"secretRef": {"name": "bolt-settings", "optional": True}}]
        assert container["image"] == FULL.image
    (container,) = job(FULL, "bolt-gpu")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == "512Gi"


def test_the_agents_are_like_the_run_on_the_first_machine():
    agents = named(FULL, "StatefulSet", "bolt-node")
    assert agents["spec"]["replicas"] == 2
    pod, runs = (each["spec"]["template"]["spec"] for each in (agents, job(FULL, "bolt-gpu")))
    for field in ("nodeSelector", "tolerations", "volumes"):
        assert pod[field] == runs[field]
    (container,), (run,) = pod["containers"], runs["containers"]
    for field in ("image", "volumeMounts"):
        assert container[field] == run[field]
    assert container["resources"]["limits"] == run["resources"]["limits"]
    assert "StatefulSet/bolt-node" not in {f"{e['kind']}/{e['metadata']['name']}" for e in manifests(PLAIN)}


def test_what_changes_is_rolled_out():
    """A job cannot be changed, and a worker's pod makes the pool only when it starts."""
    changed = PLAIN._replace(image="registry.example.com/bolt:0.2.1")

    def made(given: Installation) -> tuple[str, dict[str, Any]]:
        (deploys,) = (each["metadata"]["name"] for each in manifests(given) if each["kind"] == "Job")
        return deploys, pods(given)["bolt-worker-of-bolt-cpu"]["metadata"]["annotations"]

    assert made(PLAIN) == made(PLAIN)
    assert made(PLAIN)[0] != made(changed)[0]
    assert made(PLAIN)[1] != made(changed)[1]


def test_prefect_makes_the_databases_address_of_the_servers_variables(monkeypatch):
    (server,) = pods(PLAIN)["bolt-prefect"]["spec"]["containers"]
    for each in server["env"]:
        monkeypatch.setenv(each["name"], each.get("value", "p@ss/word"))
    found = prefect.settings.Settings().server.database.connection_url
    assert found.get_secret_value() == "postgresql+asyncpg://prefect:p%40ss%2Fword@bolt-postgres:5432/prefect"
    (database,) = pods(PLAIN)["bolt-postgres"]["spec"]["containers"]
    assert {"name": "POSTGRES_USER", "value": "prefect"} in database["env"]
    assert {"name": "POSTGRES_DB", "value": "prefect"} in database["env"]


def test_the_workers_image_has_the_projects_prefect_and_every_other_version_pinned():
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    (install,) = re.findall(r"^RUN pip install (.*)$", text, re.MULTILINE)
    words = [word for word in install.split() if not word.startswith("-") and not word.startswith("/")]
    assert [word for word in words if "==" not in word] == ["prefect"]
    assert "--constraint /tmp/constraints.txt" in install
    assert "prefect==3.7.7" in (PROJECT_ROOT / "constraints.txt").read_text().splitlines()
    assert "prefect-kubernetes==0.7.11" in words  # the newest that takes it: see the Dockerfile's comment
    assert re.search(r"^USER 1000$", text, re.MULTILINE)  # a number, or runAsNonRoot would refuse it
    assert not re.search(r"(?i)(token|secret|password|access_key)\s*=\S", text)


BAD = [
    ({"image": "registry.example.com/bolt"}, "--image registry.example.com/bolt: has no tag"),
    ({"image": "registry:5000/bolt"}, "--image registry:5000/bolt: has no tag"),
    ({"image": "REGISTRY/bolt:TAG"}, "--image REGISTRY/bolt:TAG: is no name of an image"),
    ({"image": "bolt:0.2 0"}, "--image bolt:0.2 0: is no name of an image"),
    ({"image": ""}, "--image : is no name"),
    ({"worker_image": "bolt-worker:latest"}, "--worker-image bolt-worker:latest: `latest` is another image tomorrow"),
    ({"namespace": "Bolt"}, "--namespace Bolt: is no DNS label"),
    ({"namespace": "-bolt"}, "is no DNS label"),
    ({"namespace": "b" * 64}, "is no DNS label"),
    ({"namespace": "bolt\n"}, "is no DNS label"),
    ({"store": "./artifacts"}, "--store ./artifacts: pods on different machines do not share it"),
    ({"store": "/home/me/artifacts"}, "do not share it; expected s3://BUCKET/PREFIX"),
    ({"store": "/data/../home"}, "do not share it"),
    ({"store": "/data"}, "do not share it"),
    ({"store": "/database"}, "do not share it"),
    ({"store": "file:///data/artifacts"}, "do not share it"),
    ({"store": "s3://"}, "do not share it"),
    ({"store": "s3://key:secret@bucket/bolt"}, "without credentials"),
    ({"gpus": -1}, "--gpus -1: is too small; expected 0 or more"),
    ({"machines": 0}, "--machines 0: is too small; expected 1 or more"),
    ({"memory": "128GB"}, "--memory 128GB: is no size; expected a number of Mi, Gi or Ti"),
    ({"storage": "0Gi"}, "--storage 0Gi: is no size"),
    ({"node_selector": ("h200",)}, "--node-selector h200: is no label of a node; expected KEY=VALUE"),
    ({"node_selector": ("accelerator=h200", "=x")}, "--node-selector =x"),
    ({"node_selector": ("a/b/c=x",)}, "--node-selector a/b/c=x"),
    ({"node_selector": ("a=b=c",)}, "--node-selector a=b=c"),
    ({"storage_class": "Fast NFS"}, "--storage-class Fast NFS: is no name of a storage class"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_bad_input_is_refused_with_what_is_wrong_and_what_to_give(change, said):
    with pytest.raises(BadInput, match=re.escape(said)) as raised:
        rendered(PLAIN._replace(**change))
    assert "; expected " in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {"image": f"bolt@sha256:{'0' * 64}"},
        {"image": f"registry:5000/team/bolt:latest@sha256:{'0' * 64}"},
        {"store": "s3://bucket"},
        {"store": "/data/artifacts/"},
        {"node_selector": ("node-role.kubernetes.io/gpu=",)},
        {"gpus": 0},
    ],
)
def test_what_is_unusual_but_right_is_taken(change):
    for each in yaml.safe_load_all(rendered(PLAIN._replace(**change))):
        kubernetes_validate.validate(each, VERSIONS[-1], strict=True)


def test_the_command(capsys):
    images = ["--image", FULL.image, "--worker-image", FULL.worker_image]
    assert main(["kubernetes", *images]) == 0
    assert capsys.readouterr().out == rendered(PLAIN)
    more = [
        f"--{name.replace('_', '-')}={getattr(FULL, name)}" for name in FULL._fields if name not in PLAIN._fields[:2]
    ]
    more = [each for each in more if "node-selector" not in each]
    more += [f"--node-selector={each}" for each in FULL.node_selector]
    assert main(["kubernetes", *images, *more]) == 0
    assert capsys.readouterr().out == rendered(FULL)
    assert main(["kubernetes", *images, "--namespace", "B"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.startswith("error: --namespace B: ")) == ("", True)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_prefect_takes_the_pools_and_their_deployments_as_the_manifests_make_them(tmp_path):
    (config,) = (each["data"] for each in manifests(FULL) if each["kind"] == "ConfigMap")
    for name, text in config.items():
        (tmp_path / name).write_text(text)
    url = prefect.settings.PREFECT_API_URL.value()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PREFECT_API_URL": url, "PATH": path}

    def command(words: list[str]) -> None:
        here = [word.replace("/pools/", f"{tmp_path}/") for word in words]
        done = subprocess.run(here, env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    (makes,) = pods(FULL)["bolt-worker-of-bolt-gpu"]["spec"]["initContainers"]
    command(makes["args"])
    with SyncPrefectClient(url) as client:
        pool = client.read_work_pool("bolt-gpu")
        assert (pool.type, pool.concurrency_limit) == ("kubernetes", 1)
        assert pool.base_job_template == json.loads(config["bolt-gpu.json"])
        client.update_work_pool("bolt-gpu", WorkPoolUpdate(concurrency_limit=4, base_job_template=DOCKER))
        command(makes["args"])  # a pod that starts again
        pool = client.read_work_pool("bolt-gpu")
        assert pool.concurrency_limit == 4
        assert pool.base_job_template == json.loads(config["bolt-gpu.json"])
        flow = client.create_flow_from_name("of-test-kubernetes")
        client.create_deployment(flow, "d", work_pool_name="bolt-gpu", job_variables={"env": {"A": "1"}})
