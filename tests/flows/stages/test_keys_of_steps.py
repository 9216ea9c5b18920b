"""Which steps are made again after a change: the plans of the flows against a real store."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

import infra.steps.step
from flows.bootstrap import BootstrapStage, bootstrap_stage, curated
from flows.evaluate import EvaluateStage, evaluate_stage
from flows.online import OnlineStage, online_iteration, online_queries
from flows.sft import sft_stage
from flows.stages.common import Estimates
from flows.stages.guards import Watch
from flows.stages.mining import mine_stage, problems_stage
from infra.serving.servers import Servers, ServingConfig
from infra.settings import PACKAGES, PROJECT_ROOT, Settings
from infra.steps.keys import code_fingerprint
from infra.store.manifest import Provenance, Ref
from infra.store.parts import find
from infra.store.store import Store
from infra.store.tables import write_table
from infra.text.templates import text_of
from infra.training.config import SftRecipe
from infra.training.hosts import HERE

SCHEMA = pa.schema([pa.field("key", pa.string(), nullable=False)])
MINED = {"collected-queries", "cleaned", "distinct", "held-out", "contaminated", "decontaminated"}
MADE_OF_QUERIES = {"collected-queries", "cleaned", "distinct"}  # alone
MINED_ONLINE = MINED - {"collected-queries"} | {"collected-online"}
PROBLEMS = {"collected-test", "problems-cleaned", "problems-distinct", "problems"}
STAGE_1 = {"examples", "queries", "responses", "filtered", "rewards", "scores", "longcot"}
STAGE_3 = {
    "queries-online-1",
    "responses-online-1",
    "rewards-online-1",
    "scores-online-1",
    "guards-0",
    "pairs-1",
    "dpo-1",
}
GRADED = {f"{what}-sft-{how}" for what in ("answers", "grades") for how in ("sampled", "greedy")}
ALL = STAGE_1 | {"sft"} | PROBLEMS | MINED | MINED_ONLINE | STAGE_3 | GRADED
DRAWN = {"responses", "filtered", "rewards", "scores", "longcot", "sft"}  # what follows from stage 1's samples
LATER = DRAWN | (STAGE_3 - {"queries-online-1"}) | GRADED


class Recorder:
    """Replaces `Run`: looks every step up in the store, and writes a stub if it is not found."""

    dry = False
    cluster = None
    estimates = Estimates()
    hosts = HERE
    folders: ClassVar = {f"reward {n}": PROJECT_ROOT / "nano" / "models" / "reward" for n in (1, 2)}

    def __init__(self, store: Store, serving: dict[str, Any]) -> None:
        self.store = store
        self.servers = Servers(ServingConfig(**serving), store, Path("unused"))
        self.made: set[str] = set()
        self.found: set[str] = set()

    def do(self, step: Any, name: str, *, expected_tokens: int = 0, expected_rows: int = 0, **given: Any) -> Ref:
        given = {key: value for key, value in given.items() if key not in ("rehearse", "gpus")}
        return self._one(step.plan(name, given | ({"servers": self.servers} if step.takes_servers else {})))

    def do_shards(self, step: Any, name: str, shards: int, *, expected_tokens: int = 0, **given: Any) -> list[Ref]:
        return [self.do(step, name, **given, shard=shard, shards=shards) for shard in range(shards)]

    def _one(self, plan: Any) -> Ref:
        known = find(self.store, plan.step, plan.key)
        (self.found if known else self.made).add(plan.step)
        return known or write_table(
            self.store, plan.step, plan.key, SCHEMA, [[{"key": f"{plan.step}/{plan.key}"}]], Provenance()
        )


class World:
    """The user's files and settings; `run` plans all stages and returns the steps that were made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store.open(Settings(store=str(folder / "store")))
        for name in ("prompts", "examples"):
            shutil.copytree(PROJECT_ROOT / "nano" / name, folder / name)
        for name in ("queries", "online", "test"):
            (folder / f"{name}.jsonl").write_text(json.dumps({"query": f"{name} ?"}) + "\n")
        self.models = {name: self.model(name, "1") for name in ("instruct", "reward")}
        sources = {name: [{"path": f"{folder}/{name}.jsonl"}] for name in ("queries", "online", "test")}
        queries = {"sources": sources["queries"], "decontaminate": {"held_out": sources["test"]}, "draw": {}}
        prompt = {"template": folder / "prompts/in_context.md", "example_template": folder / "prompts/example.md"}
        self.config: dict[str, Any] = {
            "serving": {"policy": {"max_model_len": 64}, "reward": {"max_model_len": 64}},
            "bootstrap": {
                "examples": {"path": folder / "examples", "min_actions": 3, "min_words": 10},
                "queries": queries,
                "prompt": prompt,
                "generate": {"request_seeds": False},
                "filter": {},
                "score": {},
                "select": {},
                "shards": 2,
            },
            "sft": {},
            "online": {
                "iterations": 1,
                "queries": {"sources": sources["online"], "draw": {}},
                "generate": {"request_seeds": False},
                "pair": {},
                "dpo": {},
                "shards": 1,
            },
            "evaluate": {"problems": {"sources": sources["test"]}, "generate": {"request_seeds": False}, "shards": 1},
        }

    def model(self, name: str, content: str) -> Ref:
        return Ref(kind="model", step="imported", key=name, uri="", digest=f"{name} {content}", rows=1)

    def run(self) -> set[str]:
        run: Any = Recorder(self.store, self.config["serving"])
        text_of.cache_clear()  # each run is a process of its own
        instruct, reward = self.models["instruct"], self.models["reward"]
        stage_1 = BootstrapStage(**self.config["bootstrap"])
        stage_3 = OnlineStage(**self.config["online"])
        examples, queries = curated(run, stage_1.examples), mine_stage(run, stage_1.queries)
        longcot = bootstrap_stage(run, stage_1, examples, queries, instruct, reward)
        policy = sft_stage(run, SftRecipe(**self.config["sft"]), longcot, instruct)
        watch = Watch(run, stage_3.guards, stage_3.dpo.guards, SftRecipe(**self.config["sft"]).guards)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flows.stages.guards.read_rows", lambda *_: ())  # the table is a stub
            online_iteration(run, stage_3, 1, online_queries(run, stage_3)[1], policy, policy, reward, watch)
        evaluate = EvaluateStage(**self.config["evaluate"])
        evaluate_stage(run, evaluate, "sft", problems_stage(run, evaluate.problems), policy)
        assert set(run.made | run.found) == ALL
        return set(run.made)

    def set(self, path: str, value: Any) -> None:
        *parents, last = path.split(".")
        functools.reduce(lambda place, name: place[name], parents, self.config)[last] = value

    def files(self) -> list[Path]:
        folders = (self.folder, self.folder / "prompts", self.folder / "examples")
        return [path for folder in folders for path in folder.iterdir() if path.is_file()]

    def append(self, name: str, text: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write(text)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world in which all steps are made."""
    made = World(tmp_path_factory.mktemp("world"))
    assert made.run() == ALL
    return made


@pytest.fixture
def world(planned: World) -> Iterator[World]:
    """The world `made`, restored after the test."""
    inputs = {path: path.read_bytes() for path in planned.files()}
    config, models = copy.deepcopy(planned.config), dict(planned.models)
    yield planned
    for path in planned.files():
        path.unlink()
    for path, content in inputs.items():
        path.write_bytes(content)
    planned.config, planned.models = config, models


def test_nothing_changed_nothing_made(world):
    assert world.run() == set()


def test_a_models_digest_counts_in_the_steps_that_use_it(world):
    world.models["reward"] = world.model("reward", "2")
    assert world.run() == {"rewards", "scores", "longcot", "sft"} | (STAGE_3 - {"queries-online-1"}) | GRADED
    world.models["instruct"] = world.model("instruct", "2")
    assert world.run() == LATER


def test_the_location_of_a_model_does_not_count(world):
    world.models = {name: ref.model_copy(update={"uri": "s3://elsewhere"}) for name, ref in world.models.items()}
    assert world.run() == set()


@pytest.mark.parametrize(
    ("file", "text", "made"),
    [
        ("examples/01-arithmetic.md", "\n", {"examples"} | LATER),
        ("prompts/in_context.md", "!", LATER),
        ("prompts/example.md", "!", LATER),
        ("queries.jsonl", '{"query": "more ?"}\n', MINED - {"held-out"} | {"queries"} | LATER),
        ("online.jsonl", '{"query": "more ?"}\n', MINED_ONLINE - {"held-out"} | STAGE_3),
        ("test.jsonl", '{"query": "more ?"}\n', MINED - MADE_OF_QUERIES | {"queries"} | PROBLEMS | LATER),
        ("examples/notes.txt", "not an example", set()),
        ("README.md", "not read by any step", set()),
    ],
)
def test_files_count_by_content_in_the_steps_that_read_them(world, file, text, made):
    world.append(file, text)
    assert world.run() == made


def test_an_added_or_renamed_example_counts(world):
    (world.folder / "examples/01-arithmetic.md").rename(world.folder / "examples/99-arithmetic.md")
    assert world.run() == {"examples"} | LATER


@pytest.mark.parametrize(
    ("setting", "value", "made"),
    [
        ("bootstrap.generate.temperature", 0.7, LATER),
        ("bootstrap.generate.max_tokens", 99, LATER),
        ("bootstrap.generate.samples", 9, LATER),
        ("bootstrap.generate.seed", 1, LATER),
        ("bootstrap.generate.in_flight", 3, set()),
        ("bootstrap.prompt.examples", 2, LATER),
        ("serving.policy.max_model_len", 65, LATER),
        ("serving.policy.tensor_parallel_size", 2, set()),
        (
            "serving.reward.dtype",
            "float32",
            {"rewards", "scores", "longcot", "sft"} | STAGE_3 - {"queries-online-1"} | GRADED,
        ),
        ("serving.reward.max_num_seqs", 3, set()),
        ("serving.share_devices", False, set()),
        ("bootstrap.shards", 3, LATER),
        ("bootstrap.queries.draw.limit", 5, {"queries"} | LATER),
        ("bootstrap.queries.draw.caps", {"": 4}, {"queries"} | LATER),
        (
            "bootstrap.filter.copied_words",
            20,
            {"filtered", "rewards", "scores", "longcot", "sft"} | STAGE_3 - {"queries-online-1"} | GRADED,
        ),
        (
            "bootstrap.score.format_weight",
            2.0,
            {"rewards", "scores", "longcot", "sft"} | STAGE_3 - {"queries-online-1"} | GRADED,
        ),
        ("bootstrap.select.percentile", 40, {"longcot", "sft"} | STAGE_3 - {"queries-online-1"} | GRADED),
        ("sft.epochs", 3, {"sft"} | STAGE_3 - {"queries-online-1"} | GRADED),
        ("online.generate.top_p", 0.9, STAGE_3 - {"queries-online-1"}),
        ("online.queries_per_iteration", 7, STAGE_3),
        ("online.pair.min_margin", 0.5, {"pairs-1", "dpo-1"}),
        ("online.pair.boundary", 0.0, {"pairs-1", "dpo-1"}),
        ("online.dpo.beta", 0.2, {"dpo-1"}),
        ("online.dpo.guards", {"max_kl": 9.0}, set()),
        ("online.guards", {"max_length_ratio": 9.0}, {"guards-0"}),
        ("sft.guards", {"max_nonfinite_steps": 9}, {"guards-0"}),
        ("evaluate.generate.samples", 2, {"answers-sft-sampled", "grades-sft-sampled"}),
    ],
)
def test_settings_count_in_their_own_step_and_what_follows(world, setting, value, made):
    world.set(setting, value)
    assert world.run() == made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's source."""
    root = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        for path in (path for end in ("*.py", "*.md") for path in (PROJECT_ROOT / name).rglob(end)):
            target = root / path.relative_to(PROJECT_ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return root


@pytest.fixture
def from_source(source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys computed from the copy."""
    monkeypatch.setattr(infra.steps.step, "code_fingerprint", functools.partial(code_fingerprint, root=source))
    return source


@pytest.mark.parametrize(
    ("file", "made"),
    [
        (
            "tasks/responses/generate.py",
            {"responses", "responses-online-1", "answers-sft-sampled", "answers-sft-greedy"},
        ),
        ("tasks/responses/prompt.py", {"examples", "responses"}),  # examples are measured in the prompt
        ("cot_formats/responses.py", {"examples", "responses", "rewards", "longcot"}),
        ("cot_formats/tagged.py", {"examples", "responses", "rewards", "longcot"}),
        ("tasks/responses/rules.py", {"filtered"}),
        ("infra/serving/armorm_process.py", {"rewards", "rewards-online-1"}),
        ("tasks/rewards/pair.py", {"pairs-1"}),
        ("infra/training/sft.py", {"sft"}),
        ("infra/training/dpo.py", {"dpo-1"}),
        ("evals/short_answer.py", {"rewards", "rewards-online-1", "grades-sft-sampled", "grades-sft-greedy"}),
        ("infra/store/tables.py", ALL - {"sft", "dpo-1"}),
        ("tasks/evaluation/summarise.py", set()),
        ("flows/bolt.py", set()),
        ("nano/corpus.py", set()),
    ],
)
def test_source_counts_in_the_steps_that_import_it(from_source, world, file, made):
    assert world.run() == set()
    path = from_source / file
    before = path.read_text()
    path.write_text(before + "\n# another line\n")
    changed = world.run()
    path.write_text(before)
    assert made <= changed
    if not made:
        assert changed == set()
    if file == "tasks/responses/generate.py":
        assert changed == LATER
