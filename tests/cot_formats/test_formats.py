"""Rendering and parsing of each format, and every violation by name and offset."""

import time

import pytest

from cot_formats import FORMATS, VIOLATIONS, bolt, convert, detect, marco, qwq, r1, rlmt, still2
from cot_formats.actions import find_actions
from cot_formats.responses import parse_response
from cot_formats.types import Parsed

A, Z, B, E = bolt.FORMAT.tags
TAGGED = (bolt, r1, still2, rlmt, marco)


def faults(parsed: Parsed) -> list[tuple[str, int]]:
    return [(violation.name, violation.offset) for violation in parsed.violations]


def test_bolt_rendering_is_fixed():
    expected = "<internal_thoughts>\nwhy\n</internal_thoughts>\n\n<external_solution>\nso\n</external_solution>"
    assert bolt.render("why", "so") == expected


def test_the_other_formats_are_rendered_as_their_models_write_them():
    assert r1.render("t", "s") == "<think>\nt\n</think>\n\ns"
    assert rlmt.render("t", "s") == "<think>\nt\n</think>\n\n<response>\ns\n</response>"
    assert marco.render("t", "s") == "<Thought>\nt\n</Thought>\n<Output>\ns\n</Output>"
    assert qwq.render("t", "s") == "t\n\n**Final Answer**\n\ns"
    assert still2.render("t", "s") == (
        "<|begin_of_thought|>\n\nt\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\ns\n\n<|end_of_solution|>"
    )


@pytest.mark.parametrize("space", ["", " ", "\n", "\r\n\t", "\n\n \n"])
def test_any_whitespace_around_delimiters_is_allowed(space):
    text = space.join(["", A, "t u", Z, B, "s", E, ""])
    parsed = bolt.parse(text)
    assert parsed.ok
    assert (parsed.thoughts, parsed.solution) == ("t u", "s")


@pytest.mark.parametrize(
    ("text", "expected", "thoughts", "solution"),
    [
        ("", [("missing_thoughts", 0), ("missing_solution", 0)], None, None),
        ("hello", [("missing_thoughts", 0), ("missing_solution", 5)], None, None),
        (f"t{Z}{B}s{E}", [("missing_open_thoughts", 1)], "t", "s"),
        (f"{A}t{B}s{E}", [("unclosed_thoughts", 0)], "t", "s"),
        (f"{A}t", [("unclosed_thoughts", 0), ("missing_solution", 20)], "t", None),
        (f"{A}t{Z}", [("missing_solution", 40)], "t", None),
        (f"{A}t{Z}s", [("text_after", 40), ("missing_solution", 41)], "t", None),
        (f"{A}t{Z}{B}s", [("unclosed_solution", 40)], "t", "s"),
        (f"{A}t{Z}s{E}", [("missing_open_solution", 41)], "t", "s"),
        (f"{A}t s{E}", [("unclosed_thoughts", 0), ("missing_open_solution", 22)], None, None),
        (f"{B}s{E}", [("missing_thoughts", 0)], None, "s"),
        (f"t {B}s{E}", [("missing_thoughts", 0), ("text_before", 0)], None, "s"),
        (f"s{E}", [("missing_thoughts", 0), ("missing_open_solution", 1)], None, None),
        (f" x {A}t{Z} y {B}s{E} z ", [("text_before", 1), ("text_between", 44), ("text_after", 87)], "t", "s"),
        (f"{A} {Z}{B}s{E}", [("empty_thoughts", 19)], None, "s"),
        (f"{A}t{Z}{B}\n{E}", [("empty_solution", 59)], "t", None),
        (f"{A}{A}t{Z}{B}s{E}", [("repeated_open_thoughts", 19)], None, None),
        (f"{A}t{Z}{Z}{B}s{E}", [("repeated_close_thoughts", 40)], None, None),
        (f"{A}t{Z}{B}{B}s{E}", [("repeated_open_solution", 59)], None, None),
        (f"{A}t{Z}{B}s{E}{E}", [("repeated_close_solution", 80)], None, None),
        (f"{B}s{E}{A}t{Z}", [("out_of_order", 0)], None, None),
        (f"{Z}t{A}{B}s{E}", [("out_of_order", 0)], None, None),
    ],
)
def test_every_fault_has_its_name_and_offset(text, expected, thoughts, solution):
    parsed = bolt.parse(text)
    assert faults(parsed) == expected
    assert (parsed.thoughts, parsed.solution) == (thoughts, solution)
    assert not parsed.ok
    assert {violation.name for violation in parsed.violations} <= VIOLATIONS.keys()


def test_in_r1_the_solution_is_all_text_after_the_thoughts():
    assert r1.parse("<think>t</think>s").solution == "s"
    assert faults(r1.parse("<think>t")) == [("unclosed_thoughts", 0), ("missing_solution", 8)]
    assert faults(r1.parse("<think>t</think> \n")) == [("empty_solution", 16)]
    assert faults(r1.parse("<think></think>s")) == [("empty_thoughts", 7)]
    assert faults(r1.parse("s")) == [("missing_thoughts", 0), ("missing_solution", 1)]
    assert faults(r1.parse("<think>t</think>s<think>")) == [("repeated_open_thoughts", 17)]
    assert faults(r1.parse("</think>t<think>s")) == [("out_of_order", 0)]


def test_thoughts_opened_in_the_prompt():
    text = "t</think>s"
    assert faults(r1.parse(text)) == [("missing_open_thoughts", 1)]
    assert r1.parse(text, opened=True).ok
    assert r1.parse(text, opened=True).thoughts == "t"
    assert faults(r1.parse("<think>t</think>s", opened=True)) == [("repeated_open_thoughts", 0)]
    assert faults(r1.parse("t", opened=True)) == [("unclosed_thoughts", 0), ("missing_solution", 1)]
    assert r1.parse("t", opened=True).thoughts == "t"
    assert rlmt.parse("t</think><response>s</response>", opened=True).ok


@pytest.mark.parametrize(
    ("text", "thoughts", "solution"),
    [
        ("a\n\nb", "a", "b"),
        ("a\n\nb\n\nc\n", "a\n\nb", "c"),
        ("a\n\nso \\boxed{1}\n\nabout 1", "a", "so \\boxed{1}\n\nabout 1"),
        ("\\boxed{0}?\n\nno\n\n\\[ \\boxed{1} \\]", "\\boxed{0}?\n\nno", "\\[ \\boxed{1} \\]"),
        ("a\n\n**Final Answer**\n\n\\[ \\boxed{0} \\]", "a", "\\[ \\boxed{0} \\]"),
        ("a\n\n### Final Answer\n\nx\n\ny", "a", "x\n\ny"),
        ("a\n\n**Final Answer**: 3", "a", "3"),
        ("a\n\n**Final Answer:** 3", "a", "3"),
        ("a\n\n**Final Answer**\n\n3\n\nWait.\n\n**Final Answer**\n\n4", "a\n\n**Final Answer**\n\n3\n\nWait.", "4"),
    ],
)
def test_qwq_finds_the_solution_in_free_text(text, thoughts, solution):
    parsed = qwq.parse(text)
    assert parsed.ok
    assert (parsed.thoughts, parsed.solution) == (thoughts, solution)


@pytest.mark.parametrize(
    "solution",
    [
        "\\[ \\boxed{4",
        "\\[ \\boxed{4}",
        "\\[ \\boxed{4} \\",
        "\\[ \\boxe",
        "\\boxed{\\text{Take the sheep across",
        "\\boxed{\\frac{1}{2}",
        "so \\boxed{4} and \\boxed{",
        "\\boxed{\\{1, 2\\}",
        "$$x = 4",
        "it is \\(x = 4",
        "\\begin{pmatrix} 1 & 2",
        "```python\nprint(4)",
        "````\n```\nprint(4)\n```",
        "~~~\nprint(4)",
    ],
)
@pytest.mark.parametrize("before", ["<think>t</think>\n\n", "t\n\n**Final Answer**\n\n"], ids=["r1", "qwq"])
def test_a_solution_that_was_cut_off_is_not_taken_as_whole(before, solution):
    module = r1 if "think" in before else qwq
    parsed = module.parse(before + solution)
    assert [violation.name for violation in parsed.violations] == ["unclosed_solution"]
    assert (parsed.thoughts, parsed.solution) == ("t", solution)
    with pytest.raises(ValueError, match=r"reads as if it were cut off: .* is never closed"):
        module.render("t", solution)


@pytest.mark.parametrize(
    "solution",
    [
        "It costs $5, or \\$5",
        "`\\boxed{}` draws a box",
        "\\boxed{\\left\\{ x \\right.}",
        "\\(a\\) and \\[b\\]",
        "\\begin{cases} 1 \\end{cases}",
        "$$\\begin{aligned} a&=1 \\\\[4pt] b&=2 \\end{aligned}$$",
        "\\boxed{\\begin{pmatrix} 1 \\\\[2pt] 2 \\end{pmatrix}}",
        "```\n$$\n```",
        "write ```x``` so",
        'print("\\(name)")\n\nin Swift',
        "C:\\boxes",
        "#",
        "4",
    ],
)
def test_a_whole_solution_is_not_taken_as_cut_off(solution):
    assert r1.parse(r1.render("t", solution)).ok
    assert qwq.parse(qwq.render("t", solution)).ok


@pytest.mark.parametrize(
    ("text", "thoughts", "expected"),
    [
        ("First.\n\nSo the answer is 4", "First.\n\nSo the answer is 4", "missing_solution"),
        ("First.\n\nIf both ends burn,", "First.\n\nIf both ends burn,", "missing_solution"),
        ("First.\n\nDone.\n\n**Final Answer", "First.\n\nDone.", "missing_solution"),
        ("First.\n\nDone.\n\n##", "First.\n\nDone.", "missing_solution"),
        ("First.\n\nDone.\n\n**Final Answer**\n", "First.\n\nDone.", "empty_solution"),
        ("First.\n\n**Final Answer**\n\n4\n\nWait.\n\n**Final", "First.", "unclosed_solution"),
        ("First.\n\nSo \\boxed{4", "First.", "unclosed_solution"),
    ],
)
def test_free_text_that_was_cut_off_is_not_taken_as_whole(text, thoughts, expected):
    parsed = qwq.parse(text)
    assert ([violation.name for violation in parsed.violations], parsed.thoughts) == ([expected], thoughts)


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_a_sample_that_was_cut_at_its_last_token_is_not_taken_as_whole(format):
    """What the finish reason says counts more than how the text reads."""
    whole = FORMATS[format].render("First. So it is 4.", "The answer is 4.")
    closed = format not in ("r1", "qwq")
    assert parse_response(whole, format, ended=True)["violations"] == []
    assert parse_response(whole, format, ended=False)["violations"] == ([] if closed else ["unclosed_solution"])
    cut = parse_response("First.\n\nSo it is 4.", "qwq", ended=False)
    assert (cut["solution"], cut["violations"]) == (None, ["missing_solution"])
    assert parse_response("First.\n\nIt is 4", "qwq", ended=True)["violations"] == []


def test_qwq_faults():
    assert faults(qwq.parse("just so")) == [("missing_thoughts", 0)]
    assert qwq.parse("just so").solution == "just so"
    assert faults(qwq.parse(" \n")) == [("missing_thoughts", 0), ("missing_solution", 2)]
    assert faults(qwq.parse("a\n\n**Final Answer**\n")) == [("empty_solution", 19)]


@pytest.mark.parametrize("module", TAGGED, ids=lambda module: module.__name__)
def test_render_refuses_what_would_not_parse_back(module):
    for tag in module.FORMAT.tags:
        with pytest.raises(ValueError, match="the thoughts contains the delimiter"):
            module.render(f"a {tag}", "s")
        with pytest.raises(ValueError, match="the solution contains the delimiter"):
            module.render("t", f"a {tag}")
    with pytest.raises(ValueError, match="the solution is empty"):
        module.render("t", " ")
    with pytest.raises(ValueError, match="the thoughts starts or ends with whitespace"):
        module.render("t\n", "s")


def test_a_longer_heading_is_not_that_of_the_answer():
    assert qwq.parse("a\n\n# Final Answers\n\nb\n\n# Final Answer\n\n3").solution == "3"
    assert not qwq.parse("0\n\n# Final Answer0").ok


def test_qwq_render_refuses_a_heading_in_the_solution():
    assert (
        qwq.parse(qwq.render("a\n\n**Final Answer**\n\n3", "4\n\n\\boxed{4}\n\n5")).solution == "4\n\n\\boxed{4}\n\n5"
    )
    with pytest.raises(ValueError, match="Final Answer heading"):
        qwq.render("t", "s\n\n**Final Answer**\n\n3")
    with pytest.raises(ValueError, match="empty"):
        qwq.render("", "s")


def test_braces_and_percents_in_parts_are_plain_text():
    for module in FORMATS.values():
        assert module.parse(module.render("{solution} %s {0}", "\\boxed{1}")).thoughts == "{solution} %s {0}"


def test_convert():
    assert convert("<think> t </think> s", "r1", "bolt") == bolt.render("t", "s")
    with pytest.raises(ValueError, match=r"unclosed_thoughts at 0.*missing_solution at 8"):
        convert("<think>t", "r1", "bolt")
    with pytest.raises(ValueError, match="unknown format 'r2'"):
        convert("<think>t", "r2", "bolt")
    with pytest.raises(ValueError, match="contains the delimiter"):
        convert(f"<think>t</think>{A}", "r1", "bolt")


def test_detect():
    for name, module in FORMATS.items():
        assert detect(module.render("why", "so")) == name
    for module in TAGGED:
        for tag in module.FORMAT.tags:
            expected = "r1" if module is rlmt and "think" in tag else module.__name__.rpartition(".")[2]
            assert detect(f"broken {tag} text") == expected
    assert detect("<think>t</think> and </response>") == "rlmt"
    assert detect("<think>what is a <response> ?</think>\n\nUse </response> in XML .") == "r1"
    assert detect(bolt.render("I mention <think> here", "s")) == "bolt"
    assert detect("a\n\n\\boxed{1}") == "qwq"
    for text in ("", "hello", "a\n\nb", "\\boxed{1}", "a < b > c"):
        assert detect(text) is None


def test_many_repeats_are_one_violation_per_name():
    parsed = bolt.parse((A + Z + B + E) * 10_000)
    assert [violation.name for violation in parsed.violations] == [
        f"repeated_{name}" for name in ("open_thoughts", "close_thoughts", "open_solution", "close_solution")
    ]
    assert parsed.violations[0].detail == f"{A} 10000 times"


@pytest.mark.parametrize(
    "unit", ["<", ">", "<|", "think>", "<think", "\n\n", "\\boxed{", "\n\n**Final Answer", " ", A, "</think>"]
)
def test_time_is_linear_in_the_length(unit):
    """Quadratic time would take minutes here; the limit leaves room for a busy machine."""
    text = unit * (2_000_000 // len(unit))
    start = time.process_time()
    for module in FORMATS.values():
        module.parse(text)
    detect(text)
    find_actions(text)
    assert time.process_time() - start < 10
