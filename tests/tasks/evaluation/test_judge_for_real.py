"""Constrained judging on a real vLLM: every answer can be read, and killing a server loses no finished answer.

There are two judges: the shipped nano model, whose tokenizer knows only whole words and no space, and a random model
whose tokens are the bytes of UTF-8, so that, like real models, it can spell anything.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.processes.watchdog import _descendants
from infra.serving.ledger import Ledger
from infra.serving.servers import Servers, ServingConfig
from infra.serving.vllm_server import ServerError, ServerOptions
from infra.store.manifest import Ref
from infra.store.models import import_model
from infra.store.schemas import QUERIES, TOPICS
from nano.judge import make_judge
from tasks.queries.difficulty import CRITERIA, RateConfig, judge_difficulty, rate_queries
from tasks.queries.topic_proposals import propose_topics
from tasks.queries.topic_tags import judge_topic
from tasks.queries.topics import TopicsConfig

ROOT = Path(__file__).resolve().parents[3]
SERVED = ServerOptions(
    max_model_len=1024, dtype="float32", kv_cache_gib=0.5, max_num_seqs=64, extra_args=("--enable-log-requests",)
)
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(params=["nano", "bytes"])
def judging(request: pytest.FixtureRequest, world: Any, tmp_path: Path) -> tuple[Ref, list[str]]:
    """A judge model, and topics that it can spell."""
    if request.param == "nano":
        return import_model(world.store, ROOT / "nano" / "models" / "instruct", "nano"), ["days", "month", "older"]
    topics = ['the "big" questions', "coding", "coding in C++", "Übung & Spiel"]
    return import_model(world.store, make_judge(tmp_path / "bytes", longest=1024), "bytes"), topics


@pytest.fixture
def templates(tmp_path: Path) -> dict[str, Path]:
    """Short prompt templates: for the byte-level model every letter is a token."""
    texts = {
        "rate": "judge {query}",
        "propose": "name {most} topics of {queries}",
        "tag": "one of {topics} for {query}",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.md").write_text(text)
    return {name: tmp_path / f"{name}.md" for name in texts}


@pytest.fixture
def servers(world: Any) -> Iterator[Callable[[], Servers]]:
    """Start new servers, as a flow run does."""
    made: list[Servers] = []

    def start() -> Servers:
        for each in made:
            each.release()
        made.append(Servers(ServingConfig(policy=SERVED, reward=SERVED), world.store, world.work_dir))
        return made[-1]

    yield start
    for each in made:
        each.release()


def requests_logged(server: Any) -> int:
    """Number of requests in the server's log, which all servers of a work folder share."""
    return len(re.findall(rb"Received request cmpl-", server.log_path.read_bytes()))


def test_every_answer_is_read_and_a_killed_server_loses_none(world, query, judging, templates, servers, monkeypatch):
    judge, topics = judging
    rows = [
        query(f"q{n}", f"today is mon . go {n % 30} days on . which day is it ?", difficulty=None) for n in range(60)
    ]
    queries = world.table(QUERIES, rows, "queries")
    rate = RateConfig(template=templates["rate"], in_flight=4, max_unread_share=0)
    append, died = Ledger.append, []

    def killing(ledger: Ledger, request_id: str, record: dict[str, Any]) -> None:
        append(ledger, request_id, record)
        if len(ledger) == 20 and not died:
            died.append(True)
            os.kill(_descendants(first.generation(judge).pid)[0], signal.SIGKILL)

    first = servers()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", killing)
        with pytest.raises(ServerError, match="ended with status 137"):
            world.do(judge_difficulty, "judged", config=rate, queries=queries, model=judge, servers=first)
    ledger = world.work_dir / "ledgers" / "judged-k.jsonl"
    finished = len(ledger.read_text().splitlines()) - 1
    assert 20 <= finished < 30

    second = servers()
    before = requests_logged(second.generation(judge))
    assert before >= finished
    judged = world.do(judge_difficulty, "judged", config=rate, queries=queries, model=judge, servers=second)
    assert requests_logged(second.generation(judge)) - before == 60 - finished
    assert world.counts(judged) == {"asked": 60, "asked again": 0, "unread": 0, "refused": 0}
    assert not ledger.exists()
    rated = world.do(rate_queries, "rated", min_difficulty=0, queries=queries, judgements=[judged])
    assert rated.rows == 60
    assert all(set(row["criteria"]) <= set(CRITERIA) for row in world.rows(rated))
    assert all(row["difficulty"] == len(row["criteria"]) for row in world.rows(rated))

    config = TopicsConfig(
        tag_template=templates["tag"],
        propose_template=templates["propose"],
        queries_per_proposal=3,
        names_per_proposal=4,
        max_unread_share=0,
    )
    table = world.table(TOPICS, [{"name": name, "proposals": None} for name in topics], "topics")
    more = {"config": config, "queries": queries, "model": judge, "servers": second}
    tagged = world.do(judge_topic, "tags", topics=table, **more)
    assert {row["labels"][0] for row in world.rows(tagged)} <= {*topics, "other"}
    assert world.counts(tagged) == {"asked": 60, "asked again": 0, "unread": 0, "refused": 0}
    proposals = world.do(propose_topics, "proposals", **more)
    assert world.counts(proposals) == {"asked": 20, "asked again": 0, "unread": 0, "refused": 0}
    assert all(1 <= len(row["labels"]) <= 4 for row in world.rows(proposals))
