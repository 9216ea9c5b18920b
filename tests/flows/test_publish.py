"""What stage 1 shows of its data in Prefect's UI, and what is pushed to the Hub, up to the Hub's own client."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import huggingface_hub
import pyarrow.parquet as pq
import pytest
from prefect import flow
from prefect.runtime import flow_run
from pydantic import ValidationError
from shown import artifacts_of

from flows.publish import PublishConfig, publish, show_longcot
from infra.settings import Settings
from infra.store.manifest import Provenance, Ref
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import read_rows, write_table

pytestmark = pytest.mark.usefixtures("prefect_server")
TOKEN = "hf_not-a-real-one"  # noqa: S105


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return Store.open(Settings.load())


@pytest.fixture
def longcot(store: Store) -> Ref:
    """A table of five rows in three parts."""
    texts = {"sample": 0, "query": "q", "thoughts": "t", "solution": "s", "format": "bolt"}
    rows = [[{"query_id": f"q{n}", "reward": float(n), **texts}] for n in range(5)]
    counts = {
        "kept": 5,
        "threshold": 0.5,
        "rewards": {"edges": [0.0, 1.0, 4.0], "samples": [1, 4]},
        "topics": {"<b>sums</b>": 5},
    }
    return write_table(store, "longcot", "k", LONGCOT, rows, Provenance(), rows_per_part=2, counts=counts)


class Hub:
    """Replaces `HfApi`: keeps the calls."""

    calls: dict[str, Any]

    def __init__(self, token: str) -> None:
        Hub.calls = {"token": token}

    def create_repo(self, repo: str, **how: Any) -> None:
        Hub.calls["repo"] = (repo, how)

    def upload_folder(self, *, folder_path: str, **how: Any) -> Any:
        root = Path(folder_path)
        Hub.calls["files"] = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        Hub.calls["how"] = how
        return type("Commit", (), {"commit_url": "https://hub/commit/1"})()


def test_the_card_and_the_scores_become_artifacts(store, longcot):
    @flow
    def showing() -> UUID:
        show_longcot(store, longcot)
        return UUID(flow_run.id)

    found = artifacts_of(showing())
    (written,) = [path for path in store.list("runs") if path.endswith("/longcot.md")]
    card = store.read_bytes(written).decode()
    assert card.startswith("---\nlicense: other\n")
    assert card.endswith(found["bolt-longcot"])
    assert r"\<b\>sums\</b\>" in found["bolt-longcot"]
    assert str(found["bolt-scores"]).startswith("data:image/svg+xml;base64,")


def test_parts_and_card_are_pushed_in_one_commit(store, longcot, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    config = PublishConfig(longcot="longcot/k", repo="org/set", licence="apache-2.0")
    assert publish(config) == "https://hub/commit/1"
    assert Hub.calls["token"] == TOKEN
    assert Hub.calls["repo"] == ("org/set", {"repo_type": "dataset", "private": True, "exist_ok": True})
    files = Hub.calls["files"]
    assert sorted(files) == ["README.md", *(f"data/train-{n:05}.parquet" for n in range(3))]
    assert b"license: apache-2.0" in files["README.md"]
    assert Hub.calls["how"]["delete_patterns"] == "data/*.parquet"  # an earlier push may have had more parts
    for name in sorted(files)[1:]:
        (tmp_path / Path(name).name).write_bytes(files[name])
    rows = [row for n in range(3) for row in pq.read_table(tmp_path / f"train-{n:05}.parquet").to_pylist()]
    assert rows == list(read_rows(store, longcot))
    shown = capfd.readouterr()
    assert TOKEN not in shown.out + shown.err


def test_a_dry_run_pushes_nothing(longcot, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    assert publish(PublishConfig(longcot="longcot/k", repo="org/set", dry_run=True)) is None
    assert "would be pushed to org/set" in capsys.readouterr().out


def test_a_missing_artifact_or_token_is_an_error(longcot):
    with pytest.raises(ValueError, match="no whole artifact longcot/gone"):
        publish(PublishConfig(longcot="longcot/gone", repo="org/set"))
    with pytest.raises(ValueError, match="no token to push to org/set: set the environment variable HF_TOKEN"):
        publish(PublishConfig(longcot="longcot/k", repo="org/set"))


@pytest.mark.parametrize("wrong", [{"longcot": "sft/k"}, {"repo": "set"}, {"licence": "a\n---\nb: c"}])
def test_names_are_checked(wrong):
    with pytest.raises(ValidationError):
        PublishConfig(**{"longcot": "longcot/k", "repo": "org/set", **wrong})
