"""Query mining (BOLT section 3.1.2): collect, clean, decontaminate, judge, draw. Every step maps queries to queries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Self

from prefect.artifacts import create_table_artifact
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.stages.labelling import check_judging, rated, tagged
from flows.stages.run import A_MODEL, Run
from infra.store.manifest import Manifest, Ref, expect
from infra.store.store import Store
from tasks.queries.clean import AS_THEY_ARE, CleanConfig, clean_queries
from tasks.queries.collect import collect_queries
from tasks.queries.decontaminate import DecontaminateConfig, decontaminate, find_contaminated
from tasks.queries.difficulty import RateConfig
from tasks.queries.draw import DrawConfig, subsample
from tasks.queries.sources import Source
from tasks.queries.topics import TopicsConfig


class ProblemsConfig(BaseModel):
    """Problems to evaluate on: taken as they are, but for exact duplicates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[Source, ...] = Field(min_length=1, description="Files and data sets of problems with references.")
    draw: DrawConfig = Field(DrawConfig(min_difficulty=0), description="Which of them are used.")


class MineStage(BaseModel):
    """How queries are mined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[Source, ...] = Field(min_length=1, description="Files and data sets of queries.")
    clean: CleanConfig = Field(CleanConfig(), description="Which queries can be asked at all; no duplicates.")
    decontaminate: DecontaminateConfig = Field(
        DecontaminateConfig(), description="What no query may have in common with evaluation sets."
    )
    judge: str | None = Field(None, description=f"Model that judges, where `rate` or `topics` is given: {A_MODEL}.")
    rate: RateConfig | None = Field(None, description="How difficulty is judged; none takes what the sources state.")
    topics: TopicsConfig | None = Field(None, description="How topics are found; none takes what the sources state.")
    draw: DrawConfig = Field(DrawConfig(), description="Which of the queries left are used.")

    @model_validator(mode="after")
    def _has_a_judge(self) -> Self:
        if (self.judge is None) != (self.rate is None and self.topics is None):
            raise ValueError("`judge` goes with `rate`, `topics` or both: give the model, or leave all three out")
        return self

    def without(self, problems: ProblemsConfig) -> MineStage:
        """The same, mining none of the problems."""
        rule = self.decontaminate
        for source in problems.sources:
            rule = rule.without(source)
        return self.model_copy(update={"decontaminate": rule})


def collected(run: Run, sources: Sequence[Source]) -> list[Ref]:
    """The queries of each source. Files elsewhere and data sets are not read in a dry run."""
    return [
        run.do(collect_queries, f"collected-{_slug(source)}", rehearse=source.is_local, source=source)
        for source in sources
    ]


def cleaned(run: Run, step: str, config: CleanConfig, sources: Sequence[Ref]) -> Ref:
    """The queries of all sources in one table, cleaned, without duplicates."""
    return run.do(clean_queries, step, rehearse=True, config=config, sources=sources)


def decontaminated(run: Run, config: DecontaminateConfig, queries: Ref) -> Ref:
    """The queries that are no problem of an evaluation set; those that are have a table of their own."""
    readable = all(source.is_local for source in config.held_out)
    found = run.do(find_contaminated, "contaminated", rehearse=readable, config=config, queries=queries)
    return run.do(
        decontaminate,
        "decontaminated",
        expected_rows=queries.rows,
        rehearse=True,
        queries=queries,
        contaminated=found,
    )


def drawn(run: Run, step: str, config: DrawConfig, queries: Ref) -> Ref:
    """The queries that are used."""
    most = queries.rows if config.limit is None else config.limit
    return run.do(subsample, step, expected_rows=most, rehearse=True, config=config, queries=queries)


def mined(run: Run, config: MineStage) -> Ref:
    """All queries that may be used: what every draw draws from. A judge is asked last, about as few as can be."""
    check_judging(config.rate, config.topics)
    queries = cleaned(run, "cleaned", config.clean, collected(run, config.sources))
    queries = decontaminated(run, config.decontaminate, queries)
    if config.judge is None:
        return queries
    judge = run.model(config.judge)
    if config.rate:
        queries = rated(run, config.rate, queries, judge)
    return tagged(run, config.topics, queries, judge) if config.topics else queries


def mine_stage(run: Run, config: MineStage) -> Ref:
    """The table `queries`."""
    return drawn(run, "queries", config.draw, mined(run, config))


def problems_stage(run: Run, config: ProblemsConfig) -> Ref:
    """The table `problems`."""
    return drawn(
        run, "problems", config.draw, cleaned(run, "problems-cleaned", AS_THEY_ARE, collected(run, config.sources))
    )


def _slug(source: Source) -> str:
    """A source's name as part of a step's."""
    return re.sub(r"[^\w.-]+", "-", source.name.removesuffix(".jsonl"))


# ---- what became of every query


def mining_steps(store: Store, queries: Ref) -> list[Manifest]:
    """The manifests of the steps that led to a table of queries, sources first. Raises `BadArtifact`."""
    manifest = expect(store, queries)
    before = [ref for name, ref in manifest.inputs.items() if name == "queries" or name.startswith("sources/")]
    earlier = {each.step + each.key: each for ref in before for each in mining_steps(store, ref)}
    return [*earlier.values(), manifest]


def mining_rows(store: Store, tables: Sequence[Ref]) -> list[dict[str, Any]]:
    """What every step read, dropped by each reason and kept; a step that several tables share is told once."""
    steps = {each.step + each.key: each for table in tables for each in mining_steps(store, table)}
    return [
        {"step": each.step, "what": what, "rows": rows} for each in steps.values() for what, rows in each.counts.items()
    ]


def publish_mining(run: Run, tables: Sequence[Ref]) -> None:
    """The funnel of mining as a Prefect table artifact; a dry run has none."""
    if not run.dry:
        described = "What every step of mining read, dropped by each reason, and kept"
        create_table_artifact(mining_rows(run.store, tables), key="bolt-mining", description=described)
