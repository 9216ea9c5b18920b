"""Imitation (STILL-2): SFT on the long-form thoughts of another model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from cot_formats.responses import Format, LongFormat
from flows.stages.mining import MineStage, mined
from flows.stages.run import Run
from flows.stages.sampling import perplexities_of
from flows.stages.summary import show_training
from infra.errors import BadInput
from infra.store.manifest import Ref, expect
from infra.training.config import SftRecipe
from tasks.imitation.choose import NO_TOPIC, ChooseConfig, check_mix, choose_imitated
from tasks.imitation.continue_thoughts import continue_thoughts
from tasks.imitation.filter import DistilledFilter, filter_distilled
from tasks.imitation.read import read_distilled
from tasks.imitation.sources import DistilledSource
from tasks.queries.clean import CleanConfig
from tasks.queries.decontaminate import DecontaminateConfig
from tasks.queries.draw import DrawConfig
from tasks.responses.generate import GenerateConfig
from tasks.responses.perplexity import PerplexityConfig
from tasks.training.sft import train_sft


class SolutionSampling(GenerateConfig):
    """How the solutions of continued texts are sampled."""

    samples: Literal[1] = Field(1, description="One solution per text.")
    temperature: float = Field(0.0, ge=0, description="Sampling temperature (this project's choice).")
    format: Format | None = Field(None, description="Leave out: it is `config.format`.")  # type: ignore[assignment]
    seed: int = Field(0, description="Seed of sampling.")
    max_truncated_share: float = Field(
        1.0, ge=0, le=1, description="Largest share of solutions cut at max_tokens; the text is then dropped."
    )


class ImitationSft(SftRecipe, frozen=True):
    """Every SFT of STILL-2."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate (STILL-2: 1e-5)")
    batch: int = Field(96, gt=0, description="Rows per optimiser step, over all ranks (STILL-2: 96)")


class ImitateStage(BaseModel, frozen=True, extra="forbid"):
    """Imitation: SFT on the long-form thoughts of another model."""

    sources: tuple[DistilledSource, ...] = Field(
        min_length=1, description="Files and data sets of queries with another model's thoughts and solutions."
    )
    clean: CleanConfig = Field(CleanConfig(), description="Which queries are usable: length, language, duplicates.")
    decontaminate: DecontaminateConfig = Field(
        DecontaminateConfig(), description="Evaluation sets, and which overlap with them drops a query."
    )
    filter: DistilledFilter = Field(DistilledFilter(), description="Rules that drop texts.")
    perplexity: PerplexityConfig = Field(PerplexityConfig(), description="How perplexity is measured.")
    choose: ChooseConfig = Field(ChooseConfig(), description="Perplexity, and the mix of domains.")
    write_solutions: SolutionSampling = Field(
        SolutionSampling(), description="How the solutions of `continued` texts are sampled."
    )
    shards: int = Field(4, ge=1, le=400, description="Number of shards in which perplexity is measured.")

    @model_validator(mode="after")
    def _somebody_knows_the_format(self) -> Self:
        if all(source.continued for source in self.sources):
            raise ValueError(
                "sources: all are `continued`, so that no model can learn the format that it is to continue them in: "
                "add a source whose texts have solutions"
            )
        return self

    @property
    def queries(self) -> MineStage:
        """How the queries of the texts are mined: all that are usable."""
        draw = DrawConfig(min_difficulty=0)
        return MineStage(sources=self.sources, clean=self.clean, decontaminate=self.decontaminate, draw=draw)


@dataclass
class Imitated:
    """What imitation made."""

    longcot: Ref
    texts: list[Ref]
    """Tables `distilled` that the data were chosen from."""
    model: Ref


def imitation_texts(run: Run, config: ImitateStage, format: LongFormat, model: Ref) -> tuple[Ref, Ref]:
    """The queries of another model's texts, mined, and the texts that no rule drops: the table `distilled-filtered`."""
    queries = mined(run, config.queries)
    topics = {row["topic"] or NO_TOPIC for row in run.rows(queries, ["topic"])}
    if topics:
        check_mix(config.choose, topics)
    distilled = run.do(
        read_distilled, "distilled", expected_rows=queries.rows, sources=config.sources, queries=queries, model=model
    )
    return queries, filtered(run, "distilled-filtered", config.filter, format, distilled)


def check_lengths(run: Run, config: ImitateStage, sft: SftRecipe, texts: Ref) -> None:
    """Refuse texts that a later step would end the run for, since they are too long for it.

    Only the tokens of thoughts and solutions are counted; prompt and delimiters come on top.

    Raises:
        BadInput: texts exceed `sft.max_length`, and `sft.overlong` is "error"; or the thoughts of too many exceed the
            server's context, and their perplexity is measured.
    """
    rows = list(run.rows(texts, ["thought_tokens", "solution_tokens"]))
    most = max((row["thought_tokens"] + row["solution_tokens"] for row in rows), default=0)
    if most > sft.max_length and sft.overlong == "error":
        raise BadInput(
            f"imitate.sources: the longest text has {most} tokens, more than sft.max_length, {sft.max_length}: raise "
            "it, set sft.overlong to drop, or set imitate.filter.max_thought_tokens"
        )
    context = run.servers.options("policy").max_model_len
    over = sum(row["thought_tokens"] > context for row in rows)
    measured = config.choose.max_perplexity_percentile < 100
    if measured and over > max(1, config.perplexity.max_quarantined_share * len(rows)):
        raise BadInput(
            f"imitate.sources: the thoughts of {over} of {len(rows)} texts have more tokens than "
            f"serving.policy.max_model_len, {context}, so that their perplexity cannot be measured: raise it, set "
            "imitate.filter.max_thought_tokens below it, or imitate.choose.max_perplexity_percentile to 100"
        )


def filtered(
    run: Run, step: str, rules: DistilledFilter, format: LongFormat, distilled: Ref, *, may_be_empty: bool = False
) -> Ref:
    """The texts that no rule drops."""
    given: dict[str, Any] = {"config": rules, "target": format, "distilled": distilled, "may_be_empty": may_be_empty}
    return run.do(filter_distilled, step, expected_rows=distilled.rows, **given)


def chosen(
    run: Run, step: str, config: ImitateStage, format: LongFormat, texts: list[Ref], perplexities: list[Ref]
) -> Ref:
    """The texts that are imitated, as LongCoT data."""
    rows, mix = sum(table.rows for table in texts), config.choose.mix
    expected = int(config.choose.share * (rows if mix is None else min(rows, sum(mix.values()))))
    given: dict[str, Any] = {"config": config.choose, "distilled": texts, "perplexities": perplexities}
    return run.do(choose_imitated, step, expected_rows=expected, format=format, **given)


def imitate_stage(
    run: Run, config: ImitateStage, sft: SftRecipe, format: LongFormat, found: Ref, model: Ref
) -> Imitated:
    """Imitate the texts `found`: choose and train; then once more, with solutions written for continued texts."""
    texts, measured = [found], list[Ref]()
    if config.choose.max_perplexity_percentile < 100:
        given = ("perplexities", config.perplexity, texts, found, format, model)
        measured = perplexities_of(run, *given, shards=config.shards)
    if any(source.continued for source in config.sources):
        whole = chosen(run, "imitated-whole", config, format, texts, measured)
        teacher = trained(run, "sft-imitated-whole", sft, whole, model)
        draw = config.write_solutions.model_copy(update={"format": format})
        written = run.do(continue_thoughts, "continued", config=draw, distilled=found, model=teacher)
        # Their thoughts have passed the test for gibberish among the others.
        rules = config.filter.model_copy(update={"max_unusual_share": None})
        texts.append(filtered(run, "continued-filtered", rules, format, written, may_be_empty=True))
        if not run.dry and not texts[-1].rows:
            funnels = [expect(run.store, table).counts for table in (written, texts[-1])]
            run.log.warning("continued: no text with a solution is left: %s, then %s", *funnels)
    longcot = chosen(run, "imitated", config, format, texts, measured)
    return Imitated(longcot, texts, trained(run, "sft-imitated", sft, longcot, model))


def trained(run: Run, step: str, config: SftRecipe, longcot: Ref, model: Ref) -> Ref:
    """A model fine-tuned on LongCoT data."""
    expected = int(longcot.rows * run.estimates.tokens_per_response * config.epochs)
    made = run.do(
        train_sft, step, expected_tokens=expected, config=config, longcot=longcot, model=model, hosts=run.hosts
    )
    show_training(run, made)
    return made
