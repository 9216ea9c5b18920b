from __future__ import annotations

from collections import Counter

import pytest

from infra.errors import BadInput
from infra.store.schemas import EXAMPLES, QUERIES, RESPONSES
from tasks.responses.filter import FilterConfig, check_kept, filter_responses, passages_of, reason_to_drop

OFF = FilterConfig(
    min_thought_tokens=None,
    special_tokens=False,
    max_repeated_share=None,
    max_foreign_share=None,
    copied_words=None,
    mentions_of_thoughts=False,
)
SHOWN = {
    "example_id": "e",
    "query": "what is the sum of one and two",
    "thoughts": "first we look at what is asked then we add one and two and see that three is what is left",
    "solution": "three",
    "topic": "sums",
    "actions": [],
}


def reason(response, *, query="which day is it ?", shown=(), **rules):
    """Why a response is dropped when only the given rules are on."""
    config = OFF.model_copy(update=rules)
    return reason_to_drop(response, query, [passages_of(example, config) for example in shown], config, "rlmt")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"finish_reason": "length"}, "truncated"),
        ({"finish_reason": "length", "violations": ["unclosed_thoughts"]}, "truncated"),
        ({"violations": ["text_after", "text_before"]}, "malformed: text_after"),
        ({"violations": ["empty_solution"], "solution": None}, "empty part: solution"),
    ],
)
def test_truncated_and_malformed_responses_are_dropped_even_if_all_rules_are_off(response, changes, expected):
    assert reason(response(**changes)) == expected


@pytest.mark.parametrize(
    ("rule", "changes", "expected"),
    [
        ({"min_thought_tokens": 5}, {"thought_tokens": 4}, "too short"),
        ({"special_tokens": True}, {"solution": "it is <|eot_id|> mon"}, "special token"),
        ({"special_tokens": True}, {"thoughts": "hm [INST] more"}, "special token"),
        ({"max_repeated_share": 0.3}, {"thoughts": ("wait no it was seven " * 30).strip()}, "repetition loop"),
        ({"max_repeated_share": 0.3}, {"solution": ("so it was seven then " * 30).strip()}, "repetition loop"),
        ({"max_foreign_share": 0.0}, {"thoughts": "though 直觉 says no"}, "mixed language"),
        ({"max_foreign_share": 0.5}, {"thoughts": "though 直觉 says no"}, None),
        (
            {"mentions_of_thoughts": True},
            {"solution": "As found in my thoughts, mon."},
            "solution mentions the thoughts",
        ),
        ({"min_actions": 1}, {"thoughts": "seven"}, "too few actions"),
        ({"min_actions": 1}, {"thoughts": "wait , no"}, None),
    ],
)
def test_each_rule_has_its_reason_and_can_be_turned_off(response, rule, changes, expected):
    row = response(**changes)
    assert reason(row, **rule) == expected
    assert reason(row) is None


def test_a_long_passage_of_an_example_is_a_copy_and_its_query_is_not(response):
    words = SHOWN["thoughts"].split()
    row = response(thoughts=f"Hm. {' '.join(words[3:18]).upper()}!")
    assert reason(row, shown=[SHOWN], copied_words=15) == "copied from an example"
    assert reason(row, shown=[SHOWN], copied_words=16) is None
    assert reason(row, shown=[], copied_words=15) is None
    assert reason(response(thoughts=SHOWN["query"]), shown=[SHOWN], copied_words=5) is None


def test_the_language_that_the_query_uses_or_names_is_not_foreign(response):
    row = response(solution="Это понедельник")
    assert reason(row, max_foreign_share=0.0) == "mixed language"
    assert reason(row, query="какой сегодня день?", max_foreign_share=0.0) is None
    assert reason(row, query="Say 'it is Monday' in Russian.", max_foreign_share=0.0) is None


def given(world, query, rows):
    examples = world.table(EXAMPLES, [SHOWN], "examples")
    queries = world.table(QUERIES, [query("a"), query("b"), query("q")], "queries")
    shards = [world.table(RESPONSES, each, key=f"k{n}") for n, each in enumerate(rows)]
    return {"responses": shards, "queries": queries, "examples": examples}


def test_a_response_that_cannot_be_rendered_in_the_trained_format_is_dropped(world, query, response):
    """Otherwise one kept response could stop the selection after everything has been scored."""
    xml = "Use <response>ok</response> as the body."
    assert reason(response(solution=xml)) == "cannot be written as rlmt"
    assert reason(response(thoughts=xml)) == "cannot be written as rlmt"
    rows = [[response("a", 0, solution=xml), response("a", 1)]]
    for target, kept in (("rlmt", [1]), ("bolt", [0, 1])):
        made = world.do(filter_responses, key=target, config=OFF, target=target, **given(world, query, rows))
        assert [row["sample"] for row in world.rows(made)] == kept


def test_the_step_keeps_order_over_shards_and_counts_every_row(world, query, response):
    first = [response("a", n, finish_reason="length" if n == 1 else "stop") for n in range(3)]
    second = [response("b", n, violations=["missing_solution"] if n else []) for n in range(3)]
    third = [response("q", 0, thoughts=SHOWN["thoughts"], example_ids=["e"]), response("q", 1, thoughts="直觉")]
    config = OFF.model_copy(update={"copied_words": 15, "max_foreign_share": 0.0})
    made = world.do(filter_responses, config=config, target="bolt", **given(world, query, [first, second, [], third]))
    assert world.rows(made) == [first[0], first[2], second[0]]
    assert world.counts(made) == {
        "read": 8,
        "kept": 3,
        "dropped: truncated": 1,
        "dropped: malformed: missing_solution": 2,
        "dropped: copied from an example": 1,
        "dropped: mixed language": 1,
    }


def test_shards_keep_together_what_one_pass_keeps(world, query, response):
    rows = [
        [response("abq"[n % 3], n, finish_reason="length" if n % 5 == 1 else "stop") for n in range(m)] for m in (7, 9)
    ]
    common = {"config": OFF, "target": "bolt", **given(world, query, rows)}
    whole = world.do(filter_responses, **common)
    parts = [world.do(filter_responses, key=f"s{n}", **common, shard=n, shards=3) for n in range(3)]
    assert [row for part in parts for row in world.rows(part)] == world.rows(whole)
    assert sum((Counter(world.counts(part)) for part in parts), Counter()) == Counter(world.counts(whole))
    assert check_kept(world.store, [world.table(RESPONSES, [], key="none"), whole], **common) is None


def test_if_nothing_is_kept_the_error_has_the_funnel_and_what_to_change(world, query, response):
    long = "no delimiter " * 100
    rows = [[response("q", n, text=f"{n} {long}", violations=["missing_thoughts"]) for n in range(5)]]
    rows.append([response("q", 5, finish_reason="length")])
    common = {"config": FilterConfig(), "target": "bolt", **given(world, query, rows)}
    parts = [world.do(filter_responses, key=str(n), **common, shard=n, shards=2) for n in range(2)]
    with pytest.raises(BadInput) as error:
        check_kept(world.store, parts, **common)
    text = str(error.value)
    assert text.startswith(
        "made: no response is left (read 6, dropped: malformed: missing_thoughts 5, dropped: truncated 1): the model "
        "does not follow the format of the examples: set prompt.layout to `turns`"
    )
    assert text.count("\n- query q, sample ") == 3
    assert "sample 2 (malformed: missing_thoughts): '2 no delimiter" in text
    assert "[...]" in text
    assert len(text) < 2_000


def test_without_any_response_there_is_an_error_as_well(world, query):
    common = {"config": FilterConfig(), "target": "bolt", **given(world, query, [[]])}
    with pytest.raises(BadInput, match=r"made: no response is left \(no response was read\)"):
        check_kept(world.store, [world.do(filter_responses, **common)], **common)
