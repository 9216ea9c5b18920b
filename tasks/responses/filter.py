"""Filtering by rule (BOLT section 3.1.3): drop responses that are malformed or no LongCoT, and count the reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from cot_formats import FORMATS
from cot_formats.actions import ACTIONS
from cot_formats.responses import LongFormat
from infra.errors import BadInput
from infra.steps.step import Plan, step
from infra.store.manifest import Ref, expect
from infra.store.schemas import RESPONSES
from infra.store.store import Store
from infra.store.tables import read_rows, scan_shard, write_table
from tasks.queries.overlap import words
from tasks.responses import rules as filter_rules
from tasks.responses.queries import column_of_queries

Passages = Collection[tuple[str, ...]]
BATCH_ROWS = 1_000
SHOWN, EXCERPT = 3, 150
"""Responses in an error message, and characters at each end of one."""
ADVICE = {
    "truncated": "raise generate.max_tokens, or set generate.end_at_close if the model goes on after its solution",
    "malformed": "the model does not follow the format of the examples: set prompt.layout to `turns`, show shorter "
    "examples, lower generate.temperature, or choose another format",
    "empty part": "the model leaves a part of the format empty: set prompt.layout to `turns`, or show other examples",
    "too short": "lower filter.min_thought_tokens, or show examples with longer thoughts",
}
"""What to change if most responses were dropped for a reason."""
ALL_MISSING = "there are no queries, or each request was refused: see the log of the step `responses`"


class FilterConfig(BaseModel):
    """Which well-formed, complete responses are dropped.

    BOLT names no rule but the format, so all of these are this project's choice. Truncated and malformed responses are
    always dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_thought_tokens: int | None = Field(
        64, ge=1, description="Minimum length of the thoughts, in tokens. Null: off."
    )
    special_tokens: bool = Field(
        True, description="Drop responses that spell a control token of a known model family, such as `<|eot_id|>`."
    )
    repeated_words: int = Field(
        20, ge=2, description="Length of the passages compared in the repetition rule, in words."
    )
    max_repeated_share: float | None = Field(
        0.3,
        ge=0,
        le=1,
        description="Largest share of passages of `repeated_words` words that occurred earlier in the same part; more "
        "is a repetition loop. Null: off.",
    )
    max_foreign_share: float | None = Field(
        0.0,
        ge=0,
        le=1,
        description="Largest share of letters in scripts that the query does not use and whose languages it does not "
        "name; more is mixed language. Null: off.",
    )
    copied_words: int | None = Field(
        15, ge=1, description="A passage of this many words from an example in the prompt is a copy. Null: off."
    )
    mentions_of_thoughts: bool = Field(
        True, description="Drop solutions that refer to the thoughts, which the reader of a solution does not see."
    )
    min_actions: int | None = Field(
        None, ge=1, le=4, description="Minimum number of the four reasoning actions in the thoughts. Null: off."
    )


def reason_to_drop(
    response: dict[str, Any], query: str, shown: Sequence[Passages], config: FilterConfig, target: LongFormat
) -> str | None:
    """The first rule that drops a response, as the reason to count; None if it is kept.

    Args:
        query: the text of the response's query.
        shown: for each example in the response's prompt, all its passages of `copied_words` words.
        target: the format that the policy is trained to write. The response must be renderable in it: a solution about
            XML may spell one of its delimiters.
    """
    if response["finish_reason"] != "stop":
        return "truncated"
    if response["violations"]:
        name: str = response["violations"][0]
        return f"empty part: {name.removeprefix('empty_')}" if name.startswith("empty_") else f"malformed: {name}"
    thoughts, solution = response["thoughts"], response["solution"]
    if config.min_thought_tokens is not None and response["thought_tokens"] < config.min_thought_tokens:
        return "too short"
    if config.special_tokens and any(map(filter_rules.special_token, (thoughts, solution))):
        return "special token"
    parts = [words(part) for part in (thoughts, solution)]
    limit, length = config.max_repeated_share, config.repeated_words
    if limit is not None and any(filter_rules.repeated_share(part, length) > limit for part in parts):
        return "repetition loop"
    if config.max_foreign_share is not None:
        share = filter_rules.foreign_share(query, f"{thoughts}\n{solution}")
        if share > config.max_foreign_share:
            return "mixed language"
    if config.copied_words is not None:
        copied = config.copied_words
        if any(filter_rules.copies(part, passages, copied) for passages in shown for part in parts):
            return "copied from an example"
    if config.mentions_of_thoughts and filter_rules.mention_of_thoughts(solution):
        return "solution mentions the thoughts"
    if config.min_actions is not None:
        missing = filter_rules.missing_actions(thoughts)
        if len(ACTIONS) - len(missing) < config.min_actions:
            return "too few actions"
    try:
        FORMATS[target].render(thoughts, solution)
    except ValueError:
        return f"cannot be written as {target}"
    return None


def nothing_left(step: str, funnel: Mapping[str, int], dropped: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The message of a step that keeps no response: why each was dropped, some of them, and what to change.

    Args:
        dropped: some of the responses, each with the reason why it was dropped.
    """
    counts = ", ".join(f"{name} {count}" for name, count in sorted(funnel.items(), key=lambda each: -each[1]))
    counts = counts or "no response was read"
    most = max((name for name in funnel if name.startswith("dropped: ")), key=lambda name: funnel[name], default="")
    advice = ADVICE.get(
        most.removeprefix("dropped: ").partition(":")[0], "relax this rule in `filter`" if dropped else ALL_MISSING
    )
    shown = "".join(
        f"\n- query {row['query_id']}, sample {row['sample']} ({reason}): {shortened(row['text'])!r}"
        for reason, row in dropped
    )
    return f"{step}: no response is left ({counts}): {advice}.{shown}"


def shortened(text: str) -> str:
    """A text's beginning and end, if it is longer than both."""
    return text if len(text) <= 2 * EXCERPT else f"{text[:EXCERPT]} [...] {text[-EXCERPT:]}"


def passages_of(example: dict[str, Any], config: FilterConfig) -> Passages:
    """All passages of `copied_words` words in an example's thoughts and solution; none if the rule is off."""
    if config.copied_words is None:
        return frozenset()
    parts = (words(example[name]) for name in ("thoughts", "solution"))
    return frozenset(passage for part in parts for passage in filter_rules.passages(part, config.copied_words))


class Filtering(NamedTuple):
    """What filtering reads besides the responses."""

    config: FilterConfig
    target: LongFormat
    texts: Mapping[str, str]
    """The queries' texts by id."""
    shown: Mapping[str, Passages]
    """The passages of each in-context example by its id."""

    @classmethod
    def read(
        cls,
        store: Store,
        config: FilterConfig,
        target: LongFormat,
        responses: Sequence[Ref],
        queries: Ref,
        examples: Ref,
        shard: int = 0,
        shards: int = 1,
    ) -> Self:
        """What the responses of a shard need; the arguments are those of `filter_responses`."""
        texts = column_of_queries(store, queries, "query", responses, shard, shards)
        shown = {row["example_id"]: passages_of(row, config) for row in read_rows(store, examples)}
        return cls(config, target, texts, shown)

    def reason(self, response: dict[str, Any]) -> str | None:
        """As `reason_to_drop`."""
        shown = [self.shown[example_id] for example_id in response["example_ids"]]
        return reason_to_drop(response, self.texts[response["query_id"]], shown, self.config, self.target)


@step(one_by_one=True)
def filter_responses(
    plan: Plan,
    store: Store,
    *,
    config: FilterConfig,
    target: LongFormat,
    responses: Sequence[Ref],
    queries: Ref,
    examples: Ref,
    shard: int = 0,
    shards: int = 1,
) -> Ref:
    """Write the table `filtered`: the responses of a shard that no rule drops. In `counts`, read = dropped + kept.

    `target`: the format that the policy is trained to write.
    """
    funnel = Counter[str]()
    given = Filtering.read(store, config, target, responses, queries, examples, shard, shards)

    def kept() -> Iterator[list[dict[str, Any]]]:
        for batch in scan_shard(store, responses, shard, shards, batch_rows=BATCH_ROWS):
            rows = batch.to_pylist()
            reasons = [given.reason(row) for row in rows]
            funnel["read"] += len(rows)
            funnel.update(f"dropped: {reason}" if reason else "kept" for reason in reasons)
            yield [row for row, reason in zip(rows, reasons, strict=True) if reason is None]

    return write_table(store, plan.step, plan.key, RESPONSES, kept(), plan.provenance, counts=lambda: dict(funnel))


def check_kept(store: Store, filtered: Sequence[Ref], *, responses: Sequence[Ref], **arguments: Any) -> None:
    """Refuse to go on without any response, given all shards of `filter_responses` and its other arguments.

    Raises:
        BadInput: no response was kept; the message has the funnel and the first responses that were dropped.
    """
    if any(table.rows for table in filtered):
        return
    funnel = sum((Counter(expect(store, table).counts) for table in filtered), Counter[str]())
    given = Filtering.read(store, responses=responses, **arguments)
    first = islice(chain.from_iterable(read_rows(store, table) for table in responses), SHOWN)
    raise BadInput(nothing_left(filtered[0].step, funnel, [(given.reason(row) or "", row) for row in first]))
