"""The flow `search`: what cannot succeed is refused before a server starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from small import hollow_model, write_queries

from flows.search import SearchFlowConfig, search
from infra.errors import BadInput
from infra.serving.servers import Servers
from infra.settings import PROJECT_ROOT, Settings
from infra.store.manifest import Provenance
from infra.store.models import publish_model
from infra.store.store import Store


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters. The test fails if a server is started."""
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setattr(Servers, "_pool", lambda *_: pytest.fail("a server was asked for"))
    options = {"max_model_len": 4096, "gpu_memory_utilization": 0.4}
    return {
        "model": str(hollow_model(tmp_path / "policy")),
        "reward_model": str(hollow_model(tmp_path / "judge")),
        "judge": {"template": str(PROJECT_ROOT / "nano" / "prompts" / "judge.md"), "right": "yes", "wrong": "no"},
        "serving": {"policy": options, "reward": options, "share_devices": False},
        "problems": {"sources": [{"path": str(write_queries(tmp_path / "p.jsonl", "what is 1 ?"))}]},
        "searches": [{"name": "mctsg"}],
        "sampling": {"request_seeds": False},
        "verifier": "short-answer",
    }


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"template": "lacks.md"}, r"lacks the field \{solution\}"),
        ({"template": "none.md"}, "the prompt template cannot be read"),
        ({"right": "yes", "wrong": "yes no"}, "begin with the same token"),
        ({"right": "Affirmative"}, "judge.right: 'Affirmative' is no word of the model's vocabulary"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_a_server_starts(config, tmp_path, judge, said, dry):
    (tmp_path / "lacks.md").write_text("{query}")
    if "template" in judge:
        judge = {"template": str(tmp_path / judge["template"])}
    with pytest.raises(BadInput, match=said):
        search(SearchFlowConfig(**{**config, "judge": config["judge"] | judge, "dry_run": dry}))


@pytest.mark.usefixtures("prefect_server")
def test_a_policy_trained_here_needs_memory_here_whatever_policy_urls_serve(config, tmp_path):
    trained = publish_model(Store.open(Settings.load()), "dpo-1", "k", Path(config["model"]), Provenance())
    full = {"max_model_len": 4096, "gpu_memory_utilization": 0.9}
    config["serving"] |= {"policy": full, "policy_urls": ["http://127.0.0.1:9"], "policy_name": "m"}
    search(SearchFlowConfig(**config, dry_run=True))  # an imported one is there
    with pytest.raises(BadInput, match=r"add up to 1\.3, but all are on the GPU at once"):
        search(SearchFlowConfig(**{**config, "model": f"{trained.step}/{trained.key}"}, dry_run=True))


@pytest.mark.parametrize(
    ("setting", "instead"), [("in_flight", "in_flight"), ("max_quarantined_share", "max_refused_share")]
)
def test_settings_of_the_judge_that_a_search_does_not_use_are_refused(config, setting, instead):
    config["judge"] |= {setting: 1}
    with pytest.raises(ValidationError, match=rf"judge.{setting} is set, but .* set sampling.{instead}"):
        SearchFlowConfig(**config)
