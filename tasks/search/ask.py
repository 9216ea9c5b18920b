"""What searches ask for, as requests to the servers: steps and solutions of the policy, rewards of the reward model.

Every answer goes into a ledger under the name of its problem, its turn and its place in the turn. A search that is
begun again asks for the same, and finds it there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from cot_formats.steps import Steps
from infra.processes.limited import NoResult
from infra.serving.completions import Completion, Request, Sampling
from infra.serving.ledger import Ledger
from infra.serving.stream import Stream
from infra.text.chat import prompt_text
from tasks.responses.generate import QuarantineError, TruncationError, request_seed
from tasks.search.calculator import begun
from tasks.search.tree import Ask, NextSteps, Result, Sampled, Score, Solve, Tree

log = logging.getLogger(__name__)
STEPS_TOGETHER = 8
"""Requests for steps or solutions in one HTTP request, if they have no seeds."""
MANY = 20
"""Steps of which at least one is expected to end with the delimiter."""
MOST_PIECES = 16
"""Times that a sample is gone on from, after a correction or a delimiter without a step, before it is given up."""

Scoring: TypeAlias = Callable[[str, Mapping[str, str], Callable[[str, dict[str, Any]], None]], Awaitable[None]]
"""Scores texts by name ("QUERY_ID/TURN/PLACE"), and passes name and record of each on; the first argument names those
who ask."""
Scorer: TypeAlias = AbstractAsyncContextManager[Scoring]
"""Open while a search runs."""


class SearchSampling(BaseModel):
    """How steps and solutions are sampled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(1.0, gt=0, description="Sampling temperature.")
    top_p: float = Field(1.0, gt=0, le=1, description="Probability mass of nucleus sampling.")
    step_tokens: int = Field(256, ge=1, description="Maximum length of a step, in tokens.")
    solution_tokens: int = Field(
        2048,
        ge=1,
        description="Maximum number of tokens sampled to finish a solution; one that is cut off there is discarded.",
    )
    in_flight: int = Field(256, ge=1, description="Concurrent requests per server, of policy and reward model.")
    calculator: bool = Field(
        False,
        description="Compute the marked calculations in steps and solutions, such as `<<48/2=24>>`. The text is cut "
        "off after the first wrong one, its value is corrected, and the policy goes on from there.",
    )
    seed: int = Field(0, description="Seed of sampling.")
    request_seeds: bool = Field(
        True,
        description="Give each request its own seed; set to false if the engine cannot take one (on CPU). Without, a "
        "search that resumes after a kill may draw duplicates of samples that it already has.",
    )
    max_refused_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of requests that the servers may refuse, because they are too long, say; the step "
        "fails if there are more (this project's choice).",
    )
    max_truncated_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest share of solutions that may be cut off at `solution_tokens`; the step fails if there are "
        "more. They are discarded, so that they cost tokens and do no other harm (this project's choice).",
    )


class Wish(NamedTuple):
    """One request of a search."""

    query_id: str
    ask: Ask
    tree: Tree
    rest: str = ""
    """What has been sampled after the node already."""

    @property
    def node(self) -> int:
        """The node that is continued. A score has none."""
        assert not isinstance(self.ask, Score)
        return self.ask.node

    @property
    def text(self) -> str:
        """What is continued."""
        return self.tree.text(self.node) + self.rest


@dataclass
class Asker:
    """Sends the wishes of searches, and keeps the answers. Several may ask at the same time, in one event loop."""

    step: str
    sampling: SearchSampling
    format: Steps
    queries: Mapping[str, str]
    """The problems' texts by id."""
    policy: Any
    """The policy's tokenizer."""
    stream: Stream
    """To the policy's servers."""
    score: Scoring | None
    """How solutions are scored; None if they are not."""
    ledger: Ledger
    calculator: Callable[[str], Any] | None = None
    """`tasks.search.calculator.corrected`, in a process with limits; None if calculations are not checked."""
    counts: Counter[str] = field(default_factory=Counter)
    _first: str = ""
    _refused: set[str] = field(default_factory=set)

    async def answers(self, wishes: Mapping[str, Wish]) -> dict[str, Result]:
        """The results of all wishes by name; those that the ledger has are not asked again."""
        owed = {name: wish for name, wish in wishes.items() if name not in self.ledger}
        await asyncio.gather(self._sample_all(owed), self._score_all(owed))
        await self._go_on(wishes)
        results = {name: self._result(name) for name in wishes}
        self._count(wishes, results)
        return results

    async def _sample_all(self, wishes: Mapping[str, Wish]) -> None:
        """Sample for the wishes that need it, in batches of equal parameters."""
        batches: defaultdict[tuple[bool, int], dict[str, Wish]] = defaultdict(dict)
        for name, wish in wishes.items():
            if not isinstance(wish.ask, Score):
                batches[isinstance(wish.ask, NextSteps), wish.ask.count][name] = wish
        asking = (self._sample(batch, count, stepwise=stepwise) for (stepwise, count), batch in batches.items())
        await asyncio.gather(*asking)

    async def _score_all(self, wishes: Mapping[str, Wish]) -> None:
        """Score the solutions of the wishes that are scores."""
        texts = {name: wish.ask.text for name, wish in wishes.items() if isinstance(wish.ask, Score)}
        if texts:
            assert self.score is not None
            await self.score(next(iter(wishes.values())).query_id, texts, self.ledger.append)

    async def _go_on(self, wishes: Mapping[str, Wish]) -> None:
        """Sample what follows delimiters without a step, and the rest of solutions that the calculator has cut off,
        each under the name of its sample and its place in it. After `MOST_PIECES` times a sample is given up."""
        going = {name: wish for name, wish in wishes.items() if not isinstance(wish.ask, Score)}
        for _ in range(MOST_PIECES):
            going = {
                f"{name}+{place}": wish._replace(ask=replace(wish.ask, count=1), rest=wish.rest + each["text"])
                for name, wish in going.items()
                if not isinstance(wish.ask, Score)
                for place, each in enumerate(self.ledger[name].get("samples", ()))
                if "blank" in each or ("corrected" in each and isinstance(wish.ask, Solve))
            }
            if not going:
                return
            await self._sample_all({name: wish for name, wish in going.items() if name not in self.ledger})

    def _result(self, name: str) -> Result:
        """The result that the ledger holds. A solution goes on where the calculator has cut it off; one that becomes
        longer than `solution_tokens` by that is not whole. A delimiter without a step belongs to the step after it."""
        record = self.ledger[name]
        if "samples" not in record:
            reward = record.get("reward")
            return float(reward) if reward is not None else None
        found = []
        for place, each in enumerate(record["samples"]):
            sample = Sampled("" if "blank" in each else each["text"], each["tokens"], each["ended"])
            rest = self._result(then) if (then := f"{name}+{place}") in self.ledger else None
            for more in rest if isinstance(rest, list) else ():
                tokens = sample.tokens + more.tokens
                whole = more.ended and ("blank" in each or tokens <= self.sampling.solution_tokens)
                sample = Sampled(each["text"] + more.text if more.text else sample.text, tokens, whole)
            found.append(sample)
        return found

    def _records(self, name: str) -> Iterator[Mapping[str, Any]]:
        """What the ledger holds of a wish, and of the continuations of its samples."""
        record = self.ledger[name]
        yield record
        for place, _ in enumerate(record.get("samples", ())):
            if (then := f"{name}+{place}") in self.ledger:
                yield from self._records(then)

    def _count(self, wishes: Mapping[str, Wish], results: Mapping[str, Result]) -> None:
        """Count what was refused, cut off and corrected.

        Raises `QuarantineError` once most requests of most problems are refused. The limit on their share is for the
        end: the first problems to end are those that are refused.
        """
        for name, wish in wishes.items():
            if isinstance(found := results[name], list):
                whole = sum(each.ended for each in found)  # a next step may end its solution
                cut = len(found) - whole if isinstance(wish.ask, Solve) else 0
                self.counts["solutions sampled"] += whole + cut
                self.counts["cut at solution_tokens"] += cut
            for record in self._records(name):
                self.counts["requests"] += 1
                if "quarantined" in record:
                    self.counts["refused"] += 1
                    self._refused.add(wish.query_id)
                    self._first = self._first or f"{name}: it {record['quarantined']}"
                samples = record.get("samples", ())
                self.counts["calculations corrected"] += sum("corrected" in each or "fixed" in each for each in samples)
                if isinstance(wish.ask, NextSteps):
                    steps = [each for each in samples if "blank" not in each]
                    self.counts["steps sampled"] += len(steps)
                    self.counts["steps ended by the delimiter"] += sum(self._delimited(each) for each in steps)
                    pieces = ("cut" in each and "corrected" not in each for each in steps)
                    self.counts["cut at step_tokens"] += sum(pieces)
        if 2 * self.counts["refused"] > self.counts["requests"] and 2 * len(self._refused) > len(self.queries):
            self.check_refusals()

    def check_refusals(self) -> None:
        """Raise `QuarantineError` if too large a share of the requests was refused."""
        if self.counts["refused"] > max(1, self.sampling.max_refused_share * self.counts["requests"]):
            raise QuarantineError(
                f"{self.step}: {self.counts['refused']} of {self.counts['requests']} requests were refused, limit "
                f"{self.sampling.max_refused_share:.1%}; the first is {self._first}; remove the cause (if they are too "
                "long, raise serving.policy.max_model_len or serving.reward.max_model_len, or lower "
                "sampling.solution_tokens), or raise sampling.max_refused_share"
            )

    def check_cut_off(self) -> None:
        """Raise `TruncationError` if too large a share of the solutions was cut off. One may be."""
        cut, sampled = self.counts["cut at solution_tokens"], self.counts["solutions sampled"]
        if cut > max(1, self.sampling.max_truncated_share * sampled):
            raise TruncationError(
                f"{self.step}: {cut} of {sampled} solutions ({cut / sampled:.1%}) were cut off at "
                f"sampling.solution_tokens={self.sampling.solution_tokens}, limit "
                f"{self.sampling.max_truncated_share:.1%}: raise sampling.solution_tokens, use a policy that ends its "
                "solutions, or raise sampling.max_truncated_share"
            )

    def _delimited(self, sample: Mapping[str, Any]) -> bool:
        return bool(sample["text"].endswith(self.format.delimiter))

    def warn_without_steps(self) -> None:
        """Warn if none of many steps ended with the delimiter: then each is a whole solution, or a piece of one."""
        sampled = self.counts["steps sampled"]
        if sampled >= MANY and not self.counts["steps ended by the delimiter"]:
            log.warning(
                "%s: none of %d steps ended with %r, so that there was little to search: set steps.delimiter to what "
                "ends a step in the policy's solutions, or use a policy that writes in steps",
                self.step,
                sampled,
                self.format.delimiter,
            )

    async def _sample(self, wishes: Mapping[str, Wish], count: int, *, stepwise: bool) -> None:
        """Sample `count` texts for each wish, up to the end of a step or of the solution."""
        limits = self.sampling
        sampling = Sampling(
            n=count,
            temperature=limits.temperature,
            top_p=limits.top_p,
            max_tokens=limits.step_tokens if stepwise else limits.solution_tokens,
            stop=(self.format.delimiter,) if stepwise else (),
        )

        def request_for(name: str) -> Request:
            wish = wishes[name]
            prompt = prompt_text(self.policy, [{"role": "user", "content": self.queries[wish.query_id]}])
            text = prompt + wish.text
            seed = request_seed(limits.seed, name) if limits.request_seeds else None
            return Request(name, self.policy.encode(text, add_special_tokens=False), seed)

        def keep(request: Request, completions: list[Completion]) -> None:
            before = begun(wishes[request.request_id].text) if self.calculator else ""
            samples = [self._sample_of(each, before, stepwise=stepwise) for each in completions]
            self.ledger.append(request.request_id, {"samples": samples})

        def refused(request: Request, reason: str) -> None:
            log.warning("%s: request %s is left out: it %s", self.step, request.request_id, reason)
            self.ledger.append(request.request_id, {"quarantined": reason})

        home = next(iter(wishes.values())).query_id  # a problem's requests share a prefix, and are neighbours here
        await self.stream.ask(home, [request_for(name) for name in wishes], sampling, keep, refused)

    def _sample_of(self, completion: Completion, before: str, *, stepwise: bool) -> dict[str, Any]:
        """What the ledger keeps of a sample. `before`: a calculation that was begun before it."""
        text, ended = completion.text, completion.finish_reason == "stop"
        blank = False
        if stepwise:  # the delimiter ends a step, and only the answer or an end token the solution
            cut = text.endswith(self.format.delimiter)
            blank = ended and cut and not self.format.bare(text)  # nothing but a delimiter is no step
            ended = ended and (not cut or self.format.states_answer(text))
        found = {"text": text, "tokens": completion.tokens, "ended": ended}
        if blank:
            found["blank"] = True
        if completion.finish_reason != "stop":
            found["cut"] = True
        return found | self._corrections(text, before)

    def _corrections(self, text: str, before: str) -> dict[str, Any]:
        """What changes in a sample by the calculator. The policy goes on after a corrected value, unless only the end
        of the step followed it."""
        if self.calculator is None or ">>" not in text:
            return {}
        found = self.calculator(before + text)
        if isinstance(found, NoResult):
            log.warning(
                "%s: a calculation is left as it is: the calculator gave no result (%s)", self.step, found.reason
            )
            return {}
        if found is None or not found[0].startswith(before):
            return {}
        fixed, rest = found[0].removeprefix(before), found[1]
        if not self.format.bare(rest):
            return {"text": fixed + rest, "fixed": True}
        return {"text": fixed, "ended": False, "corrected": True}


def named(query_id: str, turn: int, asks: Sequence[Ask]) -> list[str]:
    """The names of a turn's wishes."""
    return [f"{query_id}/{turn}/{place}" for place in range(len(asks))]
