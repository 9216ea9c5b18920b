"""STILL-1, small: real Prefect, vLLM and DeepSpeed; a round, all of it cached, and a search with what it trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError
from small import run_preset
from still1_small import SMALL

from flows.__main__ import deployment
from flows.evaluate import EvaluateStage
from flows.search import SearchFlowConfig
from flows.stages.common import Estimates
from flows.stages.mutual import MutualStage, Round, Unfinished, improve_round
from flows.stages.run import Run
from flows.still1 import Still1Config, evaluated_ids, improved, refuse_evaluated
from infra.errors import BadInput
from infra.settings import Settings
from infra.store.manifest import Provenance, Ref
from infra.store.schemas import PROBLEMS, QUERIES
from infra.store.store import Store
from infra.store.tables import read_rows, write_table
from tasks.evaluation.problems import as_row
from tasks.evaluation.problems import problems_of as benchmark_problems
from tasks.mutual.adapt import StepFormat
from tasks.queries.sources import Source, queries_of

SEARCHES = [
    {"name": "mctsg", "search": {"strategy": "mctsg", "tokens": 120}},
    {"name": "sampling", "search": {"strategy": "sampling", "tokens": 120}, "answers": ["majority"]},
]


@pytest.mark.slow
@pytest.mark.faults  # four minutes, of steps that other tests have
@pytest.mark.timeout(1500)
def test_policy_and_reward_model_are_trained_and_search(tmp_path: Path) -> None:
    first = run_preset(tmp_path, "still1/nano", *SMALL)
    assert [stage["name"] for stage in first["stages"]] == ["instruct", "adapted", "round-1"]
    made = {step["name"]: step for step in first["steps"]}
    (round_1,) = first["rounds"]
    assert round_1["chosen"]["right"] + round_1["chosen"]["wrong"] == round_1["chosen"]["different"]
    assert 0 < made["chosen-1"]["rows"] <= 120
    assert 0 < made["pairs-1"]["rows"] == round_1["pairs"]["kept"]
    assert 0 < round_1["held_out"]["solutions"] == made["judged-held-out-1"]["rows"] <= 24 * 8  # without those cut off
    assert round_1["searched"]["problems"] == 60
    assert 0 < made["best-paths-1"]["rows"] <= 60
    assert "sft-search-1" in made
    page = (Path(first["path"]).parent / "report.html").read_text()
    assert "<title>STILL-1: " in page
    found = [(each["policy"], each["name"], each["answer"]) for each in first["searches"]]
    assert found[:3] == [
        ("instruct", "mctsg-4", "weighted"),
        ("instruct", "sampling-4", "majority"),
        ("instruct", "sampling-4", "best"),
    ]
    assert [each[0] for each in found[::3]] == ["instruct", "adapted", "round-1"]
    assert "Search trees" in (Path(first["path"]).parent / "trees.html").read_text()
    again = run_preset(tmp_path, "still1/nano", *SMALL)
    assert all(step["cached"] for step in again["steps"])
    assert (again["stages"], again["rounds"]) == (first["stages"], first["rounds"])

    models = {name: f"{name}/{made[name]['key']}" for name in ("dpo-1", "sft-reward-1")}
    given = (
        f"config.model={models['dpo-1']}",
        f"config.reward_model={models['sft-reward-1']}",
        "config.serving.policy_servers=1",
        "config.problems.draw.limit=12",
        f"config.searches={json.dumps(SEARCHES)}",
    )
    searched = run_preset(tmp_path, "search/nano", *given)
    for each in searched["searches"]:
        assert each["problems"] == 12
        assert each["tokens"] >= 100
        assert 0 <= each["accuracy_low"] <= each["accuracy"] <= each["accuracy_high"] <= 1
    again = run_preset(tmp_path, "search/nano", *given)
    assert all(step["cached"] for step in again["steps"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapt": {}}, "adapt: set `given` or `sampled`, and only one of them"),
        ({"improve": {"queries": {"draw": {"limit": 5}}}}, "set queries_per_round instead"),
        ({"improve": {"generate": {"format": "bolt"}}}, "solutions are plain text: leave it out"),
        ({"improve": {"held_out": {"sources": [{"path": "nano/data/test.jsonl"}]}}}, "is also in evaluate.problems"),
        (
            {"serving": {"share_devices": True}, "improve": {"search": {}}},
            "improve.search: serving.share_devices is true",
        ),
        ({"improve": {"search": {"verifier": "math500"}}}, "needed with `search.agree`, and only then"),
        ({"improve": {"search": {"learn": "pairs", "sft": {"epochs": 9}}}}, "there is no SFT: leave it out"),
        ({"improve": {"rounds": 0}}, "search is set, but without rounds there is no reward model"),
        ({"improve": {"judge": {"right": "no"}}}, "the two answers must differ"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], said: str) -> None:
    parameters = deployment("still1/nano")["parameters"]["config"]
    for name, value in changes.items():
        held = parameters[name]
        for inner, own in value.items():
            held = {**held, inner: {**held.get(inner, {}), **own} if isinstance(own, dict) else own}
        parameters[name] = held if value else {}
    with pytest.raises(ValidationError, match=said):
        Still1Config(**parameters)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"searches": [SEARCHES[0], SEARCHES[0]]}, "each name must be unique"),
        ({"reward_model": None, "judge": None}, "reward_model is null, but search sampling-4 needs one"),
        ({"reward_model": None, "searches": [SEARCHES[1]]}, "judge is set, but reward_model is null"),
        ({"searches": [{**SEARCHES[1], "search": {"strategy": "sampling", "patience": 3}}]}, "no reward is asked for"),
        ({"searches": [{**SEARCHES[1], "answers": ["best", "best"]}]}, "name each once"),
        ({"serving": {"share_devices": True}}, "a search asks policy and reward model in turn: set it to false"),
    ],
)
def test_searches_that_cannot_run_are_refused(changes: dict[str, Any], said: str) -> None:
    parameters = deployment("search/nano")["parameters"]["config"]
    for name, value in changes.items():
        parameters[name] = {**parameters[name], **value} if isinstance(value, dict) else value
    with pytest.raises(ValidationError, match=said):
        SearchFlowConfig(**parameters)


@pytest.mark.parametrize("limit", [None, 1])
def test_held_out_questions_are_known_by_their_texts_whatever_a_benchmark_calls_them(
    tmp_path: Path, limit: int | None
) -> None:
    texts = ["What is  $2 + 2$?", "How many primes are below 10?"]
    records = [
        {"problem": text, "answer": "4", "subject": "Algebra", "unique_id": f"test/{n}.json"}
        for n, text in enumerate(texts)
    ]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    own = "".join(
        json.dumps({"query": text, "reference": "4"}) + "\n" for text in ["Why?", " What is $2 + 2$?\n", texts[1]]
    )
    (tmp_path / "own.jsonl").write_text(own)
    tested = Source(path=str(tmp_path / "math.jsonl"), column="problem")
    store = Store.open(Settings(store=str(tmp_path / "store")))
    rows = [as_row(each) for each in benchmark_problems("math500", [tested])]
    problems = write_table(store, "problems-math500", "k", PROBLEMS, [rows], Provenance())
    run = cast(Run, SimpleNamespace(rows=lambda table, columns: read_rows(store, table, columns)))
    stage = EvaluateStage(
        benchmark="math500", problems={"sources": [tested], "draw": {"min_difficulty": 0, "limit": limit}}
    )
    held = list(queries_of(Source(path=str(tmp_path / "own.jsonl"))))
    said = rf"improve.held_out: {limit or 2} questions are also in evaluate.problems, such as 'What is"
    with pytest.raises(BadInput, match=said):
        refuse_evaluated(held, evaluated_ids(run, stage, problems))
    refuse_evaluated(held[:1], evaluated_ids(run, stage, problems))
    mined = write_table(store, "problems", "k", QUERIES, [held[:1]], Provenance())
    assert evaluated_ids(run, EvaluateStage(problems={"sources": [tested]}), mined) == {held[0]["query_id"]}


class Planned:
    """Replaces `Run`: each step makes a table with a row, and those in `empty` one without."""

    dry, estimates, hosts, cluster = False, Estimates(), None, None
    servers = SimpleNamespace(is_remote=lambda _: True)

    def __init__(self, folder: Path, empty: str) -> None:
        self.store, self.empty = Store.open(Settings(store=str(folder))), empty
        self.done: list[str] = []

    def do(self, _: Any, name: str, **__: Any) -> Ref:
        row = {"query_id": "q", "query": "why ?", "source": "s", "source_row": 0}
        counts = {"different": 7, "right": 7, "wrong": 0}
        self.done.append(name)
        rows = [] if name == self.empty else [row]
        return write_table(self.store, name, "k", QUERIES, [rows], Provenance(), counts=counts)

    def do_shards(self, step: Any, name: str, _: int, **given: Any) -> list[Ref]:
        return [self.do(step, name, **given)]


@pytest.mark.parametrize(
    ("empty", "why"),
    [
        ("chosen-2", "of the 7 different solutions of round 2, 7 are right and 0 wrong, so that there is nothing to"),
        ("best-paths-2", "the search of round 2 found no right solution in steps (different: 7, right: 7, wrong: 0)"),
        ("pairs-2", "no question of round 2 has a right and a wrong solution to compare (different: 7"),
        ("", ""),
    ],
)
def test_a_round_with_nothing_to_learn_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: str, why: str
) -> None:
    monkeypatch.setattr("flows.stages.mutual.show_training", lambda *_: None)
    run = Planned(tmp_path, empty)
    stage = MutualStage(
        **{**deployment("still1/nano")["parameters"]["config"]["improve"], "search": {"sampling": {"step_tokens": 8}}}
    )
    table = run.do(None, "given")
    given = (2, table, table, table, table, table, [table], ([table], table))
    found = improve_round(cast(Run, run), stage, StepFormat(), *given)
    assert isinstance(found, Unfinished if empty else Round)
    if isinstance(found, Unfinished):
        assert found.why.startswith(why)
        assert "improve.queries" in found.remedy
    assert run.done[-1] == (empty or "dpo-2")


@pytest.mark.parametrize("last", [1, 2, 3])
def test_rounds_end_with_a_word_once_one_cannot_be_finished(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """The first one ends the run; a later one leaves what the rounds before it made."""
    config = Still1Config(**deployment("still1/nano")["parameters"]["config"])
    table = Ref(step="given", key="k", digest="d", rows=1, kind="table", uri="u")

    def improve(_run: Any, _config: Any, _steps: Any, number: int, *_: Any) -> Round | Unfinished:
        done = Round(table, table, table.model_copy(update={"step": f"dpo-{number}"}), table, table, None)
        return Unfinished(f"round {number} solved all", "use harder improve.queries") if number == last else done

    monkeypatch.setattr("flows.still1.improve_round", improve)
    monkeypatch.setattr("flows.still1.evaluate_stage", lambda _run, _config, name, *_, **__: name)
    monkeypatch.setattr("flows.still1.solutions", lambda *_: ([table], table))
    monkeypatch.setattr("flows.still1.accuracy_of", lambda *_: 0.5)
    grades: dict[str, Any] = {}
    given = (config, config.improve, {1: table, 2: table}, table, table, table, grades)
    run = cast(Run, SimpleNamespace(dry=False))
    if last == 1:
        with pytest.raises(BadInput, match=r"^round 1 solved all: use harder improve.queries$"):
            improved(run, *given)
        return
    rounds, ended = improved(run, *given)
    assert [each.policy.step for each in rounds] == ["dpo-1", "dpo-2"][: last - 1]
    assert [*grades] == ["round-1", "round-2"][: last - 1]
    assert ended == ("round 2 solved all" if last == 2 else "the number of rounds is reached")
