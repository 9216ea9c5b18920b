"""A page of search trees: each problem's steps, their values, the path to the answer, and the wrong turns.

Like the report it needs no server, and shows model text as text only (`tasks/report/page/tree.js`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from markupsafe import Markup

from infra.processes.limited import Limited, NoResult
from infra.store.manifest import Ref
from infra.store.store import Store
from infra.store.tables import read_rows
from tasks.report.report import PAGE, content_hash, page_environment
from tasks.rewards.verify import Verifier
from tasks.search.answers import chosen_solution, solution_text, trees
from tasks.search.vote import Vote

log = logging.getLogger(__name__)
PROBLEMS = 12
"""Problems whose trees are shown."""
MAX_NODES = 20_000
"""A tree with more nodes is left out: a browser would be slow."""
MAX_TOTAL = 200_000
"""Nodes of all trees on the page."""


def trees_of(
    store: Store, name: str, searched: Sequence[Ref], vote: Vote, problems: Ref, verifier: Verifier
) -> Iterator[dict[str, Any]]:
    """The trees of the first problems by one search, as the page takes them.

    Args:
        name: that of the search.
        searched: its tables `searched`.
        vote: which solution is the answer.
        verifier: grades each different answer, where the problem has a reference.
    """
    asked = {row["query_id"]: row for row in read_rows(store, problems, ["query_id", "query", "reference"])}
    with Limited(f"evals.graders:{verifier.replace('-', '_')}") as child:

        def grade(answer: str, reference: str) -> bool | None:
            found = child(answer, reference)
            return None if isinstance(found, NoResult) else bool(found["correct"])

        for query_id, rows in islice(trees(store, searched), PROBLEMS):
            yield tree_of(name, asked[query_id], rows, vote, grade)


def tree_of(
    name: str,
    problem: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    vote: Vote,
    grade: Callable[[str, str], bool | None],
) -> dict[str, Any]:
    """One tree. `grade` says whether a text's answer is right, by the reference; None if it cannot."""
    reference, answer = problem["reference"], chosen_solution(rows, vote)
    solved = [row for row in rows if row["solution"]]
    texts = {row["answer"]: solution_text(rows, row) for row in reversed(solved)}
    correct = {found: None if reference is None else grade(text, reference) for found, text in texts.items()}
    return {
        "search": f"{name}, {vote}",
        "problem": problem["query_id"],
        "query": problem["query"],
        "reference": reference,
        "tokens": rows[0]["tokens"],
        "chosen": answer and answer["node"],
        "nodes": [
            [
                *(row["parent"], row["text"], row["visits"], int(row["solution"])),
                *(
                    (row["reward"], row["answer"], correct[row["answer"]])
                    if row["solution"]
                    else (row["value"] if row["visits"] else None, None, None)
                ),
            ]
            for row in rows
        ],
    }


def tree_page(run: str, trees: Iterable[dict[str, Any]]) -> bytes | None:
    """The page, in UTF-8; None if no tree is small enough.

    Args:
        run: the run's name.
        trees: as `trees_of`; those with more than `MAX_NODES` nodes are left out, and so are those after `MAX_TOTAL`.
    """
    shown, total, left_out = list[dict[str, Any]](), 0, 0
    for tree in trees:
        count = len(tree["nodes"])
        if count > MAX_NODES or total + count > MAX_TOTAL:
            left_out += 1
            continue
        total += count
        shown.append(tree)
    if left_out:
        log.warning("trees.html: %d trees are left out, since a browser would be slow with their nodes", left_out)
    if not shown:
        return None
    script, style = ((PAGE / name).read_text() for name in ("tree.js", "tree.css"))
    index = [
        {**{key: tree[key] for key in ("search", "problem")}, "query": tree["query"][:80], "tree": number}
        for number, tree in enumerate(shown)
    ]
    page = page_environment().get_template("tree.html")
    given = {"run": run, "trees": shown, "index": index}
    hashes = {"script_hash": content_hash(script), "style_hash": content_hash(style)}
    own = {"script": Markup(script), "style": Markup(style)}  # noqa: S704  # the project's own
    return page.render(**given, **hashes, **own).encode()
