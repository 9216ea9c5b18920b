"""Exploration (STILL-2): rollouts on hard problems, of which the right ones become training data."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from cot_formats.responses import Format, LongFormat
from flows.stages.imitation import Imitated
from flows.stages.mining import MineStage
from flows.stages.run import Run
from flows.stages.sampling import perplexities_of, sample, scored
from infra.store.manifest import Ref, expect
from tasks.exploration.gather import gather
from tasks.exploration.pick import PickConfig, pick_explored
from tasks.exploration.unsolved import unsolved
from tasks.responses.generate import GenerateConfig
from tasks.responses.perplexity import PerplexityConfig
from tasks.rewards.score import ScoreConfig
from tasks.rewards.verify import Own, Verifier


class RolloutSampling(GenerateConfig):
    """How rollouts are sampled."""

    samples: int = Field(
        4,
        ge=1,
        description="Number of rollouts per problem that are sampled at once, a wave; problems with `enough` right "
        "ones are left out of the round's next wave (this project's choice).",
    )
    max_truncated_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Largest share of rollouts cut at max_tokens; the step fails if there are more. Truncated rollouts "
        "are left out of `explored`, and the report counts them. 1: no limit, since thoughts on problems that are too "
        "hard often do not end.",
    )
    format: Format | None = Field(None, description="Leave out: it is `config.format`.")  # type: ignore[assignment]
    seed: int = Field(0, description="Seed of sampling.")


class ExploreStage(BaseModel, frozen=True, extra="forbid"):
    """Exploration: rollouts on hard problems, of which the right ones are kept."""

    problems: MineStage = Field(description="Hard problems, each with a `reference` answer.")
    rollouts: int = Field(20, ge=1, description="Maximum number of rollouts per problem and round (STILL-2: up to 20).")
    enough: int = Field(
        2,
        ge=1,
        description="Number of right rollouts after which a problem gets no more in a round (this project's choice).",
    )
    generate: RolloutSampling = Field(RolloutSampling(), description="How rollouts are sampled.")
    verifier: Verifier | Own = Field(
        "math500",
        description="How a solution is compared with the reference answer: as `score.verifier` of other flows.",
    )
    pick: PickConfig = Field(PickConfig(), description="Which of the right rollouts are learned from.")
    perplexity: PerplexityConfig = Field(PerplexityConfig(), description="How perplexity is measured, if it is used.")
    shards: int = Field(4, ge=1, le=400, description="Number of shards that the problems are split into.")

    @model_validator(mode="after")
    def _one_wave_or_more(self) -> Self:
        if self.generate.samples > self.rollouts:
            raise ValueError(
                f"generate.samples is {self.generate.samples}, but a problem gets at most {self.rollouts} rollouts: "
                "lower generate.samples, or raise rollouts"
            )
        if self.rollouts > 1 and not self.generate.temperature:
            raise ValueError(
                f"generate.temperature is 0, but the {self.rollouts} rollouts of a problem would then be the same: "
                "raise it, or set rollouts and generate.samples to 1"
            )
        return self


def explore_round(
    run: Run, config: ExploreStage, number: int, problems: Ref, format: LongFormat, policy: Ref
) -> tuple[Ref, Ref]:
    """One round's rollouts, wave by wave: the table `explored-NUMBER`, and the problems that none of them solved."""
    left, responses, scores = problems, list[Ref](), list[Ref]()
    done = 0
    found: dict[str, Any] = {"queries": problems, "shards": config.shards}
    checked = ScoreConfig(verified_weight=1.0, verifier=config.verifier)  # no reward model is asked
    while done < config.rollouts and (run.dry or left.rows):
        samples = min(config.generate.samples, config.rollouts - done)
        wave = f"round-{number}-{len(scores) + 1}"
        seed = config.generate.seed + 1000 * number + done
        draw = config.generate.model_copy(update={"samples": samples, "format": format, "seed": seed})
        responses += sample(run, f"rollouts-{wave}", draw, left, policy, shards=config.shards)
        scores.append(
            scored(run, f"scores-{wave}", checked, responses[-config.shards :], left, None, shards=config.shards)
        )
        found |= {"responses": responses, "scores": scores}
        left = run.do(unsolved, f"left-{wave}", expected_rows=problems.rows, enough=config.enough, **found)
        done += samples
    explored = run.do(gather, f"explored-{number}", expected_rows=problems.rows, **found)
    return explored, run.do(unsolved, f"unsolved-{number}", expected_rows=problems.rows, enough=1, **found)


def solved_in(run: Run, explored: Ref) -> int:
    """The number of problems that a round solved."""
    return int(expect(run.store, explored).counts["solved"])


def outcomes_of(run: Run, explored: Ref) -> str:
    """What became of a round's rollouts, in words."""
    counts = expect(run.store, explored).counts
    fates = {"right": "right", "wrong": "wrong"} | {
        f"dropped: {fate}": fate for fate in ("truncated", "malformed", "not verified")
    }
    return ", ".join(f"{counts[name]:,} {fate}" for name, fate in fates.items() if counts.get(name))


def thoughts_measured(
    run: Run, config: ExploreStage, number: int, explored: Ref, problems: Ref, format: LongFormat, policy: Ref
) -> list[Ref]:
    """The perplexity of a round's thoughts under the policy that wrote them, a table per shard."""
    name, texts = f"perplexities-{number}", [explored]
    return perplexities_of(run, name, config.perplexity, texts, problems, format, policy, shards=config.shards)


def picked(
    run: Run,
    config: ExploreStage,
    number: int,
    explored: Ref,
    problems: Ref,
    imitated: Imitated,
    perplexities: list[Ref],
    format: LongFormat,
    max_tokens: int,
) -> Ref:
    """The right rollouts of a round that are learned from, as LongCoT data. `max_tokens`: as for `pick_explored`."""
    return run.do(
        pick_explored,
        f"picked-{number}",
        expected_rows=problems.rows,
        config=config.pick,
        explored=explored,
        queries=problems,
        imitated=imitated.longcot,
        distilled=imitated.texts,
        perplexities=perplexities if config.pick.by == "perplexity" else [],
        format=format,
        max_tokens=max_tokens,
    )
