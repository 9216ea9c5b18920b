"""Dry runs show what a run would do; a run that cannot succeed is refused before a GPU is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError
from prefect import flow
from small import bootstrap_parameters, small_world

from flows.bolt import BoltConfig, bolt
from flows.bootstrap import BootstrapConfig, bootstrap
from flows.evaluate import EvaluateConfig, evaluate
from flows.online import OnlineConfig, OnlineStage, online
from flows.sft import SftFlowConfig, sft
from flows.stages.mining import problems_stage
from flows.stages.run import begin, expected_cost
from infra.errors import BadInput
from infra.serving.servers import Servers
from infra.settings import Settings
from infra.store.manifest import Provenance
from infra.store.models import import_model
from infra.store.schemas import LONGCOT
from infra.store.store import Store
from infra.store.tables import write_table

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters. The test fails if a server is started."""
    monkeypatch.setenv("BOLT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("BOLT_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setattr(Servers, "_pool", lambda *_: pytest.fail("a server was asked for"))
    return small_world(tmp_path / "files")


def planned(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str, str]]:
    """What a dry run printed for each step (for the last shard): state, key, what is expected."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line[28:37].strip() in ("to do", "cached")]
    return {line[:28].strip(): (line[29:37].strip(), line[38:66].strip(), line[66:].strip()) for line in lines}


def test_a_dry_run_counts_the_rows_of_local_files(world, capsys):
    assert bolt(BoltConfig(**world, dry_run=True)) is None
    plan = planned(capsys)
    assert plan["answers-instruct-sampled"][2] == "600 tokens"  # 2 problems, 3 samples, 100 tokens
    assert plan["answers-in-context-greedy"][2].startswith("200 tokens")
    assert plan["responses"][2].startswith("2,000 tokens")  # 12 queries less 2 held out, 4 samples, 2 shards
    assert plan["responses-online-2"][2].startswith("2,000 tokens")  # 5 queries, 4 samples
    assert plan["sft"][2].startswith("4,000 tokens")  # 10 instances, 4 epochs


@pytest.mark.parametrize(
    ("on_cpu", "tokens", "hours", "said"),
    [
        (True, 600, 0.0, "600 tokens"),
        (True, 6_000, 1.5, "6,000 tokens"),
        (False, 6_000, 1.5, "6,000 tokens, 1.50 GPU hours"),
        (False, 600, 0.0001, "600 tokens, under 0.01 GPU hours"),
        (False, 0, 0.0, "no tokens"),
    ],
)
def test_a_plan_has_gpu_hours_only_where_there_are_some(monkeypatch, on_cpu, tokens, hours, said):
    monkeypatch.setattr("flows.stages.run.runs_on_cpu", lambda: on_cpu)
    assert expected_cost(tokens, hours) == said


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_whole_plan_says_what_it_costs(world, monkeypatch, capsys, on_cpu):
    monkeypatch.setattr("flows.stages.run.runs_on_cpu", lambda: on_cpu)
    world["estimates"]["generated_per_gpu_second"] = 0.1
    bolt(BoltConfig(**world, dry_run=True))
    out = capsys.readouterr().out
    assert ("GPU hours" in out) is not on_cpu
    assert ("hours at the speeds in `estimates`" in out) is on_cpu
    assert "0.00" not in out


@pytest.mark.parametrize("layout", ["one-turn", "turns"])
def test_a_dry_run_counts_the_tokens_of_the_longest_prompt_in_the_layout(world, capsys, layout):
    world["bootstrap"]["prompt"] |= {"layout": layout}
    bolt(BoltConfig(**world, dry_run=True))
    assert f"tokens ({layout}); with 1,024 for the query and 32 for the response that is " in capsys.readouterr().out
    world["serving"]["policy"] = {"max_model_len": 1_070}
    with pytest.raises(BadInput, match=r"examples are needed, . of 3 .*\n.*max_model_len is 1,070: shorten it"):
        bolt(BoltConfig(**world, dry_run=True))


@flow
def only_mine(config: BoltConfig) -> None:
    with begin(config) as run:
        problems_stage(run, config.evaluate.problems)


def test_a_dry_run_knows_the_keys_of_a_model_without_copying_it(world, tmp_path, capsys):
    only_mine(BoltConfig(**world))
    bolt(BoltConfig(**world, dry_run=True))
    first = planned(capsys)
    assert not (tmp_path / "store" / "imported").exists()
    known = {name for name, (_, key, _) in first.items() if not key.startswith("(")}
    collected = {"collected-queries", "collected-problems", "cleaned", "distinct"}
    collected |= {"problems-cleaned", "problems-distinct"}
    mined = {"held-out", "contaminated", "decontaminated", "queries", "queries-online-1", "queries-online-2"}
    files_alone = {"problems", "examples", *collected, *mined}
    assert known == files_alone | {"answers-instruct-sampled", "answers-instruct-greedy"}
    import_model(Store.open(Settings.load()), Path(world["model"]), "model")
    bolt(BoltConfig(**world, dry_run=True))
    assert planned(capsys) == first


@pytest.mark.parametrize(
    ("status", "kind"), [(401, BadInput), (404, BadInput), (429, ConnectionError), (503, ConnectionError)]
)
def test_a_model_that_the_hub_refuses_is_told(world, monkeypatch, status, kind):
    def download(*_: Any, **__: Any) -> str:
        raise HfHubHTTPError("no", response=httpx.Response(status, request=httpx.Request("GET", "https://hub")))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(kind, match=r"model org/name@main: .*\(no\)"):
        bootstrap(BootstrapConfig(**{**bootstrap_parameters(world), "model": "org/name@main"}))


def test_a_hub_id_is_not_downloaded_for_a_dry_run(world, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("downloaded"))
    parameters = bootstrap_parameters(world) | {"model": "some/model@0123abc"}
    bootstrap(BootstrapConfig(**parameters, dry_run=True))
    plan = planned(capsys)
    assert plan["responses"][1] == "(key depends on the above)"
    assert plan["queries"][1] != "(key depends on the above)"


def test_a_dry_run_of_evaluate_makes_and_returns_nothing(world, capsys):
    models = [{"name": "one", "model": world["model"], "format": "plain"}]
    parameters = {"serving": world["serving"], "models": models}
    parameters["benchmarks"] = [world["evaluate"] | {"benchmark": "short-answer"}]
    assert evaluate(EvaluateConfig(**parameters, dry_run=True)) is None
    assert planned(capsys)["answers-one-greedy"][0] == "to do"


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("stage", ["bolt", "bootstrap", "sft", "online", "evaluate"])
@pytest.mark.parametrize(
    ("end", "format", "said"),
    [
        (
            "<think>\n",
            "bolt",
            r"opens the thoughts .* in the format bolt would never close.*set the format to r1 or rlmt",
        ),
        ("<think> </think>", "r1", r"closes the thoughts .* in the format r1 would open them again"),
    ],
)
def test_a_template_that_does_not_go_with_the_format_is_refused(world, tmp_path, stage, end, format, said, dry_run):
    template = Path(world["model"]) / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if add_generation_prompt %}{{ " + repr(end) + " }}{% endif %}")
    world["bootstrap"] |= {"select": {"format": format}}
    world["bootstrap"]["generate"] = world["online"]["generate"] = world["online"]["generate"] | {"format": format}
    row = {"query_id": "q", "sample": 0, "query": "why ?", "thoughts": "plan", "solution": "so", "reward": 1.0}
    table = [[row | {"format": format}]]
    write_table(Store.open(Settings.load()), "longcot", "k", LONGCOT, table, Provenance())
    served = {"serving": world["serving"], "dry_run": dry_run}
    policy = served | {"model": world["model"]}
    evaluated = {"models": [{"name": "one", "model": world["model"], "format": format}]}
    evaluated["benchmarks"] = [world["evaluate"] | {"benchmark": "short-answer"}]
    calls = {
        "bolt": lambda: bolt(BoltConfig(**world, dry_run=dry_run)),
        "bootstrap": lambda: bootstrap(BootstrapConfig(**bootstrap_parameters(world), dry_run=dry_run)),
        "sft": lambda: sft(SftFlowConfig(**policy, longcot="longcot/k")),
        "online": lambda: online(OnlineConfig(**policy, reward_model=world["reward_model"], online=world["online"])),
        "evaluate": lambda: evaluate(EvaluateConfig(**served, **evaluated)),
    }
    with pytest.raises(BadInput, match=f"the chat template of model .*{said}"):
        calls[stage]()


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"method": "grpo"}, {"responses-online-1", "rewards-online-1", "scores-online-1", "samples-1", "grpo-1"}),
        ({"method": "reinforce", "rl": {"on_policy": True}}, {"reinforce-1"}),
    ],
)
def test_the_plan_of_another_method_has_its_steps(world, capsys, changes, steps):
    world["online"] |= {"generate": {**world["online"]["generate"], "samples": 4}, **changes}
    assert bolt(BoltConfig(**world, dry_run=True)) is None
    out = capsys.readouterr()
    assert "config.online.rl: packing off (TRL's policy gradients have no padding-free batches)" in out.out
    found = {line[:28].strip() for line in out.out.splitlines() if line[28:37].strip() == "to do"}
    assert steps <= found
    assert not {name for name in found if name.startswith(("pairs", "dpo"))}
    assert ("responses-online-1" in found) == ("responses-online-1" in steps)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rl": {"beta": 0.1}}, "rl.beta is set, but method is dpo, which does not use it"),
        ({"method": "rloo", "rl": {"baseline_decay": 0.9}}, "rl.baseline_decay is set, but method is rloo"),
        ({"method": "grpo", "rl": {"baseline_decay": 0.9}}, "rl.baseline_decay is set, but method is grpo"),
        ({"method": "reinforce", "rl": {"scale_rewards": False}}, "rl.scale_rewards is set, but method is reinforce"),
        ({"method": "ppo"}, "Input should be 'dpo', 'rloo', 'reinforce' or 'grpo'"),
        ({"method": "rloo", "generate": {"temperature": 0}}, "generate.temperature is 0, but method rloo needs"),
        ({"method": "rloo", "generate": {"samples": 1}}, "generate.samples is 1, but method rloo compares"),
        ({"method": "reinforce", "rl": {"on_policy": True}, "generate": {"samples": 1}}, "generate.samples is 1"),
        ({"method": "rloo", "rl": {"on_policy": True}, "generate": {"end_at_close": True}}, "end_at_close is set"),
    ],
)
def test_a_method_refuses_by_name_what_it_does_not_use(world, changes, said):
    with pytest.raises(ValueError, match=said):
        OnlineStage(queries=world["online"]["queries"], **changes)


@pytest.mark.parametrize("dry_run", [False, True])
def test_too_few_queries_for_all_iterations_are_an_error_before_anything_is_sampled(world, tmp_path, dry_run):
    world["online"]["queries_per_iteration"] = 6
    with pytest.raises(BadInput) as error:  # 12 queries less 2 held out
        bolt(BoltConfig(**world, dry_run=dry_run))
    for part in ("12 queries are needed (skip 6, then 6), found 10", "passed over"):
        assert part in str(error.value)
    assert not list((tmp_path / "store").glob("answers*"))


def test_a_short_last_iteration_is_an_error_for_online_alone(world):
    world["online"] |= {"queries_per_iteration": 5, "iterations": 3}
    parameters = {name: world[name] for name in ("model", "reward_model", "serving", "online")}
    with pytest.raises(BadInput, match=r"15 queries are needed \(skip 10, then 5\), found 12"):
        online(OnlineConfig(**parameters))


def test_iterations_share_no_query_and_take_no_limit(tmp_path):
    sources = [{"path": str(tmp_path / "q.jsonl")}]
    stage = OnlineStage(queries={"sources": sources, "draw": {"skip": 3}}, queries_per_iteration=7)
    drawn = [stage.draw_of(number) for number in (1, 2, 3)]
    assert [(each.skip, each.limit, each.min_queries) for each in drawn] == [(3, 7, 7), (10, 7, 7), (17, 7, 7)]
    with pytest.raises(ValueError, match="set queries_per_iteration"):
        OnlineStage(queries={"sources": sources, "draw": {"limit": 3}})
