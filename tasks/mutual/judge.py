"""A generative reward model (STILL-1): the probability that it answers "right" when it is asked about a solution.

The model is a chat model that was fine-tuned on such questions. It reads query and solution, and its probability is
that of the right answer's first token against that of the wrong answer's.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator, Sequence
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

TOGETHER = 32
"""Solutions in one HTTP request: a request samples one token, so that its own cost is most of it."""


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
        columns = ["query_id", "sample", "solution"]
        rows = chain.from_iterable(read_rows(store, shard, columns) for shard in responses)
        return (row for row in rows if name_of(row) in labels)

    found: dict[str, float | None] = {}
    counts: Counter[str] = Counter()
    with shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger:
        if model is not None:
            asked = {row["query_id"]: row["query"] for row in read_rows(store, queries, ["query_id", "query"])}
            ask_all(plan.step, config, own(), asked, store, model, servers, ledger)
            found = {name: held.get("probability") for name, held in ledger.items()}
            check_quarantined(plan.step, config, ledger, places(store, ledger))

        def rows() -> Iterator[dict[str, Any]]:
            for row in own():
                name = name_of(row)
                counts["right" if labels[name] else "wrong"] += 1
                counts["not judged"] += found.get(name) is None
                plain = {"query_id": row["query_id"], "sample": row["sample"]}
                yield {**plain, "right": labels[name], "probability": found.get(name)}

        made = write_table(
            store, plan.step, plan.key, JUDGED, batched(rows()), plan.provenance, counts=lambda: dict(counts)
        )
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


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
        ledger.append(request.request_id, {"probability": probability(completions[0].first_log_probs)})

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
