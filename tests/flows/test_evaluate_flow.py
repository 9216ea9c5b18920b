"""The flow `evaluate` on benchmarks of every kind. The servers of policies and judge are fakes, all else is real."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes import Answer, FakeVllm, chats, completions
from layouts import (
    arena,
    arena_answer,
    file_of,
    math500,
    mtbench,
    mtbench_reference,
    wildbench,
    wildbench_answer,
    zebra,
)
from pydantic import ValidationError
from small import small_world

from cot_formats import bolt
from flows.evaluate import EvaluateConfig, evaluate
from infra.errors import BadInput
from infra.serving.pool import Pool
from infra.serving.servers import Servers

pytestmark = pytest.mark.usefixtures("prefect_server")
KEY = "sk-planted-51c0ffee"
SECRET = "SECRETTHOUGHT"  # noqa: S105
HOUSES = {"House 1": {"Name": "Eric", "Pet": "cat"}, "House 2": {"Name": "Arnold", "Pet": "dog"}}
JUDGED = ("mt-bench", "arena-hard-v2.0", "wildbench")
VERIFIABLE = ("short-answer", "math500", "zebralogic")


def good(_: int) -> tuple[str, str]:
    """Right everywhere, with thoughts that the judge must not see."""
    solution = rf"GOOD answer : 1 . \boxed{{42}} {json.dumps({'solution': HOUSES})}"
    return bolt.render(f"plan : {SECRET} .", solution), "stop"


def bad(_: int) -> tuple[str, str]:
    return r"BAD answer : 2 . \boxed{41} {}", "stop"


def verdict(shown: str) -> str:
    """A judge that prefers the good model and gives no verdict on MT-Bench's last question."""
    if "<|User Prompt|>" in shown:
        ours = "GOOD" in shown or "BAD" in shown
        model_is_a = max(shown.rfind("GOOD"), shown.rfind("BAD")) < shown.rfind("o3-mini")
        return f"[[{'A>B' if ('GOOD' in shown) == model_is_a else 'B>A'}]]" if ours else "?"
    if "The Start of Assistant" in shown:
        return "I refuse" if "first 2" in shown else "Rating: [[9]]" if "GOOD" in shown else "Rating: [[2]]"
    if "Response A" in shown:
        return json.dumps({"choice": "A=B"})
    return json.dumps({"score": "8" if "GOOD" in shown else "4"})


class Stage:
    """Parameters over files in the authors' layouts, and the fake servers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.world = folder, small_world(folder / "files")
        self.judge = FakeVllm(completions=chats(verdict))
        self.policies: dict[str, FakeVllm] = {}
        self.models = [self.model("bad", bad, "plain"), self.model("good", good, "bolt")]
        references = file_of(folder / "gpt-4.jsonl", [mtbench_reference(3)])
        questions = [mtbench(1), mtbench(2), mtbench(3, "math", turns=["first 3"])]
        sources: dict[str, list[Any]] = {
            "math500": [file_of(folder / "math500.parquet", [math500(1), math500(2)])],
            "zebralogic": [file_of(folder / "zebra.jsonl", [zebra(1), zebra(2)])],
            "mt-bench": [file_of(folder / "question.jsonl", questions)],
            "arena-hard-v2.0": [file_of(folder / "arena.jsonl", [arena(1), arena(2)])],
            "wildbench": [file_of(folder / "wildbench.jsonl", [wildbench(1), wildbench(2)])],
        }
        short = self.world["evaluate"] | {"benchmark": "short-answer"}
        self.benchmarks: dict[str, dict[str, Any]] = {"short-answer": short}
        for name, places in sources.items():
            problems = {"sources": [source.model_dump() for source in places]}
            generate = {"samples": 1, "temperature": 0.0} if name in JUDGED else {"samples": 2}
            generate |= {"max_tokens": 64, "request_seeds": False}
            self.benchmarks[name] = {"benchmark": name, "problems": problems, "generate": generate, "shards": 2}
        judge = {"url": f"{self.judge.url}/v1", "name": "judge", "max_unread_share": 1, "prompt_price": 1.0}
        for name in JUDGED:
            self.benchmarks[name]["judge"] = judge
        self.benchmarks["mt-bench"]["references"] = references.model_dump()
        baseline = file_of(folder / "o3.jsonl", [arena_answer(n) for n in (1, 2)])
        self.benchmarks["arena-hard-v2.0"]["baselines"] = [baseline.model_dump()]
        baseline = file_of(folder / "gpt.jsonl", [wildbench_answer(n) for n in (1, 2)])
        self.benchmarks["wildbench"]["baselines"] = [baseline.model_dump()]

    def model(self, name: str, texts: Any, format: str) -> dict[str, Any]:
        folder = self.folder / name
        shutil.copytree(self.world["model"], folder)
        told = json.loads((folder / "config.json").read_text()) | {"name": name}
        (folder / "config.json").write_text(json.dumps(told))
        self.serve(name, completions(texts))
        return {"name": name, "model": str(folder), "format": format}

    def serve(self, name: str, answer: Answer) -> None:
        self.policies[name] = FakeVllm(completions=answer)

    def parameters(self, *names: str, **changes: Any) -> dict[str, Any]:
        benchmarks = [self.benchmarks[name] for name in names or self.benchmarks]
        return {"serving": self.world["serving"], "models": self.models, "benchmarks": benchmarks, **changes}

    def run(self, *names: str, **changes: Any) -> Any:
        return evaluate(EvaluateConfig(**self.parameters(*names, **changes)))

    def asked(self) -> tuple[int, int]:
        """Requests to the policies and to the judge so far."""
        return sum(len(each.asked) for each in self.policies.values()), len(self.judge.asked)

    def close(self) -> None:
        for server in (self.judge, *self.policies.values()):
            server.close()


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setenv("BOLT_JUDGE_API_KEY", KEY)
    made = Stage(tmp_path)

    def pool(_: Servers, role: str, model: Any) -> Pool:
        assert role == "policy"
        name = model.key.rpartition("-")[0]
        return Pool([made.policies[name]])

    monkeypatch.setattr(Servers, "_pool", pool)
    yield made
    made.close()


@pytest.fixture
def no_server(monkeypatch):
    monkeypatch.setattr(Servers, "_pool", lambda *_: pytest.fail("a server was asked for"))


def planned(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The state of each step, as a dry run printed it."""
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    states = {line[0]: " ".join(line[1:3]) if line[1] == "to" else line[1] for line in lines if len(line) > 2}
    return {step: state for step, state in states.items() if state in ("cached", "to do")}


# ---- whole runs


def test_two_models_on_benchmarks_of_every_kind(stage, tmp_path, capsys):
    found = stage.run()
    rows = {(row["benchmark"], row["model"]): row for row in found["results"]}
    assert list(rows) == [(b, m) for b in stage.benchmarks for m in ("bad", "good")]
    for name in VERIFIABLE:
        assert (rows[name, "bad"]["score"], rows[name, "good"]["score"]) == (0.0, 1.0)
        assert rows[name, "good"]["greedy"] == 1.0
    assert (rows["mt-bench", "bad"]["score"], rows["mt-bench", "good"]["score"]) == (2.0, 9.0)
    assert rows["mt-bench", "good"]["unread"] == pytest.approx(2 / 5)
    assert (rows["arena-hard-v2.0", "bad"]["score"], rows["arena-hard-v2.0", "good"]["score"]) == (0.0, 100.0)
    assert (rows["wildbench", "bad"]["score"], rows["wildbench", "good"]["score"]) == (-20.0, 60.0)
    assert rows["short-answer", "good"]["thought tokens"] == 4
    assert rows["short-answer", "bad"]["thought tokens"] == 0
    gains = {row["benchmark"]: row["gain"] for row in found["differences"]}
    assert (gains["math500"], gains["mt-bench"], gains["wildbench"]) == (1.0, 7.0, 80.0)
    assert {row["model"] for row in found["style control"]} == {"bad", "good"}
    judging = {(row["benchmark"], row["model"]): row for row in found["judging"]}
    counts = {name: (judging[name, "good"]["asked"], judging[name, "good"]["asked again"]) for name in JUDGED}
    assert counts == {"mt-bench": (5, 2), "arena-hard-v2.0": (4, 0), "wildbench": (4, 0)}
    assert judging["wildbench", "good"]["dollars"] > 0
    figures = {(row["model"], row["figure"]) for row in found["figures"]}
    assert {("good", "turn 2"), ("bad", "cell accuracy"), ("good", "WB-Reward reward")} <= figures

    written = json.loads(Path(found["path"].removeprefix("file://")).read_text())
    assert written == {name: each for name, each in found.items() if name != "path"}
    printed = capsys.readouterr().out
    assert "Paired differences" in printed
    assert "| math500 | good | pass@1 | 1.000 |" in printed

    # The judge is sent the key and no thoughts; the key is kept nowhere.
    assert set(stage.judge.keys) == {f"Bearer {KEY}"}
    assert SECRET not in json.dumps(stage.judge.asked)
    kept = [path for folder in ("store", "work") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]
    assert not [path for path in kept if path.parent.name == "ledgers"]

    # A second run sends no request and has the same results.
    asked = stage.asked()
    again = stage.run()
    assert stage.asked() == asked
    assert {name: again[name] for name in found if name not in ("run", "path")} == {
        name: found[name] for name in found if name not in ("run", "path")
    }
    assert again["path"] != found["path"]

    # A dry run after it has nothing to do, and with another judge only the verdicts are made again.
    assert stage.run(dry_run=True) is None
    assert set(planned(capsys).values()) == {"cached"}
    for name in JUDGED:
        stage.benchmarks[name]["judge"] |= {"name": "another"}
    stage.run(dry_run=True)
    states = planned(capsys)
    assert {name for name, state in states.items() if state == "to do"} == {
        f"verdicts-{name}-{model}" for name in JUDGED for model in ("bad", "good")
    }


def test_if_a_judge_fails_no_answer_and_no_verdict_is_lost(stage):
    stage.benchmarks["arena-hard-v2.0"]["judge"] |= {"in_flight": 1}
    answers = chats(verdict)

    def failing(body: dict[str, Any]) -> dict[str, Any]:
        refused = {"status": 401, "error": {"message": f"key {KEY} has no credit"}}
        return refused if len(stage.judge.asked) > 2 else answers(body)

    healthy, stage.judge = stage.judge, FakeVllm(completions=failing)
    stage.benchmarks["arena-hard-v2.0"]["judge"] |= {"url": stage.judge.url}
    with pytest.raises(Exception, match=r"401: key \(the key\) has no credit"):
        stage.run("arena-hard-v2.0")
    stage.judge.close()
    stage.judge = healthy
    stage.benchmarks["arena-hard-v2.0"]["judge"] |= {"url": healthy.url}
    before = stage.asked()
    found = stage.run("arena-hard-v2.0")
    assert [row["score"] for row in found["results"]] == [0.0, 100.0]
    assert stage.asked() == (before[0], 8 - 2)


def test_a_judge_served_here_takes_the_models_devices_and_is_sent_no_key(stage):
    judge = stage.model("judge", bad, "plain")
    stage.policies["judge"].close()
    stage.serve("judge", chats(verdict))
    stage.benchmarks["mt-bench"]["judge"] = {"model": judge["model"], "max_unread_share": 1, "verdict_regex": "[a-z]*"}
    found = stage.run("mt-bench")
    assert [row["score"] for row in found["results"]] == [2.0, 9.0]
    bodies = stage.policies["judge"].asked
    assert {json.dumps(body["structured_outputs"]) for body in bodies} == {'{"regex": "[a-z]*"}'}
    assert set(stage.policies["judge"].keys) == {None}
    assert stage.judge.asked == []


@pytest.mark.parametrize("thoughts_in_history", [False, True])
def test_the_second_turn_comes_after_the_first_answer(stage, thoughts_in_history):
    stage.benchmarks["mt-bench"] |= {"thoughts_in_history": thoughts_in_history}
    stage.run("mt-bench", models=stage.models[1:])
    asked = [body["prompt"] for body in stage.policies["good"].asked if body]  # None: GET /metrics
    lengths = sorted(len(each) for prompt in asked for each in (prompt if isinstance(prompt[0], list) else [prompt]))
    assert len(lengths) == 5  # three questions, two of them with a second turn
    assert max(lengths[:3]) < min(lengths[3:])
    text, _ = good(0)
    solution = len(bolt.parse(text).solution.split())
    thoughts = len(text.split()) - solution if thoughts_in_history else 0
    assert lengths[3] - lengths[0] >= solution + thoughts
    assert SECRET not in json.dumps(stage.judge.asked)


# ---- plans, and errors before anything is sampled


@pytest.mark.usefixtures("no_server")
def test_a_dry_run_prints_every_step_and_makes_nothing(stage, tmp_path, capsys):
    assert stage.run(dry_run=True) is None
    states = planned(capsys)
    assert set(states.values()) == {"to do"}
    expected = {f"problems-{name}" for name in stage.benchmarks if name != "short-answer"} | {"problems"}
    for model in ("bad", "good"):
        expected |= {f"{what}-{model}-{how}" for what in ("answers", "grades") for how in ("sampled", "greedy")}
        expected |= {
            f"{what}-{name}-{model}-{how}"
            for what in ("answers", "grades")
            for name in VERIFIABLE[1:]
            for how in ("sampled", "greedy")
        }
        expected |= {f"{what}-{name}-{model}" for what in ("answers", "verdicts") for name in JUDGED}
        expected |= {f"problems-mt-bench-{model}", f"answers-mt-bench-{model}-2", f"styles-arena-hard-v2.0-{model}"}
    expected |= {"baselines-arena-hard-v2.0", "baselines-wildbench"}
    assert expected <= states.keys()
    assert states.keys() - expected == {"collected-problems", "problems-cleaned", "problems-distinct"}
    assert stage.asked() == (0, 0)
    assert list((tmp_path / "store").rglob("manifest.json")) == []


def changed(stage: Stage, name: str, **changes: Any) -> dict[str, Any]:
    stage.benchmarks[name] = {**stage.benchmarks[name], **changes}
    return stage.parameters(name)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mt-bench", {"judge": {"model": "m", "url": "http://x", "name": "n"}}, "set one of the two"),
        ("mt-bench", {"judge": {}}, "set one of the two"),
        ("mt-bench", {"generate": {"samples": 2}}, "set generate.samples to 1"),
        ("mt-bench", {"baselines": [{"path": "b.jsonl"}]}, "omit `baselines`"),
        ("wildbench", {"references": {"path": "r.jsonl"}}, "omit `references`"),
        ("arena-hard-v2.0", {"baselines": []}, "set `baselines`"),
        ("wildbench", {"benchmark": "wildbench-v3"}, "wildbench-v3"),
    ],
)
def test_settings_that_a_judged_benchmark_lacks_are_refused(stage, name, changes, message):
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig(**changed(stage, name, **changes))


@pytest.mark.parametrize("name", ["math500", "zebralogic", *JUDGED])
@pytest.mark.parametrize("draw", [{"skip": 2}, {"seed": 1}, {"caps": {"a": 1}}, {"min_queries": 3}])
def test_the_problems_of_a_named_benchmark_are_not_drawn(stage, name, draw):
    problems = {**stage.benchmarks[name]["problems"], "draw": draw}
    with pytest.raises(ValidationError, match=rf"for {name} only `limit` \(the first ones\) can be set"):
        EvaluateConfig(**changed(stage, name, problems=problems))
    EvaluateConfig(**changed(stage, name, problems={**problems, "draw": {"limit": 3}}))


def test_duplicate_names_are_refused(stage):
    with pytest.raises(ValidationError, match="each name must be unique"):
        EvaluateConfig(**stage.parameters(models=[stage.models[0], stage.models[0]]))
    with pytest.raises(ValidationError, match="each benchmark may be listed once"):
        EvaluateConfig(**stage.parameters("math500", "math500"))
    with pytest.raises(ValidationError, match="`examples` is not given"):
        EvaluateConfig(**stage.parameters(models=[{**stage.models[0], "in_context": True}]))
    with pytest.raises(ValidationError):
        EvaluateConfig(**stage.parameters(models=[{**stage.models[0], "name": "a/b"}]))


@pytest.mark.usefixtures("no_server")
@pytest.mark.parametrize("dry_run", [False, True])
def test_missing_answers_in_files_are_an_error_before_anything_is_sampled(stage, tmp_path, dry_run):
    file_of(tmp_path / "o3.jsonl", [arena_answer(1)])
    with pytest.raises(BadInput, match=r"0 answers to arena-hard-v2\.0's problem u2"):
        stage.run(dry_run=dry_run)
    file_of(tmp_path / "o3.jsonl", [arena_answer(1), arena_answer(2)])
    file_of(tmp_path / "gpt-4.jsonl", [mtbench_reference(1)])
    with pytest.raises(BadInput, match=r"gpt-4\.jsonl: question 3 \(math\) has no reference answer"):
        stage.run(dry_run=dry_run)
    del stage.benchmarks["mt-bench"]["references"]
    with pytest.raises(BadInput, match=r"question\.jsonl: question 3 \(math\) is judged against a reference"):
        stage.run(dry_run=dry_run)
    assert stage.asked() == (0, 0)


@pytest.mark.usefixtures("no_server")
def test_a_missing_model_or_judge_is_an_error_before_anything_is_sampled(stage):
    with pytest.raises(ValueError, match="model 'nowhere': no such folder"):
        stage.run("math500", models=[*stage.models, {"name": "third", "model": "nowhere"}])
    stage.benchmarks["mt-bench"]["judge"] = {"model": "no-judge"}
    with pytest.raises(ValueError, match="model 'no-judge': no such folder"):
        stage.run("math500", "mt-bench")
