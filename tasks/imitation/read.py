"""Imitation, first step: the thoughts and solutions of another model for the queries that mining kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from infra.errors import BadInput
from infra.serving.servers import Servers
from infra.steps.step import Plan, step
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.schemas import DISTILLED
from infra.store.store import Store
from infra.store.tables import batched, read_rows, write_table
from infra.text.chat import count_tokens, load_tokenizer
from tasks.imitation.sources import DistilledSource, texts_of
from tasks.queries.clean import cleaned
from tasks.queries.identity import query_id
from tasks.queries.sources import Skipped


@step
def read_distilled(
    plan: Plan, store: Store, *, sources: Sequence[DistilledSource], queries: Ref, model: Ref, servers: Servers
) -> Ref:
    """Write the table `distilled`: a row for each text of a query in `queries`, well-formed or not.

    Args:
        queries: the mined queries of the same sources; they have the text and the topic of each.
        model: whose tokenizer counts the tokens.

    Raises:
        BadInput: no query has a text; or as `texts_of`.
    """
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    wanted = {row["query_id"]: (row["query"], row["topic"]) for row in read_rows(store, queries)}
    funnel: Counter[str] = Counter()
    samples: Counter[str] = Counter()

    shared = Counter(source.name for source in sources)

    def rows() -> Iterator[dict[str, Any]]:
        for source in sources:
            skipped, used = Skipped(source.place), 0
            for row, query, responses in texts_of(source, skipped):
                identity, used = query_id(cleaned(query)), used + 1
                for response in responses:
                    if identity not in wanted:
                        funnel["dropped: the query was not kept by mining"] += 1
                        continue
                    text, topic = wanted[identity]
                    funnel["kept"] += 1
                    samples[identity] += 1
                    yield {
                        "query_id": identity,
                        "sample": samples[identity] - 1,
                        "query": text,
                        "topic": topic,
                        "source": source.name if shared[source.name] == 1 else source.place,
                        "source_row": row,
                        **response,
                        "continued": source.continued,
                        "thought_tokens": count_tokens(tokenizer, response["thoughts"] or ""),
                        "solution_tokens": count_tokens(tokenizer, response["solution"] or ""),
                    }
            skipped.refuse_many(used + skipped.reasons.total())
            for reason, count in skipped.reasons.items():
                funnel[f"dropped: {reason}"] += count
        if not funnel["kept"]:
            raise BadInput(f"{plan.step}: no text is left ({dict(funnel)}): set `text`, or `thoughts` and `solution`")

    def counts() -> dict[str, int]:
        return {"read": funnel.total(), **funnel}

    return write_table(store, plan.step, plan.key, DISTILLED, batched(rows()), plan.provenance, counts=counts)
