"""Query mining as a flow: the steps compose, and the funnel adds up to the input."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.mine import MineConfig, mine
from flows.stages.mining import mining_rows
from infra.errors import BadInput
from infra.settings import Settings
from infra.store.manifest import Ref, read_manifest
from infra.store.store import Store
from infra.store.tables import read_rows

BENCH = Path(__file__).parents[2].parent / "shared" / "bench"
SERVING = {"policy": {"max_model_len": 64}, "reward": {"max_model_len": 64}}

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))


def mined(dry_run: bool = False, **queries: Any) -> Ref:
    made = mine(MineConfig(serving=SERVING, queries=queries, dry_run=dry_run))
    assert isinstance(made, Ref)
    return made


def funnel(ref: Ref) -> dict[str, dict[str, int]]:
    """The counts of the steps, after checking that each step reads what the steps before it kept."""
    steps: dict[str, dict[str, int]] = defaultdict(dict)
    for row in mining_rows(Store.open(Settings.load()), [ref]):
        steps[row["step"]][row["what"]] = row["rows"]
    for counts in steps.values():
        assert counts["read"] == counts["kept"] + sum(n for what, n in counts.items() if what.startswith("dropped: "))
    kept = sum(counts["kept"] for name, counts in steps.items() if name.startswith("collected-"))
    for name in ("cleaned", "distinct", "decontaminated", "queries"):
        assert steps[name]["read"] == kept
        kept = steps[name]["kept"]
    assert kept == ref.rows
    return steps


def files(folder: Path) -> dict[str, Any]:
    files = {
        "one": ["How does a sail make a boat go upwind?", "", "How tall is the highest tower of Ghent?"],
        "two": ["how does a SAIL make a boat go upwind?", "Explain the rules of curling to a child of nine, please."],
        "held": ["How tall is the oldest tower of Ghent?"],
    }
    for name, texts in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"query": text}) + "\n" for text in texts))
    sources = [{"path": str(folder / f"{name}.jsonl"), "licence": "CC0-1.0"} for name in ("one", "two")]
    return {"sources": sources, "decontaminate": {"held_out": [{"path": str(folder / "held.jsonl")}]}}


def test_several_sources_become_one_table_whose_funnel_adds_up(tmp_path):
    made = mined(**files(tmp_path))
    steps = funnel(made)
    assert steps["collected-one"] == {"read": 3, "dropped: empty": 1, "kept": 2}
    assert steps["cleaned"] == {"read": 4, "kept": 4}
    assert steps["distinct"] == {"read": 4, "dropped: duplicate": 1, "kept": 3}
    assert steps["decontaminated"] == {"read": 3, "dropped: held out for evaluation, one word differs": 1, "kept": 2}
    store = Store.open(Settings.load())
    assert [(row["source"], row["source_row"]) for row in read_rows(store, made)] == [
        ("one.jsonl", 0),
        ("two.jsonl", 1),
    ]
    first = next((tmp_path / "store").glob("collected-one/*/manifest.json"))
    assert json.loads(first.read_text())["config"]["source"]["licence"] == "CC0-1.0"
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["bolt-mining"])))
    artifact = max(found, key=lambda each: each.created)
    assert json.loads(artifact.data) == mining_rows(store, [made])
    again = mined(**files(tmp_path))
    assert again == made


def test_a_dry_run_knows_rows_and_keys_and_makes_nothing(tmp_path, capsys):
    given = files(tmp_path)
    planned = mined(dry_run=True, **given)
    plan = capsys.readouterr().out
    assert planned.rows == 2
    assert not list((tmp_path / "store").glob("*/*"))
    made = mined(**given)
    assert (made.key, made.digest) == (planned.key, planned.digest)
    assert made.key in plan
    assert "cached" not in plan
    capsys.readouterr()
    mined(dry_run=True, **given)
    assert "to do" not in capsys.readouterr().out


def test_a_dry_run_reads_no_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("read"))
    given = files(tmp_path)
    planned = mined(dry_run=True, sources=[*given["sources"], {"dataset": "org/name@0123abc"}], draw={"limit": 7})
    assert planned.rows == 7
    assert "(key depends on the above)" in capsys.readouterr().out


def test_a_bad_source_ends_the_run_with_its_row(tmp_path):
    given = files(tmp_path)
    (tmp_path / "two.jsonl").write_text('{"query": "good enough, this one"}\n{"text": "bad"}\n')
    with pytest.raises(BadInput, match=r"two\.jsonl, row 1: expected a field query .*found text"):
        mined(**given)


@pytest.mark.skipif(not BENCH.is_dir(), reason="the real texts (../shared/bench) are not here")
def test_thousands_of_real_queries_are_mined_and_every_one_is_counted():
    held_out = [
        {"path": str(BENCH / "math500/math500.jsonl"), "column": "problem"},
        {"path": str(BENCH / "arenahard/question_v2.0.jsonl"), "column": "prompt"},
        {"path": str(BENCH / "mtbench/mt_bench_question.jsonl"), "column": "turns"},
        {"path": str(BENCH / "zebra/zebra_puzzles_gold.jsonl"), "column": "puzzle"},
    ]
    sources = [{"path": str(BENCH / f"queries/{name}.jsonl")} for name in ("wildchat-if", "alpaca_en_demo")]
    made = mined(sources=sources, decontaminate={"held_out": held_out})
    steps = funnel(made)
    lines = sum(len(Path(source["path"]).read_bytes().splitlines()) for source in sources)
    assert sum(counts["read"] for name, counts in steps.items() if name.startswith("collected-")) == lines
    assert made.rows >= 3_000
    store = Store.open(Settings.load())
    found = next(ref for name, ref in _inputs(store, made).items() if name == "contaminated/0")
    dropped = sum(n for what, n in steps["decontaminated"].items() if what.startswith("dropped: held out"))
    assert found.rows == dropped < 0.01 * steps["decontaminated"]["read"]


def _inputs(store: Store, drawn: Ref) -> dict[str, Ref]:
    """The inputs of the step before the draw."""
    before = Ref(**read_manifest(store, drawn)["inputs"]["queries"])
    return {name: Ref(**ref) for name, ref in read_manifest(store, before)["inputs"].items()}
