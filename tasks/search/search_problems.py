"""Search a shard of problems, all trees at once.

A tree waits for no other tree's requests, unless they travel together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

from infra.errors import BadInput
from infra.processes.limited import Limited
from infra.serving.servers import Servers
from infra.serving.shard_ledger import shard_ledger
from infra.serving.stream import streaming
from infra.steps.progress import progress
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import SEARCHED
from infra.store.store import Store
from infra.store.tables import batched, write_table
from infra.text.chat import load_tokenizer
from tasks.mutual.adapt import StepFormat
from tasks.mutual.judge import JudgeConfig, warn_of_small_mass
from tasks.responses.generate import shard_of
from tasks.rewards.verify import Verifier
from tasks.search.ask import STEPS_TOGETHER, Asker, Scorer, SearchSampling, Wish, named
from tasks.search.calculator import MEMORY_BYTES, TIMEOUT_S
from tasks.search.reading import GRADERS, Reader
from tasks.search.scoring import discriminative, generative
from tasks.search.strategies import SearchConfig, search
from tasks.search.tree import Ask, Result, Search, Solution, Tree
from tasks.search.vote import is_decided


class Problem:
    """A problem that is being searched."""

    def __init__(self, query_id: str, config: SearchConfig, *, scored: bool) -> None:
        self.query_id, self.config, self.tree = query_id, config, Tree()
        self.answers: list[str | None] = []
        """What each of the tree's solutions answers, as far as they have been read."""
        self._aside: set[str] = set()  # answers that a grader hangs on
        self.turn = 0
        self._search: Search = search(self.tree, config, scored=scored)
        self.asks: list[Ask] | None = next(self._search, None)

    @property
    def wishes(self) -> dict[str, Wish]:
        """What it asks for in this turn, by name."""
        names = named(self.query_id, self.turn, self.asks or [])
        return {name: Wish(self.query_id, ask, self.tree) for name, ask in zip(names, self.asks or [], strict=True)}

    async def go_on(self, results: list[Result], reader: Reader | None) -> None:
        """Take the results of a turn, and ask for what is needed next. Answers are read if they can end the search."""
        self.turn += 1
        try:
            self.asks = self._search.send(results)
        except StopIteration:
            self.asks = None
        if self.config.agree is not None:
            await self.read_answers(reader)
        if is_decided([each.reward for each in self.tree.solutions], self.answers, self.config):
            self.asks = None
            self._search.close()

    async def read_answers(self, reader: Reader | None) -> None:
        """Read the answers of new solutions. `reader`: None if answers are not read."""
        for place, each in enumerate(self.tree.solutions[len(self.answers) :], len(self.answers)):
            given = (f"{self.query_id}/answer-{place}", each.text, self.answers, self._aside)
            self.answers.append(await reader.read(*given) if reader else None)


@step(
    outside_key=(
        *("sampling.in_flight", "sampling.max_refused_share", "sampling.max_truncated_share"),
        *("judge.in_flight", "judge.max_quarantined_share"),
    ),
    serves={"policy": "policy", "reward_model": "reward"},
)
def search_problems(
    plan: Plan,
    store: Store,
    *,
    config: SearchConfig,
    sampling: SearchSampling,
    format: StepFormat,
    judge: JudgeConfig | None,
    verifier: Verifier | None,
    queries: Ref,
    policy: Ref,
    reward_model: Ref | None,
    servers: Servers,
    shard: int = 0,
    shards: int = 1,
) -> Ref:
    """Write the table `searched`: every node and every solution of each problem's tree.

    Every finished request is in the shard's ledger: a search that was killed asks none of them again.

    Args:
        judge: how a generative reward model is asked; None for a sequence classifier.
        reward_model: scores finished solutions; None only with strategy `sampling`, whose solutions have no reward
            then.
        verifier: reads the answer of a solution, for votes and `config.agree`; None: answers are not read.

    Raises:
        BadInput: the strategy needs a reward model, and there is none.
        tasks.responses.generate.QuarantineError: the servers refused too many requests; the ledger keeps the others.
        tasks.responses.generate.TruncationError: too many solutions were cut off; the ledger keeps all.
        infra.serving.vllm_server.ServerError: no server is left.
    """
    scored = reward_model is not None
    if not scored and (config.strategy != "sampling" or config.patience is not None):
        needs = f"strategy {config.strategy}" if config.strategy != "sampling" else "patience"
        raise BadInput(
            f"{plan.step}: {needs} needs a reward model: name one, or use strategy sampling without patience"
        )
    asked = {row["query_id"]: row["query"] for row in shard_of(store, queries, shard, shards)}
    tokenizer = load_tokenizer(fetch_model(store, policy, servers.work_dir))
    problems = [Problem(query_id, config, scored=scored) for query_id in asked]
    with (
        shard_ledger(store, servers.work_dir, plan.step, plan.key) as ledger,
        ExitStack() as opened,
        Limited("tasks.search.calculator:corrected", timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES) as calculator,
    ):
        reader = None
        if verifier:
            name = f"evals.graders:{verifier.replace('-', '_')}"
            reader = Reader([opened.enter_context(Limited(name)) for _ in range(GRADERS)], ledger)
        scorer: Scorer | nullcontext[None] = nullcontext()
        if reward_model is not None:
            given = (asked, store, reward_model, servers, sampling.in_flight)
            scorer = generative(plan.step, judge, *given) if judge else discriminative(*given)
        pool, computes = servers.policies(policy), calculator if sampling.calculator else None
        together = 1 if sampling.request_seeds else STEPS_TOGETHER

        async def searched() -> Asker:
            async with streaming(pool, max_in_flight=sampling.in_flight, together=together) as stream, scorer as score:
                asker = Asker(plan.step, sampling, format.steps, asked, tokenizer, stream, score, ledger, computes)
                await search_all(problems, asker, reader, together)
            return asker

        with progress(plan.step, lambda: sum(not each.asks for each in problems), len(problems), "problems"):
            asker = asyncio.run(searched())
        asker.check_refusals()
        asker.check_cut_off()
        asker.warn_without_steps()
        if judge:
            warn_of_small_mass(plan.step, judge, [held["mass"] for _, held in ledger.items() if "mass" in held])
        counts = {
            "problems": len(problems),
            "without a solution": sum(not each.tree.solutions for each in problems),
            "solutions": sum(len(each.tree.solutions) for each in problems),
            "steps": sum(len(each.tree.nodes) - 1 for each in problems),
            "completion_tokens": sum(each.tree.tokens for each in problems),
            **asker.counts,
        }
        rows = (row for each in problems for row in tree_rows(each))
        made = write_table(store, plan.step, plan.key, SEARCHED, batched(rows), plan.provenance, counts=counts)
        ledger.path.unlink(missing_ok=True)  # the table holds it all now
    return made


async def search_all(problems: Sequence[Problem], asker: Asker, reader: Reader | None, together: int) -> None:
    """Search all problems at once, `together` of them in step, so that their requests can travel together.

    The first error ends all.
    """

    async def in_step(own: list[Problem]) -> None:
        active = own
        while active:
            results = await asker.answers({name: wish for each in active for name, wish in each.wishes.items()})
            for each in active:
                await each.go_on([results[name] for name in named(each.query_id, each.turn, each.asks or [])], reader)
            active = [each for each in active if each.asks]
        for each in own:
            await each.read_answers(reader)

    asking = [each for each in problems if each.asks]
    try:
        async with asyncio.TaskGroup() as group:
            for begin in range(0, len(asking), together):
                group.create_task(in_step(asking[begin : begin + together]))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def tree_rows(problem: Problem) -> Iterator[dict[str, Any]]:
    """The rows of `searched` of one problem: its nodes, then its solutions, which follow them in number."""
    tree = problem.tree
    for node in tree.nodes:
        yield {
            "query_id": problem.query_id,
            "node": node.number,
            "parent": node.parent,
            "text": node.text,
            "tokens": tree.tokens if node.parent is None else node.tokens,
            "visits": node.visits,
            "value": node.value,
            "solution": False,
            "reward": None,
            "answer": None,
        }
    for place, solution in enumerate(tree.solutions):
        yield solution_row(problem, place, solution)


def solution_row(problem: Problem, place: int, solution: Solution) -> dict[str, Any]:
    """The row of a solution: `text` is what follows its node."""
    return {
        "query_id": problem.query_id,
        "node": len(problem.tree.nodes) + place,
        "parent": solution.node,
        "text": solution.rest,
        "tokens": 0,
        "visits": 1,
        "value": solution.reward or 0.0,
        "solution": True,
        "reward": solution.reward,
        "answer": problem.answers[place],
    }
