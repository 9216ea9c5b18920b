from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import BadInput
from tasks.examples.read import (
    ExamplesConfig,
    candidates,
    checked,
    evidence,
    example_files,
    read_example,
    remaining,
    select,
    taken_examples,
)

GOOD = """---
topic: planning
author: Ada
licence: CC-BY-4.0
---

## Query

How do I pack ?

## Thoughts

Goal: find a way. Plan: one step at a time. Wait, check the bag. Alternatively, take two.

## Solution

Take one bag.

## Not a section of ours

More of the solution.
"""


def written(folder: Path, text: str, name: str = "one.md") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_front_matter_and_sections(tmp_path):
    example = read_example(written(tmp_path, GOOD))
    assert example["example_id"] == "one"
    assert [example[name] for name in ("topic", "author", "licence")] == ["planning", "Ada", "CC-BY-4.0"]
    assert example["query"] == "How do I pack ?"
    assert example["thoughts"].startswith("Goal: find")
    assert example["solution"].endswith("More of the solution.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("---\ntopic", "topic"), "front matter between two lines"),
        (("topic: planning", "topic: [planning"), "not YAML"),
        (("topic: planning", "subject: planning"), "must name the topic as a string, e.g. 'topic: coding'"),
        (("topic: planning", "topic: 3"), "must name the topic"),
        (("topic: planning", "topic: ' '"), "must name the topic"),
        (("author: Ada\n", ""), "must name the author"),
        (("licence: CC-BY-4.0\n", ""), "must name the licence as a string, e.g. 'licence: CC-BY-4.0'"),
        (("## Thoughts\n", "## Ideas\n"), "found ## Query, ## Solution"),
        (("## Thoughts\n", "## Query\n"), "found ## Query, ## Query, ## Solution"),
        (("How do I pack ?", " "), "section '## Query' is empty"),
        (("\nHow do I pack ?\n\n", ""), "section '## Query' is empty"),
    ],
)
def test_errors_name_the_file(tmp_path, change, message):
    assert change[0] in GOOD
    path = written(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(BadInput, match=r"one\.md") as error:
        read_example(path)
    assert message in str(error.value)


def test_sections_in_another_order_are_an_error(tmp_path):
    swapped = GOOD.replace("## Query", "## X").replace("## Thoughts", "## Query").replace("## X", "## Thoughts")
    with pytest.raises(BadInput, match="in order, found ## Thoughts, ## Query, ## Solution"):
        read_example(written(tmp_path, swapped))


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "latin.md"
    path.write_bytes(GOOD.replace("Take", "Néhme").encode("latin-1"))
    with pytest.raises(BadInput, match=r"latin\.md: the file is not UTF-8"):
        read_example(path)


@pytest.mark.parametrize("name", ["nowhere", "notes.txt"])
def test_missing_candidates_are_an_error(tmp_path, name):
    (tmp_path / "notes.txt").write_text("no table")
    with pytest.raises(BadInput, match=rf"{name} is neither a table \(\.parquet, \.jsonl\) nor a folder with"):
        example_files(ExamplesConfig(path=tmp_path / name))


def test_examples_need_a_format_with_thoughts(tmp_path):
    with pytest.raises(ValueError, match="format"):
        ExamplesConfig(path=tmp_path, format="plain")


# ---- tables of candidates


def row(number: int = 0, **changes: object) -> dict[str, object]:
    plain = {"query": f"q {number}", "thoughts": f"t {number}", "solution": f"s {number}", "topic": "maths"}
    return {**plain, **changes}


def table(path: Path, rows: list[dict[str, object]]) -> ExamplesConfig:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return ExamplesConfig(path=path)


@pytest.mark.parametrize("name", ["more.jsonl", "more.parquet"])
def test_a_table_is_read_like_a_folder(tmp_path, name):
    rows = [row(0, example_id=None, licence="MIT", reward=None), row(1, query=" q 1\n", example_id="mine", reward=2.5)]
    found = candidates(table(tmp_path / name, rows))
    assert [each["example_id"] for each in found] == ["more-00000", "mine"]
    assert [each["query"] for each in found] == ["q 0", "q 1"]
    assert [each["licence"] for each in found] == ["MIT", None]
    assert set(found[0]) == {"example_id", "query", "thoughts", "solution", "topic", "author", "licence"}


@pytest.mark.parametrize("name", ["more.jsonl", "more.parquet"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": 3}, "field query must be a non-blank string, found int"),
        ({"thoughts": None}, "field thoughts must be a non-blank string, found none"),
        ({"topic": ""}, "field topic must be a non-blank string, found a blank one"),
        ({"author": 7}, "field author must be a string or absent, found int"),
    ],
)
def test_errors_name_row_and_field(tmp_path, name, changes, message):
    rows = [row(1, **changes)] if name.endswith("parquet") else [row(0), row(1, **changes)]
    with pytest.raises(BadInput) as error:
        candidates(table(tmp_path / name, rows))
    assert f"{name}, row {len(rows) - 1}: {message}" in str(error.value)


def test_broken_tables_are_named(tmp_path):
    whole = table(tmp_path / "more.parquet", [row(n) for n in range(9)]).path
    (tmp_path / "half.parquet").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"half\.parquet: not a complete Parquet file .*write it again"):
        candidates(ExamplesConfig(path=tmp_path / "half.parquet"))
    with pytest.raises(
        BadInput, match=r"bare\.parquet: column thoughts, topic is missing: expected .* found query, sol"
    ):
        candidates(table(tmp_path / "bare.parquet", [{"query": "q", "solution": "s"}]))
    (tmp_path / "torn.jsonl").write_text(json.dumps(row()) + '\n{"query": "q')
    with pytest.raises(BadInput, match=r"torn\.jsonl, row 1: not JSON .*one object per line"):
        candidates(ExamplesConfig(path=tmp_path / "torn.jsonl"))
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(BadInput, match=r"list\.jsonl, row 0: expected a JSON object, found list"):
        candidates(ExamplesConfig(path=tmp_path / "list.jsonl"))
    with pytest.raises(BadInput, match=r"twice\.jsonl: field example_id holds 'a' more than once"):
        candidates(table(tmp_path / "twice.jsonl", [row(0, example_id="a"), row(1, example_id="a")]))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_are_an_error_that_names_the_file(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    message = "any.jsonl"
    try:
        candidates(ExamplesConfig(path=path))
    except BadInput as error:
        message = str(error)
    assert "any.jsonl" in message


# ---- checking a candidate by its text

THOUGHTS = "I need to find a way. My plan is this. Alternatively, take two. Wait, the bag is torn."


def verdict(solution: str = "Take one bag.", thoughts: str = THOUGHTS, **changes: object) -> tuple[object, str]:
    config = ExamplesConfig(**{"min_words": 1, **changes})
    found = checked({**row(), "example_id": "e", "thoughts": thoughts, "solution": solution}, config)
    return found["rejected"], found["why"] or ""


def test_a_good_candidate_is_not_rejected():
    assert verdict() == (None, "")


@pytest.mark.parametrize(
    ("changes", "rejected", "why"),
    [
        ({"solution": "Write </internal_thoughts> here."}, "malformed", "solution contains the delimiter </internal_"),
        ({"thoughts": THOUGHTS.replace("Wait, t", "T")}, "too few actions", "show 3 of the four reasoning actions "),
        ({"thoughts": "It is 7."}, "too few actions", "actions (none), expected at least 4: spell out"),
        ({"min_words": 400}, "length", "thoughts of 18 words, expected 400 to 1500"),
        ({"max_words": 17}, "length", "thoughts of 18 words, expected 1 to 17"),
        (
            {"solution": "As computed above, 7."},
            "solution relies on the thoughts",
            "relies on the thoughts: 'As computed",
        ),
    ],
)
def test_each_rule_has_a_name_and_a_reason(changes, rejected, why):
    found = verdict(**changes)
    assert found[0] == rejected
    assert why in found[1]


def test_all_reasons_are_given():
    rejected, why = verdict("As I worked out earlier, 7.", "It is 7.", min_words=5)
    assert rejected == "too few actions"
    assert [part in why for part in ("show 0 of", "thoughts of 3 words", "'As I worked out earlier'")] == [True] * 3


def test_a_delimiter_of_another_format_is_plain_text():
    assert verdict("Write </think> here.") == (None, "")
    assert verdict("Write </think> here.", format="r1")[0] == "malformed"


@pytest.mark.parametrize(
    "solution",
    [
        "As I worked out above, it is 7.",
        "It is 7, as we\u2019ve already shown.",
        "As computed earlier, x = 2.",
        "My thoughts above give 7.",
        "In my analysis I found 7.",
        "See the calculation above.",
        "The previous reasoning shows it.",
        "I have found above that x = 2.",
        "From my\nthinking it follows.",
        "It follows from the internal reasoning.",
    ],
)
def test_solutions_that_rely_on_the_thoughts_are_found(solution):
    assert verdict(solution)[0] == "solution relies on the thoughts"


@pytest.mark.parametrize(
    "solution",
    [
        "Here are my thoughts on the film: it is long.",
        "Equation (1) above gives x = 2.",
        "The table above lists all four.",
        "He was found earlier that day, as agreed.",
        "Use the analysis of variance; the thinking behind it is simple.",
        "She said it before.",
        "The previous chapter explains reasoning by analogy.",
    ],
)
def test_ordinary_phrases_are_accepted(solution):
    assert verdict(solution)[0] is None


def test_the_spans_show_the_actions():
    shown = evidence("Hmm. " + THOUGHTS)
    assert list(shown) == ["analysis", "planning", "branching", "reflection"]
    text = "Hmm. " + THOUGHTS
    assert [text[slice(*each["spans"][0])] for each in shown.values()] == [
        "I need to find",
        "My plan is",
        "Alternatively",
        "Hmm",
    ]
    assert len(shown["reflection"]["spans"]) == 2
    assert shown["planning"]["quote"] == "Hmm. I need to find a way. My plan is this. Alternatively, take two. Wait,"
    assert evidence("It is 7.") == {}


# ---- selecting


def ranked(*topics: str) -> list[dict[str, object]]:
    return [{"example_id": f"e{n}", "topic": topic, "rejected": None, "why": None} for n, topic in enumerate(topics)]


def taken(examples: list[dict[str, object]]) -> list[object]:
    return [each["example_id"] for each in remaining(examples)]


def test_the_best_are_taken_with_a_limit_per_topic():
    examples = ranked("a", "A", "a", "b", "c", "d")
    select(examples, ExamplesConfig(count=4, max_per_topic=2))
    assert taken(examples) == ["e0", "e1", "e3", "e4"]
    assert examples[2]["why"] == "topic a already has its 2 examples"
    assert (examples[5]["rejected"], examples[5]["why"]) == ("not needed", "ranked behind the 4 taken")


def test_a_required_topic_is_taken_before_better_ones():
    examples = ranked("a", "b", "c", "c")
    config = ExamplesConfig(count=2, topics=("C",))
    select(examples, config)
    assert taken(examples) == ["e0", "e2"]
    assert [each["example_id"] for each in taken_examples(examples, config)] == ["e0", "e2"]


def test_too_few_are_an_error_with_a_reason_for_each_candidate(tmp_path):
    examples = ranked("a", "b")
    examples[1] |= {"rejected": "length", "why": "thoughts of 3 words"}
    with pytest.raises(BadInput) as error:
        taken_examples(examples, ExamplesConfig(path=tmp_path, count=2))
    assert str(error.value) == (
        f"{tmp_path}: 2 examples are needed, 1 of 2 candidates can be taken: fix or add candidates, or relax the "
        "settings.\n- e1: thoughts of 3 words"
    )
    with pytest.raises(BadInput, match=r"no example of the topic law \(topics\) is among those taken"):
        taken_examples(ranked("a"), ExamplesConfig(path=tmp_path, count=1, topics=("a", "law")))


def test_a_byte_order_mark_and_blank_lines_at_the_end_of_a_table_are_passed_over(tmp_path):
    lines = "\r\n".join(json.dumps(row(number)) for number in range(3))
    (tmp_path / "more.jsonl").write_bytes(f"\ufeff{lines}\r\n\r\n".encode())
    assert len(candidates(ExamplesConfig(path=tmp_path / "more.jsonl"))) == 3


def test_a_markdown_example_of_another_system_is_read(tmp_path):
    (tmp_path / "one.md").write_bytes(f"\ufeff{GOOD}".replace("\n", "\r\n").encode())
    assert read_example(tmp_path / "one.md") == read_example(written(tmp_path / "unix", GOOD))
