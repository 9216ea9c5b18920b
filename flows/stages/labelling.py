"""Labels of mined queries by an LLM: difficulty, and topics from a list that a person edits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput

from flows.stages.run import Run
from infra.errors import BadInput
from infra.store.manifest import Ref
from infra.store.tables import read_rows
from infra.text.templates import filled
from tasks.queries.difficulty import RateConfig, judge_difficulty, rate_queries
from tasks.queries.topic_proposals import merge_proposals, propose_topics
from tasks.queries.topic_tags import judge_topic, tag_queries
from tasks.queries.topics import (
    TopicsConfig,
    as_yaml,
    checked_topics,
    keep_edited_topics,
    keep_topics,
    read_topics,
)

TOKENS_A_JUDGEMENT = 30  # that a dry run assumes a judge writes


class EditedTopics(RunInput):
    """The form in the Prefect UI in which a person edits the proposed topics."""

    topics: list[str]


def check_judging(rate: RateConfig | None, topics: TopicsConfig | None) -> None:
    """Read every file that the judgements need, before anything is served. Raises `BadInput` with file and field."""
    if rate:
        filled(_existing(rate.template), query="")
    if topics:
        filled(_existing(topics.tag_template), topics="", query="")
        if topics.file:
            read_topics(topics.file)
        else:
            filled(_existing(topics.propose_template), queries="", most="")


def _existing(template: Path) -> Path:
    """The path of a prompt template. Raises `BadInput` if there is no such file."""
    if not template.is_file():
        raise BadInput(f"prompt template {template} does not exist; relative paths start at {Path.cwd()}")
    return template


def rated(run: Run, config: RateConfig, queries: Ref, judge: Ref) -> Ref:
    """The queries that meet enough of the seven criteria, as judged by the model `judge`."""
    asked: dict[str, Any] = {"config": config, "queries": queries, "model": judge}
    judgements = run.do_shards(
        judge_difficulty, "judged-difficulty", config.shards, expected_tokens=queries.rows * TOKENS_A_JUDGEMENT, **asked
    )
    return run.do(
        rate_queries,
        "queries-rated",
        expected_rows=queries.rows,
        queries=queries,
        judgements=judgements,
        min_difficulty=config.min_difficulty,
    )


def proposed_topics(run: Run, config: TopicsConfig, queries: Ref, judge: Ref) -> Ref:
    """The topics that the model `judge` proposes for a sample of the queries, most named first."""
    requests = -(-min(config.sample, queries.rows) // config.queries_per_proposal)
    proposals = run.do(
        propose_topics,
        "topic-proposals",
        expected_tokens=requests * TOKENS_A_JUDGEMENT,
        config=config,
        queries=queries,
        model=judge,
    )
    return run.do(merge_proposals, "topics-proposed", proposals=proposals, max_topics=config.max_topics)


def edited_topics(run: Run, config: TopicsConfig, queries: Ref, judge: Ref) -> Ref:
    """The edited topics: those of `config.file`, or the proposal as a person edited it in the Prefect UI.

    The edited list is an artifact made from the proposal, so that a later run does not ask again.

    Raises:
        BadInput: the file does not hold a list of topics.
        prefect.exceptions.FlowPauseTimeout: nobody edited it within `wait_hours`.
    """
    if config.file:
        return run.do(keep_topics, "topics", names=read_topics(config.file))
    proposed = proposed_topics(run, config, queries, judge)
    ask = not run.dry and run.found(keep_edited_topics, "topics", proposed=proposed, names=()) is None
    names = _ask_a_person(run, config, proposed) if ask else []
    return run.do(keep_edited_topics, "topics", proposed=proposed, names=names)


def _ask_a_person(run: Run, config: TopicsConfig, proposed: Ref) -> list[str]:
    """Pause the flow run until it is resumed with an edited list. A bad list is shown again with what is wrong."""
    topics = list(read_rows(run.store, proposed))
    file = run.settings.work_dir / f"topics-{proposed.key}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_yaml(topics), encoding="utf-8")
    run.servers.release()  # it may take hours: free the devices meanwhile
    names, wrong = [topic["name"] for topic in topics], ""
    while True:
        request = f"{wrong}Edit the proposed topics: delete, rename, merge, add. The same list is in {file}."
        run.log.info("The flow run waits up to %g hours for its topics. %s", config.wait_hours, request)
        form = EditedTopics.with_initial_data(description=request, topics=names)
        try:
            key = uuid4().hex  # Prefect's own key recurs when the flow run is rerun, and would be refused
            names = pause_flow_run(form, timeout=math.ceil(config.wait_hours * 3600), poll_interval=2, key=key).topics
        except FlowPauseTimeout as error:
            raise FlowPauseTimeout(
                f"nobody edited the topics within {config.wait_hours:g} hours: edit {file}, set topics.file to it, "
                "and run again (the proposal is kept)"
            ) from error
        try:
            return checked_topics(names, "edited topics", [f"row {number}" for number, _ in enumerate(names, 1)])
        except BadInput as error:
            wrong = f"{error}. "


def tagged(run: Run, config: TopicsConfig, queries: Ref, judge: Ref) -> Ref:
    """The queries, each tagged with one of the edited topics or `other`."""
    topics = edited_topics(run, config, queries, judge)
    asked: dict[str, Any] = {"config": config, "queries": queries, "topics": topics, "model": judge}
    judgements = run.do_shards(
        judge_topic, "judged-topic", config.shards, expected_tokens=queries.rows * TOKENS_A_JUDGEMENT, **asked
    )
    return run.do(tag_queries, "queries-tagged", expected_rows=queries.rows, queries=queries, judgements=judgements)
