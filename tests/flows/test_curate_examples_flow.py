"""The flow `curate-examples`: its table, its artifact, and what it refuses before a server is started."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from small import small_world

import infra.serving.classifier
from flows.__main__ import changed, deployment, flow_name
from flows.curate_examples import CurateConfig, curate_examples, report
from infra.errors import BadInput
from infra.serving.pool import Pool
from infra.serving.servers import Servers
from infra.settings import PROJECT_ROOT, Settings
from infra.store.manifest import read_manifest
from infra.store.store import Store
from infra.store.tables import read_rows

pytestmark = pytest.mark.usefixtures("prefect_server")


class Healthy:
    """A server that is up."""

    url, served_name = "http://127.0.0.1:9", "fake"
    headers: Mapping[str, str] = {}

    def check(self) -> None: ...


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters over this project's own examples and one whose solution relies on its thoughts."""
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setattr(Servers, "_pool", lambda *_: pytest.fail("a server was asked for"))
    small = small_world(tmp_path / "files")
    folder = tmp_path / "candidates"
    folder.mkdir()
    for path in (PROJECT_ROOT / "prompts" / "examples").glob("*.md"):
        (folder / path.name).write_bytes(path.read_bytes())
    reliant = (folder / "08-logic-puzzle.md").read_text() + "\nAs shown above, <b>|</b> it is so."
    (folder / "99-reliant.md").write_text(reliant)
    given = {name: small[name] for name in ("serving", "model")} | {"prompt": small["bootstrap"]["prompt"]}
    given["serving"] = {"policy": {"max_model_len": 16384}, "reward": {"max_model_len": 4096}}
    return given | {"examples": {"path": str(folder)}}


def artifacts() -> list[str]:
    with get_client(sync_client=True) as client:
        selected = {"artifacts": {"key": {"any_": ["bolt-examples"]}}, "sort": "ID_DESC"}
        found = client.request("POST", "/artifacts/filter", json=selected).json()
    assert {each["type"] for each in found} <= {"markdown"}
    return [each["data"] for each in found]


def test_the_table_and_the_artifact_agree_and_the_artifact_is_published_again_when_cached(world, tmp_path):
    before = len(artifacts())
    examples = curate_examples(CurateConfig(**world))
    store = Store.open(Settings.load())
    assert (examples.step, examples.rows) == ("examples", 10)
    assert [row["example_id"] for row in read_rows(store, examples)][-1] == "10-many-conditions"
    counts = read_manifest(store, examples)["counts"]
    assert (counts["read"], counts["rejected: solution relies on the thoughts"], counts["taken"]) == (11, 1, 10)
    assert all(each["tokens"] > 500 for each in counts["candidates"] if not each["rejected"])
    assert artifacts()[:1] == [report(counts)]
    assert curate_examples(CurateConfig(**world)) == examples
    assert artifacts() == [report(counts)] * 2 + artifacts()[2:]
    assert len(artifacts()) == before + 2


def test_a_reward_model_ranks(world, monkeypatch):
    async def classify(_url: str, _name: str, inputs: Any, **_: Any) -> list[float]:
        return [float(number) for number in range(len(inputs))]

    monkeypatch.setattr(Servers, "_pool", lambda *_: Pool([Healthy()]))
    monkeypatch.setattr(infra.serving.classifier, "classify", classify)
    world["examples"] |= {"count": 3}
    reward_model = str(Path(world["model"]).with_name("reward"))
    examples = curate_examples(CurateConfig(**world, reward_model=reward_model))
    store = Store.open(Settings.load())
    assert [row["example_id"][:2] for row in read_rows(store, examples)] == ["08", "09", "10"]
    assert "ranked behind the 3 taken" in report(read_manifest(store, examples)["counts"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("serving", {"policy": {"max_model_len": 9000}, "reward": {"max_model_len": 9000}}, "max_model_len is 9,000"),
        ("examples", {"count": 11}, r"11 examples are needed, 10 of 11 .*\n- 99-reliant: the solution relies on"),
        ("examples", {"topics": ["cooking"]}, r"no example of the topic cooking \(topics\) is among those taken"),
    ],
)
def test_unusable_examples_are_an_error_before_a_server_is_started(world, field, value, message):
    world[field] = {**world[field], **value}
    with pytest.raises(BadInput, match=rf"(?s){message}"):
        curate_examples(CurateConfig(**world))


def test_a_file_without_a_licence_is_named(world):
    path = Path(world["examples"]["path"]) / "99-reliant.md"
    path.write_text(path.read_text().replace("licence: Apache-2.0\n", ""))
    with pytest.raises(BadInput, match=r"99-reliant\.md: front matter must name the licence as a string"):
        curate_examples(CurateConfig(**world))


def test_a_dry_run_only_plans(world, tmp_path, capsys):
    curate_examples(CurateConfig(**world, dry_run=True))
    plan = capsys.readouterr().out.splitlines()
    assert re.match(r"examples: the longest 3 of 10 make a prompt of [\d,]+ tokens \(one-turn\)", plan[0])
    assert plan[1].startswith("examples                     to do")
    assert not (tmp_path / "store" / "examples").exists()


def test_texts_of_candidates_are_plain_in_the_report():
    quote = {"quote": "<script>alert(1)</script> | x", "spans": [[0, 4], [9, 12]]}
    each = {
        "example_id": "a|b",
        "topic": "[x](http://y)",
        "words": 3,
        "tokens": None,
        "reward": 0.5,
        "evidence": {"planning": quote},
        "rejected": "malformed",
        "why": "bad <b>",
    }
    text = report({"taken": 0, "read": 1, "candidates": [each]})
    assert r"| a\|b | \[x\]\(http\:\/\/y\) | 3 |  | 0\.500 | rejected\: bad \<b\> |" in text
    assert r"- **planning** (2, at 0-4, 9-12): \<script\>" in text


def test_the_deployment_runs_as_it_is(world, monkeypatch):
    monkeypatch.chdir(PROJECT_ROOT)
    preset = deployment("curate-examples/default")
    assert flow_name(preset) == curate_examples.name
    parameters = changed(preset["parameters"], [])
    assert json.loads(json.dumps(parameters)) == parameters
    assert curate_examples(CurateConfig(**parameters["config"])).rows == 10
