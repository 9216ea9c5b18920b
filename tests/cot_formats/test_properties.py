"""Properties of every text: parsing undoes rendering, never raises, and its offsets are in the text."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cot_formats import FORMATS, VIOLATIONS, bolt, convert, detect, marco, qwq, r1, rlmt, still2
from cot_formats.actions import ACTIONS, find_actions
from cot_formats.cut import ends_mid_sentence, left_open
from cot_formats.responses import is_well_formed, parse_response

TAGS = [tag for module in (bolt, r1, still2, rlmt, marco) for tag in module.FORMAT.tags]
FRAGMENTS = [
    *TAGS,
    *qwq.HEADINGS,
    *(tag[:-2] for tag in TAGS),
    "\\boxed{1}",
    "\\boxed{",
    "\\[",
    "\\]",
    "```",
    "\n",
    "\n\n",
    " ",
    "\x1c",
    "word",
    "<",
    ">",
    "|",
]

anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=80)
shuffled = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=14).map("".join)
texts = st.one_of(anything, shuffled)
names = st.sampled_from(sorted(FORMATS))


@given(names, texts, texts)
def test_parse_undoes_render(name, thoughts, solution):
    try:
        text = FORMATS[name].render(thoughts, solution)
    except ValueError:
        return
    parsed = FORMATS[name].parse(text)
    assert parsed.ok
    assert (parsed.thoughts, parsed.solution) == (thoughts, solution)


@given(names, anything.map(str.strip).filter(bool), anything.map(str.strip).filter(bool))
def test_parts_without_delimiters_can_always_be_rendered(name, thoughts, solution):
    assume(not any(mark in thoughts + solution for mark in (*TAGS, "Final Answer")))
    assume(left_open(solution) is None)
    parsed = FORMATS[name].parse(FORMATS[name].render(thoughts, solution))
    assert (parsed.thoughts, parsed.solution) == (thoughts, solution)


@given(names, texts, texts, st.data())
def test_a_response_that_was_cut_off_anywhere_is_never_taken_as_whole(name, thoughts, solution, data):
    """Of the text alone, where no sign is left: r1 and qwq cannot tell a cut in the plain words of a solution, nor qwq
    one at the end of a paragraph of thoughts, or in thoughts that have a heading of an answer themselves. The finish
    reason tells all of these."""
    try:
        text = FORMATS[name].render(thoughts, solution)
    except ValueError:
        return
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    assume(cut.rstrip() != text)
    response = {**parse_response(cut, name, ended=False), "finish_reason": "length"}
    assert response["violations"]
    assert not is_well_formed(response)
    parsed = FORMATS[name].parse(cut)
    if name not in ("r1", "qwq"):
        assert not parsed.ok
    elif parsed.ok:
        assert left_open(parsed.solution) is None
        headed = any(heading in cut for heading in qwq.HEADINGS)
        assert len(cut) > len(text) - len(solution) or (name == "qwq" and (headed or not ends_mid_sentence(cut)))


def check(text, parsed):
    assert {violation.name for violation in parsed.violations} <= VIOLATIONS.keys()
    assert len({violation.name for violation in parsed.violations}) == len(parsed.violations)
    offsets = [violation.offset for violation in parsed.violations]
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len(text) for offset in offsets)
    for part in (parsed.thoughts, parsed.solution):
        assert part is None or (part in text and part == part.strip() != "")
    if parsed.thoughts and parsed.solution:
        assert text.index(parsed.thoughts) + len(parsed.thoughts) <= text.rindex(parsed.solution)
    assert parsed.ok == (not parsed.violations)
    assert parsed.violations or parsed.thoughts


@given(names, texts)
def test_parse_never_raises_and_offsets_are_in_the_text(name, text):
    check(text, FORMATS[name].parse(text))
    assert detect(text) in {*FORMATS, None}


@given(st.sampled_from([bolt, r1, still2, rlmt, marco]), texts)
def test_opened_parse_equals_the_parse_of_the_text_with_the_delimiter_in_front(module, text):
    parsed, whole = module.parse(text, opened=True), module.parse(module.FORMAT.tags[0] + text)
    check(text, parsed)
    assert (parsed.thoughts, parsed.solution) == (whole.thoughts, whole.solution)
    assert {v.name for v in parsed.violations} == {v.name for v in whole.violations}


@given(names, names, texts, texts)
def test_converting_there_and_back_changes_nothing(source, target, thoughts, solution):
    try:
        text = FORMATS[source].render(thoughts, solution)
        converted = convert(text, source, target)
    except ValueError:
        return
    assert convert(converted, target, source) == text


@pytest.mark.parametrize("name", sorted(FORMATS))
@given(text=texts)
def test_normalising_a_well_formed_text_is_idempotent(name, text):
    if not FORMATS[name].parse(text).ok:
        return
    try:
        normal = convert(text, name, name)
    except ValueError:
        assert name == "qwq"  # a heading with nothing before it is thoughts or solution, not a delimiter
        return
    assert convert(normal, name, name) == normal


@given(texts)
def test_actions_are_in_the_text_and_in_order(text):
    actions = find_actions(text)
    assert all(action.name in ACTIONS for action in actions)
    bounds = [bound for action in actions for bound in (action.start, action.end)]
    assert bounds == sorted(bounds)
    assert all(0 <= bound <= len(text) for bound in bounds)
