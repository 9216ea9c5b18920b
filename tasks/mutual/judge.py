"""A generative reward model (STILL-1): the probability that it answers "right" when it is asked about a solution.

The model is a chat model that was fine-tuned on such questions. It reads query and solution, and its probability is
that of the right answer's first token against that of the wrong answer's.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra.errors import BadInput
from infra.serving.completions import Completion, Request, Sampling
from infra.serving.ledger import Ledger
from infra.serving.pool import complete_on
from infra.serving.servers import Servers
from infra.serving.shard_ledger import places, shard_ledger
from infra.steps.progress import progress
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import JUDGED
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import load_tokenizer, prompt_text
from infra.text.templates import filled
from tasks.responses.generate import QuarantineError
from tasks.responses.perplexity import name_of, quarantine

log = logging.getLogger(__name__)

TOGETHER = 32
"""Solutions in one HTTP request: a request samples one token, so that its own cost is most of it."""
LEAST_MASS = 0.5
"""Of the first token's probability, the mean share that both answers should have together (this project's choice)."""


class JudgeConfig(BaseModel):
    """How the reward model is asked whether a solution is right."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: Path = Field(
        Path("prompts/judge_solution.md"),
        description="Text file with the question and the fields {query} and {solution} (STILL-1 publishes none).",
    )
    right: str = Field("Yes", min_length=1, description="The answer if a solution is right.")
    wrong: str = Field("No", min_length=1, description="The answer if it is wrong.")
    in_flight: int = Field(256, ge=1, description="Concurrent requests per server.")
    max_quarantined_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of solutions that the server may refuse, because they are too long, say; the step "
        "fails if there are more, but never for a single one (this project's choice).",
    )

    @model_validator(mode="after")
    def _two_answers(self) -> Self:
        if self.right.strip() == self.wrong.strip():
            raise ValueError(f"right and wrong are both {self.right!r}: the two answers must differ")
        return self

    def question(self, query: str, solution: str) -> str:
        """What the reward model is asked. Raises `BadInput` if the template lacks a field."""
        return filled(self.template, query=query, solution=solution)


def answer_tokens(tokenizer: Any, config: JudgeConfig) -> tuple[int, int]:
    """The first tokens of the answers right and wrong. Raises `BadInput` if they are the same or unknown."""
    found = []
    for name in ("right", "wrong"):
        ids = tokenizer.encode(getattr(config, name), add_special_tokens=False)
        if not ids or ids[0] == tokenizer.unk_token_id:
            raise BadInput(
                f"judge.{name}: {getattr(config, name)!r} is no word of the model's vocabulary: choose another"
            )
        found.append(int(ids[0]))
    if found[0] == found[1]:
        raise BadInput(
            f"judge.right and judge.wrong, {config.right!r} and {config.wrong!r}, begin with the same token, so that "
            "the reward model's first token does not tell them apart: choose other words"
        )
    return found[0], found[1]


def probability(log_probs: Sequence[float]) -> float:
    """p(right) / (p(right) + p(wrong)), of the log-probabilities of both."""
    right, wrong = log_probs
    return 1 / (1 + math.exp(min(wrong - right, 700.0)))


def mass(log_probs: Sequence[float]) -> float:
    """p(right) + p(wrong), of the log-probabilities of both: 1 if the model answers with nothing else."""
    return math.fsum(map(math.exp, log_probs))


def warn_of_small_mass(step: str, config: JudgeConfig, masses: Sequence[float]) -> None:
    """Warn if the model seldom begins with either answer: of two unlikely words, the likelier one says little."""
    if masses and (mean := math.fsum(masses) / len(masses)) < LEAST_MASS:
        log.warning(
            "%s: the answers %r and %r have %.2g of the probability of the reward model's first token, on average, and "
            "should have %g at least, so that its judgements may be no better than chance. Either its chat template "
            "opens thoughts, or it writes something before the answer: use a template without thoughts, set "
            "judge.right and judge.wrong to the words that it begins with, or ask for one word in judge.template",
            step,
            config.right,
            config.wrong,
            mean,
            LEAST_MASS,
        )


def judging(tokens: tuple[int, int]) -> Sampling:
    """How the reward model is asked: only the log-probabilities of its first token are wanted."""
    return Sampling(n=1, temperature=0, max_tokens=1, first_log_probs=tokens)


def request_about(tokenizer: Any, config: JudgeConfig, name: str, query: str, solution: str) -> Request:
    """The request that asks whether a solution is right."""
    text = prompt_text(tokenizer, [{"role": "user", "content": config.question(query, solution)}])
    return Request(name, tokenizer.encode(text, add_special_tokens=False), None)


@step(outside_key=("config.in_flight", "config.max_quarantined_share"), serves={"model": "policy"})
def judge(
    plan: Plan,
    store: Store,
    *,
    config: JudgeConfig,
    responses: Sequence[Ref],
    scores: Ref,
    queries: Ref,
    model: Ref | None,
    servers: Servers,
) -> Ref:
    """Write the table `judged`: each response whose answer was verified, with its probability of being right.

    Responses that were cut off are left out: they are no wrong solutions. `counts` has their number, and the mean
    `mass` of both answers.

    Args:
        scores: with the column `verified`.
        model: the generative reward model; without one, probabilities are null.

    Raises:
        BadInput: as `answer_tokens`, or the template lacks a field.
        QuarantineError: the server refused too many solutions; the ledger keeps what was judged.
        infra.serving.vllm_server.ServerError: no server is left.
    """
    named = ["query_id", "sample", "verified"]
    labels = {name_of(row): row["verified"] for row in read_rows(store, scores, named) if row["verified"] is not None}

    def own() -> Iterator[dict[str, Any]]:
        columns = ["query_id", "sample", "solution", "finish_reason"]
        rows = chain.from_iterable(read_rows(store, shard, columns) for shard in responses)
        return (row for row in rows if name_of(row) in labels)

    found: dict[str, float | None] = {}
    counts: dict[str, float] = {"right": 0, "wrong": 0, "cut off": 0, "not judged": 0}
    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:
        if model is not None:
            asked = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
            ask_all(plan.step, config, filter(is_whole, own()), asked, store, model, servers, ledger)
            found = {name: held.get("probability") for name, held in ledger.items()}
            check_quarantined(plan.step, config, ledger, places(store, ledger))
            if masses := [held["mass"] for held in ledger.values() if "mass" in held]:
                counts["mean mass"] = math.fsum(masses) / len(masses)
            warn_of_small_mass(plan.step, config, masses)

        def rows() -> Iterator[dict[str, Any]]:
            for row in own():
                name = name_of(row)
                if not is_whole(row):
                    counts["cut off"] += 1
                    continue
                counts["right" if labels[name] else "wrong"] += 1
                counts["not judged"] += found.get(name) is None
                plain = {"query_id": row["query_id"], "sample": row["sample"]}
                yield {**plain, "right": labels[name], "probability": found.get(name)}

        made = write_table(store, plan.step, plan.key, JUDGED, batched(rows()), plan.provenance, counts=lambda: counts)
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


def is_whole(response: Mapping[str, Any]) -> bool:
    """Whether a response ended by itself."""
    return bool(response["finish_reason"] == "stop")


def ask_all(
    step: str,
    config: JudgeConfig,
    rows: Iterator[dict[str, Any]],
    asked: dict[str, str],
    store: Store,
    model: Ref,
    servers: Servers,
    ledger: Ledger,
) -> None:
    """Ask about each response that the ledger lacks. `asked`: the queries by id."""
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    tokens = answer_tokens(tokenizer, config)
    owed = {name_of(row): row for row in rows if name_of(row) not in ledger}
    total = len(ledger) + len(owed)

    def request_for(name: str) -> Request:
        return request_about(tokenizer, config, name, asked[owed[name]["query_id"]], owed[name]["solution"])

    def keep(request: Request, completions: list[Completion]) -> None:
        log_probs = completions[0].first_log_probs
        ledger.append(request.request_id, {"probability": probability(log_probs), "mass": mass(log_probs)})

    if owed:
        asking = complete_on(
            servers.policies(model),
            [list(owed)],
            request_for,
            judging(tokens),
            max_in_flight=config.in_flight,
            together=TOGETHER,
            on_result=keep,
            on_quarantine=partial(quarantine, step, ledger),
        )
        with progress(step, lambda: len(ledger), total, "solutions"):
            asyncio.run(asking)


def check_quarantined(step: str, config: JudgeConfig, ledger: Ledger, where: str) -> None:
    """Raise `QuarantineError` if more solutions than `max_quarantined_share` were refused; a single one may be."""
    reasons = {name: held["quarantined"] for name, held in ledger.items() if "quarantined" in held}
    if len(reasons) > max(1, config.max_quarantined_share * len(ledger)):
        first, reason = next(iter(reasons.items()))
        raise QuarantineError(
            f"{step}: {len(reasons)} of {len(ledger)} solutions were not judged, limit "
            f"{config.max_quarantined_share:.1%}; the first is {first}: it {reason}; remove the cause "
            "(if they are too long, raise serving.policy.max_model_len), or raise judge.max_quarantined_share to "
            f"continue without them (delete {where} to send them again)"
        )
