"""Real responses of real models: our verdict on every row, against the file's own label.

The labels of the files mean: `begin_of_thought`, that each of the four delimiters occurs once (stray text outside of
them is ignored there; we are stricter); `think_rejoined`, that thought and answer were separate and have been joined
(also if the answer is blank, which we call empty_solution); `Thought_Output`, only the model (one row is truncated).
"""

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from cot_formats import FORMATS, convert, detect, marco, qwq, r1, still2
from cot_formats.actions import find_actions

TEXTS = Path(__file__).parents[2].parent / "shared" / "bench" / "longcot"

pytestmark = pytest.mark.skipif(not TEXTS.is_dir(), reason="the real texts are missing (../shared/bench/longcot)")

STILL2 = ("icl_qwen2.5-32b_begin_of_thought", "sky-t1_begin_of_thought")
R1 = ("other_think", "qwen3_think", "qwq32b_think", "r1_think")


def rows(name: str) -> list[dict[str, Any]]:
    with (TEXTS / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def verdicts(module, name: str) -> Counter[tuple[str, ...]]:
    return Counter(
        (row["format"], *(violation.name for violation in module.parse(row["response"]).violations))
        for row in rows(name)
    )


def test_still2_verdicts():
    assert verdicts(still2, "icl_qwen2.5-32b_begin_of_thought") == {
        ("begin_of_thought",): 708,
        ("begin_of_thought", "text_before"): 6,  # "initial response is <|begin_of_thought|>..."
        ("begin_of_thought", "text_after"): 4,  # a note after the solution
        ("begin_of_thought_malformed", "missing_open_thoughts"): 41,
        ("begin_of_thought_malformed", "unclosed_thoughts", "missing_solution"): 18,
        ("untagged", "missing_thoughts", "missing_solution"): 18,
    }
    assert verdicts(still2, "sky-t1_begin_of_thought") == {
        ("begin_of_thought",): 169,
        ("begin_of_thought_malformed", "unclosed_thoughts", "missing_solution"): 69,
        ("begin_of_thought_malformed", "unclosed_solution"): 8,
        ("begin_of_thought_malformed", "missing_open_thoughts"): 1,
        ("untagged", "missing_thoughts", "missing_solution"): 8,
    }


@pytest.mark.parametrize("name", STILL2)
def test_still2_parts_agree_with_the_tag_counts(name):
    for row in rows(name):
        text, parsed = row["response"], still2.parse(row["response"])
        assert [text.count(tag) for tag in still2.FORMAT.tags] == row["tag_counts"]
        assert parsed.ok <= (row["tag_counts"] == [1, 1, 1, 1])
        if row["tag_counts"] == [1, 1, 1, 1]:
            _, _, rest = text.partition("<|begin_of_thought|>")
            thoughts, _, rest = rest.partition("<|end_of_thought|>")
            _, _, rest = rest.partition("<|begin_of_solution|>")
            solution, _, _ = rest.partition("<|end_of_solution|>")
            assert (parsed.thoughts, parsed.solution) == (thoughts.strip(), solution.strip())


def test_r1_verdicts():
    ended = ("think_rejoined",)
    empty = ("think_rejoined", "empty_solution")
    assert verdicts(r1, "other_think") == {
        ended: 214,
        empty: 8,
        ("think_raw_malformed", "unclosed_thoughts", "missing_solution"): 11,
        ("think_raw_malformed", "unclosed_thoughts", "repeated_open_thoughts", "missing_solution"): 1,
    }
    assert verdicts(r1, "qwen3_think") == {ended: 151, empty: 5}
    cut = ("think_rejoined", "unclosed_solution")  # both end within a \\boxed{}
    assert verdicts(r1, "qwq32b_think") == {ended: 67, empty: 11, cut: 2}
    assert verdicts(r1, "r1_think") == {ended: 98}


@pytest.mark.parametrize("name", R1)
def test_r1_is_split_where_the_file_says(name):
    for row in rows(name):
        if "thought_span" not in row:
            assert row["format"] == "think_raw_malformed"
            continue
        text, parsed = row["response"], r1.parse(row["response"])
        # Parts from some APIs have whitespace at their ends, and some answers are blank: hence the strip.
        assert parsed.thoughts == text[slice(*row["thought_span"])].strip()
        assert (parsed.solution or "") == text[slice(*row["answer_span"])].strip()
        _, _, continued = text.partition("<think>")
        opened = r1.parse(continued, opened=True)
        assert (opened.thoughts, opened.solution) == (parsed.thoughts, parsed.solution)


def test_marco_verdicts():
    assert verdicts(marco, "marco-o1_thought_output") == {
        ("Thought_Output",): 62,
        ("Thought_Output", "unclosed_solution"): 1,
    }


def test_qwq_verdicts():
    name = "qwq_preview_freeform"
    # Two are single paragraphs, and two are truncated: "In configuration", "would make it burn up in 1".
    assert verdicts(qwq, name) == {
        ("qwq_freeform",): 29,
        ("qwq_freeform", "missing_thoughts"): 2,
        ("qwq_freeform", "missing_solution"): 2,
    }
    boxed = [row["response"] for row in rows(name) if "\\boxed{" in row["response"]]
    assert len(boxed) == 22
    for text in boxed:
        solution = qwq.parse(text).solution
        assert solution is not None
        assert "\\boxed{" in solution
        assert "Final Answer" not in solution
        assert len(solution) < 450


def test_detect():
    expected = {
        "icl_qwen2.5-32b_begin_of_thought": {"still2": 777, "qwq": 15, None: 3},
        "sky-t1_begin_of_thought": {"still2": 247, "qwq": 4, None: 4},
        "marco-o1_thought_output": {"marco": 63},
        "other_think": {"r1": 234},
        "qwen3_think": {"r1": 156},
        "qwq32b_think": {"r1": 80},
        "r1_think": {"r1": 98},
        "qwq_preview_freeform": {"qwq": 22, None: 11},
    }
    assert {name: dict(Counter(detect(row["response"]) for row in rows(name))) for name in expected} == expected


def test_every_well_formed_text_survives_every_format_and_back():
    files = (
        [("still2", name) for name in STILL2] + [("r1", name) for name in R1] + [("marco", "marco-o1_thought_output")]
    )
    texts = [(source, row["response"]) for source, name in files for row in rows(name)]
    good = [(source, text) for source, text in texts if FORMATS[source].parse(text).ok]
    assert len(good) == 708 + 169 + 214 + 151 + 67 + 98 + 62
    refused: Counter[str] = Counter()
    for source, text in good:
        normal = convert(text, source, source)
        for target in FORMATS:
            try:
                assert convert(convert(text, source, target), target, source) == normal
            except ValueError:
                refused[target] += 1
    # The only delimiter of free text is the heading, and these solutions (mostly of R1-like models) contain one.
    assert refused == {"qwq": 79}


def test_long_thoughts_show_the_actions():
    shown: Counter[str] = Counter()
    thoughts = [r1.parse(row["response"]).thoughts for row in chain.from_iterable(map(rows, R1))]
    for text in filter(None, thoughts):
        shown.update({action.name for action in find_actions(text)})
    assert len(thoughts) == 568
    assert min(shown.values()) > 0.6 * len(thoughts)
    assert shown["reflection"] > 0.9 * len(thoughts)
