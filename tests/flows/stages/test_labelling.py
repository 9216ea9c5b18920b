"""Labelling in flow runs of a real Prefect server: planned, cached, paused until a person edits the topics."""

from __future__ import annotations

import contextvars
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fakes import FakeVllm
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_engine import run_flow_sync
from prefect.states import AwaitingRetry

from flows.stages.common import Estimates
from flows.stages.labelling import check_judging, edited_topics, rated, tagged
from flows.stages.run import TASK_RUNNER, Run
from infra.errors import BadInput
from infra.settings import PROJECT_ROOT, Settings
from infra.store.manifest import Provenance, Ref
from infra.store.models import import_model
from infra.store.schemas import QUERIES
from infra.store.store import Store
from infra.store.tables import read_rows, write_table
from nano.vocabulary import save_tokenizer, tokenizer
from tasks.queries.difficulty import RateConfig
from tasks.queries.topics import TopicsConfig

PROMPTS = PROJECT_ROOT / "prompts"
RATE = RateConfig(template=PROMPTS / "judge_difficulty.md", shards=2)
TOPICS = TopicsConfig(
    propose_template=PROMPTS / "propose_topics.md",
    tag_template=PROMPTS / "tag_topic.md",
    queries_per_proposal=5,
    shards=2,
    wait_hours=0.02,
)


class Judge:
    """Replaces `Servers`: hands out one fake server, and counts how often devices were freed."""

    def __init__(self, work_dir: Path, server: Any) -> None:
        self.work_dir, self.server, self.released = work_dir, server, 0

    def generation(self, model: Ref) -> Any:
        return self.server

    def devices(self) -> int:
        return 1

    def engine(self, role: str) -> str:
        return "{}"

    def release(self) -> None:
        self.released += 1


class World:
    """A store with ten queries and a judge: even ones are hard, and about days."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.settings = Settings(store=str(folder / "store"), work_dir=folder / "work")
        self.store, self.server = Store.open(self.settings), server
        self.servers = Judge(folder / "work", server)
        rows = [
            {"query_id": f"q{n}", "query": f"which day is {n} ?", "source": "f.jsonl", "source_row": n}
            for n in range(10)
        ]
        self.queries = write_table(self.store, "queries", "k", QUERIES, [rows], Provenance())
        save_tokenizer(folder / "model")
        (folder / "model" / "config.json").write_text("{}")
        self.model = import_model(self.store, folder / "model", "judge")

    def run(self, body: Callable[[Run], Ref], name: str = "", dry: bool = False) -> Any:
        """Run `body` in a flow run of this name."""

        @flow(task_runner=TASK_RUNNER, name="judging", flow_run_name=name or None)
        def judging() -> Ref:
            servers: Any = self.servers
            scratch = self.settings.work_dir / "scratch" if dry else None
            return body(Run(self.store, self.settings, servers, Estimates(), scratch))

        return judging()

    def rows(self, ref: Ref) -> list[dict[str, Any]]:
        return list(read_rows(self.store, ref))


@pytest.fixture
def world(tmp_path, prefect_server) -> Iterator[World]:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        constraint, shown = body["structured_outputs"], tokenizer().decode(body["prompt"])
        number = int(re.findall(r"which day is (\d+) \?", shown)[0])
        if "choice" in constraint:
            text = constraint["choice"][number % 2]
        elif "1 ?:" in constraint["regex"]:
            text = "\n".join(f"{n}: {'no' if number % 2 and n > 4 else 'yes'}" for n in range(1, 8))
        else:
            text = "days, months"
        choice = {"index": 0, "text": text, "finish_reason": "stop", "token_ids": [1]}
        return {"choices": [choice], "usage": {"prompt_tokens": 1}}

    server = FakeVllm(completions=answer)
    yield World(tmp_path, server)
    server.close()


def person(name: str, *answers: list[str]) -> tuple[threading.Thread, list[dict[str, Any]]]:
    """Resume the flow run each time that it pauses, once per answer. Returns what was shown each time."""
    shown: list[dict[str, Any]] = []

    def edit() -> None:
        with get_client(sync_client=True) as client:
            filtered = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
            for answer in answers:
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:
                    found = client.read_flow_runs(flow_run_filter=filtered)
                    keys = (
                        found[0].state.state_details.run_input_keyset if found and found[0].state.is_paused() else None
                    )
                    description = keys and client.request(
                        "POST", f"/flow_runs/{found[0].id}/input/filter", json={"prefix": keys["description"]}
                    )
                    if description and description.json():
                        break
                    time.sleep(0.2)
                schema = json.loads(client.read_flow_run_input(found[0].id, keys["schema"]))
                shown.append({"text": client.read_flow_run_input(found[0].id, keys["description"]), "schema": schema})
                client.resume_flow_run(found[0].id, run_input={"topics": answer})
                while client.read_flow_run(found[0].id).state.is_paused():
                    time.sleep(0.1)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(edit,), daemon=True)
    thread.start()
    return thread, shown


def test_queries_are_rated_once(world):
    made = world.run(lambda run: rated(run, RATE, world.queries, world.model))
    assert [(row["query_id"], row["difficulty"]) for row in world.rows(made)] == [(f"q{n}", 7) for n in range(0, 10, 2)]
    assert len(world.server.asked) == 10
    lower = RATE.model_copy(update={"min_difficulty": 4, "in_flight": 1, "max_unread_share": 0})
    assert world.run(lambda run: rated(run, lower, world.queries, world.model)).rows == 10
    assert len(world.server.asked) == 10  # neither changes an answer


def test_an_edited_file_is_what_queries_are_tagged_with(world, tmp_path):
    file = tmp_path / "topics.yaml"
    file.write_text("- days\n- months\n")
    config = TOPICS.model_copy(update={"file": file})
    check_judging(RATE, config)
    made = world.run(lambda run: tagged(run, config, world.queries, world.model))
    assert [row["topic"] for row in world.rows(made)] == ["days", "months"] * 5
    assert len(world.server.asked) == 10
    file.write_text("# the same topics, in another notation\n- days\n- months\n")
    world.run(lambda run: tagged(run, config, world.queries, world.model))
    assert len(world.server.asked) == 10
    file.write_text("- days\n- years\n")
    again = world.run(lambda run: tagged(run, config, world.queries, world.model))
    assert [row["topic"] for row in world.rows(again)] == ["days", "years"] * 5
    assert len(world.server.asked) == 20  # the edited list is an ingredient of the keys


def test_a_flow_run_pauses_until_a_person_has_edited_the_topics(world):
    name = f"paused-{uuid4().hex}"
    editing, shown = person(name, ["days", "Days "], ["weekdays", "the rest"])
    made = world.run(lambda run: tagged(run, TOPICS, world.queries, world.model), name)
    editing.join(60)
    assert [row["topic"] for row in world.rows(made)] == ["weekdays", "the rest"] * 5
    assert shown[0]["schema"]["properties"]["topics"]["default"] == ["days", "months"]
    assert "The same list is in" in shown[0]["text"]
    assert "edited topics, row 2: topic 'Days ' is a duplicate of 'days' (edited topics, row 1)" in shown[1]["text"]
    assert shown[1]["schema"]["properties"]["topics"]["default"] == ["days", "Days "]
    (file,) = world.settings.work_dir.glob("topics-*.yaml")
    assert file.read_text().endswith("- days\n- months\n")
    assert world.servers.released == 1
    asked = len(world.server.asked)
    again = world.run(lambda run: tagged(run, TOPICS, world.queries, world.model))  # does not pause again
    assert (again.digest, len(world.server.asked)) == (made.digest, asked)


def test_a_run_that_is_rerun_pauses_again(world):
    """What Prefect keeps of the first pause does not interfere, nor does a missing work folder."""
    name = f"paused-{uuid4().hex}"

    @flow(task_runner=TASK_RUNNER, name="judging", flow_run_name=name)
    def judging(wait_hours: float) -> Ref:
        servers: Any = world.servers
        config = TOPICS.model_copy(update={"wait_hours": wait_hours})
        return edited_topics(
            Run(world.store, world.settings, servers, Estimates(), None), config, world.queries, world.model
        )

    with pytest.raises(FlowPauseTimeout):
        judging(0.0005)
    shutil.rmtree(world.settings.work_dir)
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
        assert run.state.is_failed()
        client.set_flow_run_state(run.id, AwaitingRetry())
        again = client.read_flow_run(run.id)
    editing, shown = person(name, ["weekdays", "the rest"])
    made = run_flow_sync(judging, again, {"wait_hours": 0.02}, return_type="result")
    editing.join(60)
    assert len(shown) == 1
    assert [row["name"] for row in world.rows(made)] == ["weekdays", "the rest"]


def test_the_wait_for_an_edit_is_bounded(world):
    config = TOPICS.model_copy(update={"wait_hours": 0.0005})
    with pytest.raises(FlowPauseTimeout) as error:
        world.run(lambda run: edited_topics(run, config, world.queries, world.model))
    (file,) = world.settings.work_dir.glob("topics-*.yaml")
    assert f"edit {file}, set topics.file to it" in str(error.value)


def test_a_dry_run_neither_pauses_nor_sends_requests(world, capsys):
    world.run(lambda run: tagged(run, TOPICS, rated(run, RATE, world.queries, world.model), world.model), dry=True)
    steps = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "to do" in line]
    assert steps == [
        *["judged-difficulty"] * 2,
        "queries-rated",
        "topic-proposals",
        "topics-proposed",
        "topics",
        *["judged-topic"] * 2,
        "queries-tagged",
    ]
    assert world.server.asked == []


def test_files_are_read_before_anything_is_served(tmp_path):
    (tmp_path / "bare.md").write_text("?")
    (tmp_path / "topics.yaml").write_text("- a\n- A\n")
    bare = tmp_path / "bare.md"
    for rate, topics, message in (
        (RATE.model_copy(update={"template": bare}), None, "lacks the field {query}"),
        (RATE.model_copy(update={"template": tmp_path / "none.md"}), None, "none.md does not exist"),
        (None, TOPICS.model_copy(update={"tag_template": bare}), "lacks the field {topics}"),
        (None, TOPICS.model_copy(update={"propose_template": bare}), "lacks the field {queries}"),
        (
            None,
            TOPICS.model_copy(update={"file": tmp_path / "topics.yaml"}),
            "topics.yaml, line 2: topic 'A' is a duplicate",
        ),
    ):
        with pytest.raises(BadInput) as error:
            check_judging(rate, topics)
        assert message in str(error.value)
    check_judging(None, None)
