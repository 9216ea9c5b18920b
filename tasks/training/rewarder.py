"""Rewards samples from inside a trainer, with the composition of `tasks/rewards/score.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq

from cot_formats.responses import parse_response
from infra.errors import BadInput
from infra.serving.completions import CompletionError, classify
from infra.text.chat import count_tokens, load_tokenizer
from tasks.rewards.score import reward_input_ids, score_row
from tasks.rewards.verify import CALLS, neutral_rewards, verifier
from tasks.training.on_policy_config import Rewarding


class RewardError(RuntimeError):
    """Samples cannot be rewarded, or their rewards teach nothing."""


@dataclass(frozen=True)
class Rewarder:
    """Turns sampled token ids into rows with a reward."""

    how: Rewarding
    tokenizer: Any
    """The policy's."""
    reward_tokenizer: Any
    stops: set[int]
    """Tokens that end a sample."""
    queries: Mapping[str, str]
    references: Mapping[str, str]
    verify: Any

    @classmethod
    @contextmanager
    def of(cls, how: Rewarding, data: Sequence[Path], tokenizer: Any, stops: set[int]) -> Iterator[Self]:
        """A rewarder, with the process that compares answers. `data`: the files of the queries."""
        columns = ["query_id", "query", "reference"]
        rows = [row for part in data for row in pq.read_table(part, columns=columns).to_pylist()]
        queries = {row["query_id"]: row["query"] for row in rows}
        given = {row["query_id"]: row["reference"] for row in rows if row["reference"] is not None}
        with verifier(how.score.verifier) as verify:
            reads = load_tokenizer(how.tokenizer) if how.tokenizer else None
            references = given if how.score.verified_weight else {}
            yield cls(how, tokenizer, reads, stops, queries, references, verify)

    def rows(self, query_ids: Sequence[str], samples: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """A row for each sample, with its text, its parts, and its `reward`; None if it has no solution, or one that
        the reward model cannot read.

        A row whose answer was compared with a reference has `verified`, which is None if the verifier had no verdict.

        Raises:
            RewardError: the reward model's server fails, or returns a value that is not finite; or none of the first
                calls of the user's own verifier had a verdict.
        """
        made = [self._parsed(query_id, ids) for query_id, ids in zip(query_ids, samples, strict=True)]
        answers = list(dict.fromkeys((row["query_id"], row["solution"]) for row in made if row["solution"]))
        outcomes = self._outcomes(answers)
        known = {
            each: self.verify(each[1], self.references[each[0]]) for each in outcomes if each[0] in self.references
        }
        if self.verify.calls >= CALLS:
            try:
                self.verify.check()
            except BadInput as error:
                raise RewardError(str(error)) from error
        for row in made:
            answer = row["query_id"], row["solution"]
            row["reward"] = None
            if answer in known:
                row["verified"] = known[answer]
            if answer in outcomes:
                verified = known.get(answer)
                try:
                    scored = score_row(row, outcomes[answer], verified, self.how.reward_model, self.how.score)
                except ValueError as error:
                    raise RewardError(str(error)) from error
                row["reward"] = scored["total"]
        compared = [row for row in made if "verified" in row and row["reward"] is not None]
        neutral = neutral_rewards((row["query_id"], row["verified"], row["reward"]) for row in compared)
        for row in compared:
            if row["verified"] is None:
                row["reward"] = neutral.get(row["query_id"], row["reward"])
        return made

    def _parsed(self, query_id: str, ids: Sequence[int]) -> dict[str, Any]:
        ended = bool(ids) and ids[-1] in self.stops
        text = self.tokenizer.decode(ids[:-1] if ended else ids)
        parsed = parse_response(text, self.how.format, self.how.opened, ended=ended)
        return {
            "query_id": query_id,
            "sample": 0,
            "text": text,
            **parsed,
            "finish_reason": "stop" if ended else "length",
            "completion_tokens": len(ids),
            "thought_tokens": count_tokens(self.tokenizer, parsed["thoughts"] or ""),
            "solution_tokens": count_tokens(self.tokenizer, parsed["solution"] or ""),
        }

    def _outcomes(self, answers: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
        """The reward model's reward of each answer that it can read; 0 without a reward model."""
        how = self.how
        if how.url is None:
            return dict.fromkeys(answers, 0.0)
        assert how.served_name is not None
        ids = {each: reward_input_ids(self.reward_tokenizer, self.queries[each[0]], each[1]) for each in answers}
        fitting = {each: found for each, found in ids.items() if len(found) <= how.max_length}
        asked = classify(
            how.url, how.served_name, [*fitting.values()], max_in_flight=how.score.in_flight, alive=lambda: None
        )
        try:
            return dict(zip(fitting, asyncio.run(asked), strict=True))
        except CompletionError as error:
            raise RewardError(f"the reward model's server at {how.url}: {error}") from error
