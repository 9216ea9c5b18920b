"""Which servers serve which model: settings, remote servers, cache keys, and the speed shown as progress."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint
from pydantic import SecretStr, ValidationError

from infra.serving.rate import Rate, prompt_tokens
from infra.serving.remote_server import MisfitError
from infra.serving.servers import Servers, ServingConfig
from infra.serving.vllm_server import ServerError, ServerOptions, VllmServer
from infra.settings import Settings
from infra.store.manifest import Ref
from infra.store.store import Store

OPTIONS = ServerOptions(max_model_len=128)
KEY = "the-key-of-the-servers"
METRICS = """# HELP vllm:prefix_cache_queries_total x
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 200.0
# HELP vllm:prefix_cache_hits_total x
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 900.0
"""


class Remote(Endpoint):
    """Answers GET as a vLLM server does; with a `key`, it answers 401 to requests without it."""

    def __init__(self, models: Any, key: str | None = None) -> None:
        self.metrics = METRICS

        def reply(number: int) -> tuple[int, Any]:
            allowed = key is None or self.keys[number - 1] == f"Bearer {key}"
            answer = self.metrics if self.paths[number - 1] == "/metrics" else {"data": models}
            return (200 if allowed else 401), answer

        super().__init__(reply)


@pytest.fixture
def start_remote() -> Iterator[Callable[..., Remote]]:
    made: list[Remote] = []

    def start(*models: tuple[str, int | None], key: str | None = None) -> Remote:
        made.append(Remote([{"id": name, "max_model_len": length} for name, length in models], key))
        return made[-1]

    yield start
    for server in made:
        server.close()


@pytest.fixture
def servers(tmp_path: Path) -> Callable[..., Servers]:
    store = Store.open(Settings(store=str(tmp_path / "store"), work_dir=tmp_path))

    def make(api_key: str | None = None, **serving: Any) -> Servers:
        config = ServingConfig(policy=OPTIONS, reward=OPTIONS, **serving)
        return Servers(config, store, tmp_path, SecretStr(api_key) if api_key else None)

    return make


def model(step: str = "imported", digest: str = "d") -> Ref:
    return Ref(kind="model", step=step, key="k", uri="nowhere", digest=digest, rows=1)


# ---- the settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy_servers": 2, "policy_devices": ["0"]}, "GPUs of 1 servers, but policy_servers is 2"),
        ({"policy_urls": ["http://h:1"]}, "policy_urls and policy_name go together"),
        ({"policy_name": "m"}, "policy_urls and policy_name go together"),
        ({"policy": {"max_model_len": 9, "dtype": "bf16"}}, "'bfloat16'"),
        ({"policy": {"max_model_len": 9, "dtype": ""}}, "'bfloat16'"),
        ({"policy": {"max_model_len": 9, "seed": -1}}, "greater than or equal to 0"),
        ({"policy": {"max_model_len": 9, "seed": 2**32}}, "less than 4294967296"),
        ({"policy": {"max_model_len": 9, "extra_args": ["--model", "x"]}}, "--model: this option is set"),
        ({"reward": {"max_model_len": 9, "extra_args": ["--max_model_len=8"]}}, "--max_model_len=8: this option is"),
    ],
)
def test_settings_that_cannot_serve_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        ServingConfig(**({"policy": OPTIONS, "reward": OPTIONS} | given))


def test_the_number_and_place_of_servers_change_no_cache_key(servers):
    many = servers(policy_servers=4, policy_devices=["0", "1", "2", "3"])
    remote = servers(policy_urls=["http://h:1"], policy_name="m")
    assert servers().engine("policy") == many.engine("policy") == remote.engine("policy")


# ---- servers started here


def test_each_server_has_its_devices_and_one_failed_start_ends_all(servers, monkeypatch):
    started: list[tuple[str | None, str]] = []
    stopped: list[str | None] = []

    def start(self: VllmServer) -> None:
        started.append((self._devices, self.log_path.name))
        if self._devices == "2,3":
            raise ServerError("no room")

    monkeypatch.setattr("infra.serving.servers.fetch_model", lambda *_: Path("unused"))
    monkeypatch.setattr(VllmServer, "start", start)
    monkeypatch.setattr(VllmServer, "stop", lambda self: stopped.append(self._devices))
    with servers(policy_servers=2, policy_devices=["0", "1"]) as two:
        assert len(two.policies(model()).living()) == 2
        assert two.policies(model()) is two.policies(model())
    assert sorted(started, key=str) == [("0", "policy-imported-k.log"), ("1", "policy-imported-k-1.log")]
    assert sorted(stopped, key=str) == ["0", "1"]
    with pytest.raises(ServerError, match="no room"), servers(policy_servers=2, policy_devices=["4", "2,3"]) as two:
        two.policies(model())
    assert stopped[2:] == ["4"]


@pytest.mark.parametrize(("devices", "seen"), [("2,3", "2,3"), (None, None)])
def test_a_server_sees_only_its_devices(monkeypatch, tmp_path, devices, seen):
    found: dict[str, str] = {}

    def refused(_command: list[str], *, log_path: Path, env: dict[str, str]) -> None:
        found.update(env)
        raise ServerError(f"no process; log: {log_path}")

    monkeypatch.setattr("infra.serving.vllm_server.GuardedProcess", refused)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ServerError, match="no process"):
        VllmServer(tmp_path, OPTIONS, tmp_path / "log", devices=devices).start()
    assert found.get("CUDA_VISIBLE_DEVICES") == seen


# ---- remote servers


def test_remote_servers_are_used_as_they_are_and_the_key_is_never_shown(servers, start_remote, caplog):
    there = [start_remote(("m", 4096), ("other", 1), key=KEY), start_remote(("m", 128), key=KEY)]
    with (
        caplog.at_level(logging.DEBUG),
        servers(KEY, policy_urls=[f"{t.url}/v1" for t in there], policy_name="m") as remote,
    ):
        pool = remote.policies(model())
        assert [server.url for server in pool.living()] == [t.url for t in there]
        assert {server.served_name for server in pool.living()} == {"m"}
        assert pool.living()[0].headers == {"Authorization": f"Bearer {KEY}"}
        assert remote.policies(model()) is pool
        assert len(pool.living()) == 2
        assert KEY not in f"{pool.living()[0]!r} {vars(pool.living()[0])}"
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("models", "key", "text"),
    [
        ([("other", 4096)], None, r"serves \['other'\], expected 'm': correct serving.policy_name"),
        ([("m", 127)], None, "accepts 127 tokens at most, expected 128"),
        ([("m", None)], None, "accepts None tokens at most, expected 128"),
        ([("m", 4096)], KEY, r"refuses us \(401\): set BOLT_POLICY_API_KEY"),
    ],
)
def test_a_remote_server_that_does_not_match_the_settings_is_an_error(servers, start_remote, models, key, text):
    fits, there = start_remote(("m", 4096)), start_remote(*models, key=key)
    with (
        pytest.raises(MisfitError, match=text),
        servers(policy_urls=[fits.url, there.url], policy_name="m") as remote,
    ):
        remote.policies(model())


def test_a_remote_server_that_is_not_vllm_is_an_error(servers):
    other = Remote("text")
    with (
        pytest.raises(MisfitError, match="is not a vLLM server"),
        servers(policy_urls=[other.url], policy_name="m") as remote,
    ):
        remote.policies(model())
    other.close()


def test_unreachable_servers_are_skipped_and_added_once_they_are_back(servers, start_remote, caplog):
    up, down = start_remote(("m", 128)), start_remote(("m", 128))
    down.close()
    with servers(policy_urls=[up.url, down.url], policy_name="m") as remote:
        with caplog.at_level(logging.WARNING, "infra.serving.servers"):
            pool = remote.policies(model())
        assert f"{down.url} cannot be reached" in caplog.text
        assert [server.url for server in pool.living()] == [up.url]
        pool.add(lost := type(pool.living()[0])(start_remote(("m", 128)).url, "m"))
        pool.lost(lost, ServerError("gone"))
        assert [server.url for server in remote.policies(model()).living()] == [up.url]
    with pytest.raises(ServerError, match=r"none of serving\.policy_urls can be reached"):
        servers(policy_urls=[down.url], policy_name="m").policies(model())


def test_servers_that_were_all_unreachable_are_tried_again(servers, start_remote):
    up = start_remote(("m", 128))
    with servers(policy_urls=[up.url], policy_name="m") as remote:
        pool = remote.policies(model())
        with pytest.raises(ServerError, match="down for a moment"):
            pool.lost(pool.living()[0], ServerError("down for a moment"))
        assert [server.url for server in remote.policies(model()).living()] == [up.url]


def test_remote_servers_serve_one_model_and_none_that_the_run_has_trained(servers, start_remote, monkeypatch):
    there = start_remote(("m", 128))
    with servers(policy_urls=[there.url], policy_name="m") as remote:
        remote.policies(model())
        with pytest.raises(MisfitError, match="policy_urls serve one model"):
            remote.policies(model(digest="another"))
        monkeypatch.setattr(remote, "_pool", lambda role, asked: (role, asked.step))
        assert remote.policies(model("sft")) == ("policy", "sft")


# ---- progress


def test_progress_shows_speed_and_cache_hits(servers, start_remote):
    there = start_remote(("m", 128))
    with servers(policy_urls=[there.url], policy_name="m") as remote:
        pool = remote.policies(model())
        assert prompt_tokens(pool.living()[0]) == (1200, 900)
        rate = Rate(pool)
        assert rate.text() == "0 tok/s"  # earlier cache hits do not count
        there.metrics = METRICS.replace(" 1000.0", " 1400.0").replace(" 900.0", " 1000.0")
        rate.add(500)
        assert re.fullmatch(r"[1-9][\d,]* tok/s, 25% of prompt tokens cached", rate.text())
        there.metrics = ""
        assert "cached" not in Rate(pool).text()
