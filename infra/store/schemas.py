"""The columns of the project's tables. Columns are not nullable unless they are `_optional`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

TEXT, FLAG, REAL = pa.string(), pa.bool_(), pa.float64()
INT32, INT64 = pa.int32(), pa.int64()
TEXTS = pa.list_(pa.string())


def _optional(kind: Any) -> Any:
    return pa.field("", kind, nullable=True)


def _table(**columns: Any) -> Any:
    """The schema of a table with these columns, in this order: each a type, or an `_optional` one."""
    return pa.schema(
        kind.with_name(name) if isinstance(kind, pa.Field) else pa.field(name, kind, nullable=False)
        for name, kind in columns.items()
    )


EXAMPLES = _table(
    example_id=TEXT,
    query=TEXT,
    thoughts=TEXT,
    solution=TEXT,
    topic=TEXT,
    actions=TEXTS,
)

QUERIES = _table(
    query_id=TEXT,
    query=TEXT,
    source=TEXT,
    source_row=INT64,
    reference=_optional(TEXT),
    criteria=_optional(TEXTS),
    difficulty=_optional(INT32),
    topic=_optional(TEXT),
    step_count=_optional(INT32),
)

HELD_OUT = _table(query=TEXT, source=TEXT, source_row=INT64)

PROBLEMS = _table(
    query_id=TEXT,
    query=TEXT,
    history=TEXT,
    follow_ups=TEXTS,
    reference=_optional(TEXT),
    category=_optional(TEXT),
)
"""`history`: the turns before the query, as JSON."""

BASELINES = _table(
    query_id=TEXT,
    model=TEXT,
    text=TEXT,
)

STYLES = _table(
    query_id=TEXT,
    tokens=INT32,
    headers=INT32,
    lists=INT32,
    bold=INT32,
    baseline_tokens=INT32,
    baseline_headers=INT32,
    baseline_lists=INT32,
    baseline_bold=INT32,
)
"""The style counts of the model's solution and of the baseline's answer, for style control."""

JUDGEMENTS = _table(
    request_id=TEXT,
    answer=TEXT,
    labels=_optional(TEXTS),
    refusal=_optional(TEXT),
)
"""Labels are null if the answer was unreadable, or if the server refused the request for the reason `refusal`."""

TOPICS = _table(
    name=TEXT,
    proposals=_optional(INT32),
)

CONTAMINATED = _table(
    query_id=TEXT,
    query=TEXT,
    problem=TEXT,
    problem_set=TEXT,
    problem_row=INT64,
    sign=TEXT,
)

RESPONSES = _table(
    query_id=TEXT,
    sample=INT32,
    example_ids=TEXTS,
    seed=_optional(INT64),
    text=TEXT,
    thoughts=_optional(TEXT),
    solution=_optional(TEXT),
    violations=TEXTS,
    finish_reason=TEXT,
    prompt_tokens=INT32,
    completion_tokens=INT32,
    thought_tokens=INT32,
    solution_tokens=INT32,
)

SCORES = _table(
    query_id=TEXT,
    sample=INT32,
    reward_model=_optional(TEXT),
    reward=REAL,
    format_reward=REAL,
    verified=_optional(FLAG),
    total=REAL,
)

LONGCOT = _table(
    query_id=TEXT,
    sample=INT32,
    query=TEXT,
    thoughts=TEXT,
    solution=TEXT,
    format=TEXT,
    reward=REAL,
)
"""An SFT instance. It is rendered when a model is trained on it, with that model's chat template."""

PAIRS = _table(
    query_id=TEXT,
    iteration=INT32,
    prompt=TEXT,
    chosen=TEXT,
    rejected=TEXT,
    chosen_sample=INT32,
    rejected_sample=INT32,
    chosen_score=REAL,
    rejected_score=REAL,
    chosen_tokens=INT32,
    rejected_tokens=INT32,
)

SAMPLES = _table(
    query_id=TEXT,
    sample=INT32,
    iteration=INT32,
    prompt=TEXT,
    response=TEXT,
    ended=FLAG,
    reward=REAL,
    tokens=INT32,
)
"""A sample that a policy gradient trains on: `ended` unless it was cut at `max_tokens`. A query's samples are
neighbours."""

ROLLOUTS = _table(
    step=INT32,
    query_id=TEXT,
    text=TEXT,
    thoughts=_optional(TEXT),
    solution=_optional(TEXT),
    violations=TEXTS,
    finish_reason=TEXT,
    completion_tokens=INT32,
    thought_tokens=INT32,
    solution_tokens=INT32,
    reward=_optional(REAL),
)
"""A sample that was drawn inside a trainer, at one of its steps. Without a reward it counts as the worst so far."""

DISTILLED = _table(
    query_id=TEXT,
    sample=INT32,
    query=TEXT,
    topic=_optional(TEXT),
    source=TEXT,
    source_row=INT64,
    thoughts=_optional(TEXT),
    solution=_optional(TEXT),
    violations=TEXTS,
    continued=FLAG,
    thought_tokens=INT32,
    solution_tokens=INT32,
)
"""A long-form text of another model. `continued`: it has no solution, which a trained model is to write."""

EXPLORED = _table(
    query_id=TEXT,
    sample=INT32,
    thoughts=TEXT,
    solution=TEXT,
    thought_tokens=INT32,
    solution_tokens=INT32,
    correct=FLAG,
)
"""A well-formed rollout, right or wrong. Samples are numbered over all waves of a round."""

PERPLEXITIES = _table(
    query_id=TEXT,
    sample=INT32,
    tokens=INT32,
    perplexity=REAL,
)
"""The perplexity of a response's thoughts, which are as many `tokens`."""

JUDGED = _table(
    query_id=TEXT,
    sample=INT32,
    right=FLAG,
    probability=_optional(REAL),
)
"""A solution whose answer is known to be right or wrong, and the probability of being right that a generative reward
model gives it; null without such a model, or if it could not read the solution."""

SEARCHED = _table(
    query_id=TEXT,
    node=INT32,
    parent=_optional(INT32),
    text=TEXT,
    tokens=INT32,
    visits=INT32,
    value=REAL,
    solution=FLAG,
    reward=_optional(REAL),
    answer=_optional(TEXT),
)
"""A node of a problem's search tree, or a finished solution. A node's `text` is one step; a solution's is what follows
its `parent`. Of the root, `tokens` are all that were sampled for the problem, and `parent` is null. `visits` and
`value` are the number and the mean reward of the solutions through a node."""

CALIBRATION = _table(
    low=REAL,
    high=REAL,
    solutions=INT32,
    probability=REAL,
    right=REAL,
)
"""Solutions judged to be right with a probability from `low` to `high`: their number, the mean probability, and the
share of right ones."""

GRADES = _table(
    problem_id=TEXT,
    sample=INT32,
    prediction=_optional(TEXT),
    correct=FLAG,
    parts=_optional(INT32),
    correct_parts=_optional(INT32),
    thought_tokens=INT32,
    solution_tokens=INT32,
    truncated=FLAG,
    malformed=FLAG,
)

GUARDS = _table(
    guard=TEXT,
    value=_optional(REAL),
    baseline=_optional(REAL),
    compared=_optional(REAL),
    limit=_optional(REAL),
    tripped=FLAG,
    setting=_optional(TEXT),
)
"""`value` is the policy's figure, `baseline` pi_0's. `compared` is what `limit` bounds: a share itself, a ratio of
lengths, by how much an accuracy fell at least. `setting`: the parameter that holds the limit."""

VERDICTS = _table(
    query_id=TEXT,
    sample=INT32,
    part=TEXT,
    answer=TEXT,
    label=_optional(TEXT),
    score=_optional(REAL),
    asks=INT32,
    prompt_tokens=INT32,
    completion_tokens=INT32,
    refusal=_optional(TEXT),
)
"""`part`: which judgement on an answer, such as `turn-2` or `game-1`. Label and score are null if it was unreadable, or
refused for the reason `refusal`."""
