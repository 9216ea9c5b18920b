"""Query mining (BOLT section 3.1.2): collect, clean, decontaminate, judge, draw. Each step maps queries to queries."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

from prefect.artifacts import create_table_artifact
from pydantic import BaseModel, Field, model_validator

from flows.stages.common import A_MODEL
from flows.stages.labelling import check_judging, rated, tagged
from flows.stages.run import Run
from infra.store.manifest import Manifest, Ref, expect
from infra.store.store import Store
from tasks.queries.clean import AS_THEY_ARE, CleanConfig, clean_queries
from tasks.queries.collect import collect_queries
from tasks.queries.decontaminate import DecontaminateConfig, decontaminate, find_contaminated, read_held_out
from tasks.queries.difficulty import RateConfig
from tasks.queries.distinct import drop_duplicates
from tasks.queries.draw import DrawConfig, subsample
from tasks.queries.sources import Source
from tasks.queries.topics import TopicsConfig


class ProblemsDraw(DrawConfig):
    """Which of the problems are used."""

    min_difficulty: int = Field(
        0, ge=0, le=7, description="Minimum number of the 7 criteria met; problems without a difficulty are kept."
    )


class ProblemsConfig(BaseModel, frozen=True, extra="forbid"):
    """Problems to evaluate on. They are used as they are, except that exact duplicates are dropped."""

    sources: tuple[Source, ...] = Field(
        min_length=1, description="Files and data sets of problems with reference answers."
    )
    draw: ProblemsDraw = Field(ProblemsDraw(), description="Which of the problems are used.")


class MineStage(BaseModel, frozen=True, extra="forbid"):
    """How queries are mined."""

    sources: tuple[Source, ...] = Field(min_length=1, description="Files and data sets of queries.")
    clean: CleanConfig = Field(CleanConfig(), description="Which queries are usable: length, language, duplicates.")
    decontaminate: DecontaminateConfig = Field(
        DecontaminateConfig(), description="Evaluation sets, and which overlap with them drops a query."
    )
    judge: str | None = Field(
        None, description=f"Model that judges difficulty and topics, needed with `rate` or `topics`: {A_MODEL}."
    )
    rate: RateConfig | None = Field(
        None, description="How difficulty is judged. If omitted, the sources' own figures are used."
    )
    topics: TopicsConfig | None = Field(
        None, description="How topics are found and assigned. If omitted, the sources' own topics are used."
    )
    draw: DrawConfig = Field(DrawConfig(), description="Which of the remaining queries are used.")
    shards: int = Field(
        1,
        ge=1,
        le=400,
        description="Number of shards that queries are cleaned and decontaminated in; each is a cached task. More than "
        "one pays with `cluster: ray`, on whose nodes they run at once.",
    )

    @model_validator(mode="after")
    def _has_a_judge(self) -> Self:
        if (self.judge is None) != (self.rate is None and self.topics is None):
            raise ValueError(
                "`judge` is needed with `rate` or `topics`, and only then: set the model, or omit all three"
            )
        return self

    def with_references(self) -> MineStage:
        """The same, with queries that have a reference answer only: without a reward model, others have no reward."""
        return self.model_copy(update={"draw": self.draw.model_copy(update={"references_only": True})})

    def without(self, problems: ProblemsConfig) -> MineStage:
        """The same, with these problems held out."""
        rule = self.decontaminate
        for source in problems.sources:
            rule = rule.without(source)
        return self.model_copy(update={"decontaminate": rule})


def distinct(
    run: Run, config: CleanConfig, sources: Sequence[Source], shards: int = 1, *, prefix: str = "", part: str = ""
) -> Ref:
    """The queries of all sources in one table, cleaned and without duplicates. A dry run reads local files only."""
    collected = [
        run.do(collect_queries, f"collected-{_slug(source)}", rehearse=source.is_local, source=source)
        for source in sources
    ]
    usable = run.do_shards(
        clean_queries, f"{prefix}cleaned{part}", shards, rehearse=True, config=config, sources=collected
    )
    return run.do(
        drop_duplicates,
        f"{prefix}distinct{part}",
        rehearse=True,
        near_duplicates=config.near_duplicates,
        queries=usable,
    )


def decontaminated(run: Run, config: DecontaminateConfig, queries: Ref, shards: int = 1, part: str = "") -> Ref:
    """The queries that overlap with no evaluation set; those that do are kept in the tables `contaminated`."""
    readable = all(source.is_local for source in config.held_out)
    held_out = run.do(read_held_out, f"held-out{part}", rehearse=readable, held_out=config.held_out)
    found = run.do_shards(
        find_contaminated,
        f"contaminated{part}",
        shards,
        rehearse=True,
        config=config,
        held_out=held_out,
        queries=queries,
    )
    return run.do(
        decontaminate,
        f"decontaminated{part}",
        expected_rows=queries.rows,
        rehearse=True,
        queries=queries,
        contaminated=found,
    )


def drawn(run: Run, step: str, config: DrawConfig, queries: Ref) -> Ref:
    """The queries that are drawn for use."""
    most = queries.rows if config.limit is None else config.limit
    return run.do(subsample, step, expected_rows=most, rehearse=True, config=config, queries=queries)


def mined(run: Run, config: MineStage, part: str = "") -> Ref:
    """All queries that may be drawn. The judge comes last, so that it is asked about as few as possible.

    `part` ends the names of the steps, for a flow that mines several sets of queries.
    """
    check_judging(config.rate, config.topics)
    queries = distinct(run, config.clean, config.sources, config.shards, part=part)
    queries = decontaminated(run, config.decontaminate, queries, config.shards, part)
    if config.judge is None:
        return queries
    judge = run.model(config.judge)
    if config.rate:
        queries = rated(run, config.rate, queries, judge)
    return tagged(run, config.topics, queries, judge) if config.topics else queries


def mine_stage(run: Run, config: MineStage) -> Ref:
    """Mine queries and draw from them: the table `queries`."""
    return drawn(run, "queries", config.draw, mined(run, config))


def problems_stage(run: Run, config: ProblemsConfig, name: str = "problems") -> Ref:
    """The problems to evaluate on: the table `problems`, or another `name`."""
    return drawn(run, name, config.draw, distinct(run, AS_THEY_ARE, config.sources, prefix=f"{name}-"))


def _slug(source: Source) -> str:
    """A source's name, fit to be part of a step's name."""
    return re.sub(r"[^\w.-]+", "-", source.name.removesuffix(".jsonl"))


# ---- the funnel


def mining_steps(store: Store, queries: Ref) -> list[Manifest]:
    """The manifests of the steps that led to a table of queries, sources first. Raises `BadArtifact`."""
    manifest = expect(store, queries)
    before = [ref for name, ref in manifest.inputs.items() if name.partition("/")[0] in ("queries", "sources")]
    earlier = {each.step + each.key: each for ref in before for each in mining_steps(store, ref)}
    return [*earlier.values(), manifest]


def mining_rows(store: Store, tables: Sequence[Ref]) -> list[dict[str, Any]]:
    """Queries read, dropped for each reason, and kept, by step. A step that several tables share is listed once, and
    the shards of a step are added up."""
    made = {each.step + each.key: each for table in tables for each in mining_steps(store, table)}
    found: dict[str, Counter[str]] = {}
    for each in made.values():
        found.setdefault(each.step, Counter()).update(each.counts)
    return [
        {"step": step, "what": what, "rows": rows} for step, counts in found.items() for what, rows in counts.items()
    ]


def publish_mining(run: Run, tables: Sequence[Ref]) -> None:
    """Publish the funnel of mining as a Prefect table artifact, unless this is a dry run."""
    if not run.dry:
        described = "Queries read, dropped for each reason, and kept by every step of mining"
        create_table_artifact(mining_rows(run.store, tables), key="bolt-mining", description=described)
