"""The last choice among another model's texts: perplexity, length, the mix of domains."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from infra.errors import BadInput
from infra.store.schemas import DISTILLED, PERPLEXITIES
from tasks.imitation.choose import ChooseConfig, check_mix, choose_imitated, fates_of


def rows(*topics):
    return [{"query_id": f"q{n}", "sample": 0, "topic": topic} for n, topic in enumerate(topics)]


def kept(given, config, perplexities=None):
    found = fates_of(given, perplexities or {}, config, bool(perplexities))
    return [row["query_id"] for row, fate in zip(given, found, strict=True) if fate == "kept"]


def test_the_highest_perplexities_are_dropped():
    given = rows(*["math"] * 5)
    perplexities = {(f"q{n}", 0): float(n + 1) for n in range(4)}
    fates = fates_of(given, perplexities, ChooseConfig(max_perplexity_percentile=60), True)
    assert fates == ["kept", "kept", "dropped: perplexity", "dropped: perplexity", "dropped: perplexity not known"]


def test_the_perplexities_of_other_texts_do_not_count():
    """Texts whose solutions are not written yet have perplexities, too, often lower ones."""
    own = {(f"q{n}", 0): 2.0 + n for n in range(4)}
    others = {(f"other{n}", 0): 1.0 for n in range(100)}
    config = ChooseConfig(max_perplexity_percentile=75)
    assert kept(rows(*["math"] * 4), config, own | others) == ["q0", "q1", "q2"]


def test_the_mix_takes_as_many_of_each_domain_and_a_share_of_each():
    given = rows(*["math"] * 20, *["code"] * 10, *["art"] * 5, None)
    topics = {row["query_id"]: row["topic"] for row in given}
    drawn = Counter(topics[name] for name in kept(given, ChooseConfig(mix={"math": 8, "code": 30})))
    assert drawn == {"math": 8, "code": 10}
    assert len(kept(given, ChooseConfig())) == 36
    third = kept(given, ChooseConfig(share=1 / 3))
    assert Counter(topics[name] for name in third) == {"math": 7, "code": 3, "art": 2}
    assert third == kept(given, ChooseConfig(share=1 / 3))
    assert third != kept(given, ChooseConfig(share=1 / 3, seed=1))
    assert set(third) <= set(kept(given, ChooseConfig(share=0.5)))  # more of the same draw


def test_the_step_writes_longcot_data_of_texts_with_solutions(world):
    def text(number, topic, solution="y"):
        plain = {"sample": 0, "query": f"{number} ?", "source": "f", "source_row": number, "thoughts": f"t {number}"}
        lengths = {"thought_tokens": 5, "solution_tokens": 1}
        continued = {"violations": [], "continued": solution is None}
        return {"query_id": f"q{number}", "topic": topic, **plain, "solution": solution, **lengths, **continued}

    first = world.table(DISTILLED, [text(0, "math"), text(1, "math", None), text(2, None)], "distilled", "1")
    written = world.table(DISTILLED, [{**text(1, "math"), "continued": True}], "distilled", "2")
    measured = world.table(
        PERPLEXITIES, [{"query_id": f"q{n}", "sample": 0, "tokens": 5, "perplexity": 2.0} for n in range(3)], "p"
    )
    common = {"perplexities": [measured], "format": "still2"}
    made = world.do(choose_imitated, config=ChooseConfig(), distilled=[first, written], **common)
    assert [(row["query"], row["thoughts"], row["solution"], row["format"]) for row in world.rows(made)] == [
        ("0 ?", "t 0", "y", "still2"),
        ("2 ?", "t 2", "y", "still2"),
        ("1 ?", "t 1", "y", "still2"),
    ]
    assert world.counts(made) == {"read": 3, "kept": 3, "topics": {"math": 2, "(none)": 1}, "wanted": None}
    with pytest.raises(BadInput, match=r"mix names law, but no text has such a domain: there are \(none\), math"):
        check_mix(ChooseConfig(mix={"law": 3}), {"math", "(none)"})
    made = world.do(
        choose_imitated, key="2", config=ChooseConfig(mix={"law": 3, "math": 1}), distilled=[first], **common
    )
    assert made.rows == 1  # all texts on law were dropped before: a warning
    with pytest.raises(BadInput, match=r"made: no text is left .*or choose.share, or name other domains in choose.mix"):
        world.do(choose_imitated, key="3", config=ChooseConfig(mix={"law": 3}), distilled=[first], **common)


@pytest.mark.parametrize(("share", "kept"), [(0.1, 1), (0.4, 4), (0.5, 5), (0.7, 7), (0.9, 9), (1.0, 10)])
@pytest.mark.parametrize("domains", [1, 2, 10])
def test_a_share_is_of_all_texts_however_many_domains_there_are(share: float, kept: int, domains: int) -> None:
    rows = [{"query_id": f"q{n}", "sample": 0, "topic": f"d{n % domains}"} for n in range(10)]
    assert fates_of(rows, {}, ChooseConfig(share=share), False).count("kept") == kept


@pytest.mark.parametrize("mix", [{}, {"math": 0}, {"math": -3, "code": 5}])
def test_a_mix_without_texts_is_refused(mix: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="one of them above 0"):
        ChooseConfig(mix=mix)
