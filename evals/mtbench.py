"""MT-Bench: 80 questions of two turns, each answer rated from 1 to 10 by a judge, as in FastChat.

Source of the rules and of the judge's prompts: lm-sys/FastChat (Apache-2.0), fastchat/llm_judge: common.py,
gen_judgment.py, show_result.py and data/judge_prompts.jsonl. This is its single-answer grading, the mode of its leader
board. Three things differ on purpose: a rating outside 1 to 10 is unreadable, one in code or in a quotation is none,
and an answer cannot close the marks around it. The judge sees only solutions, also for the first turn of a two-turn
prompt.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from evals.problem import Message, Problem, are_texts, bad_field, text_field
from evals.templates import system_and_user
from evals.verdict_text import unquoted

PROMPTS = {
    (1, False): "evals/prompts/mtbench-single.md",
    (1, True): "evals/prompts/mtbench-single-math.md",
    (2, False): "evals/prompts/mtbench-multi-turn.md",
    (2, True): "evals/prompts/mtbench-multi-turn-math.md",
}
"""The judge's prompts, by turn and by whether there are reference answers."""

WITH_REFERENCE = frozenset(("math", "reasoning", "coding"))
"""The categories whose answers the judge compares with a reference answer (FastChat's NEED_REF_CATS)."""

_PARTS = re.compile(r"\{(question|question_1|question_2|answer|answer_1|answer_2|ref_answer_1|ref_answer_2)\}")
# Possessive quantifiers (++, *+, ?+): FastChat's patterns find the same, but in quadratic time on long runs of digits.
_RATING = re.compile(r"\[\[([0-9]++(?:\.[0-9]*+)?+)\]\]")
_SINGLE = re.compile(r"\[([0-9]++(?:\.[0-9]*+)?+)\]")
_GAP = r"[\s\u200b-\u200f\u2060\ufeff]"  # white space and invisible characters
_WHOSE = rf"the{_GAP}++(?:start|end){_GAP}++of{_GAP}++(?:the{_GAP}++)?+(?:reference|assistant)"
_MARK = re.compile(
    rf"[\[［](?={_GAP}*+{_WHOSE})"
    rf"|[<＜](?=[|｜]{_GAP}*+{_WHOSE})"
    rf"|[#＃](?=[#＃]{{2}}{_GAP}*+(?:user|assistant{_GAP}*+[ab]?|reference{_GAP}++answer){_GAP}*+[:：])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Figures:
    """FastChat's figures: means of the readable ratings (1 to 10); None if there are none."""

    turn_1: float | None
    turn_2: float | None
    overall: float | None
    """Mean of all ratings of both turns; not the mean of the two means if some are unreadable."""
    by_category: dict[str, float | None]
    """Mean of both turns' ratings."""
    rated: int
    unread: int
    """Verdicts without a readable rating; they are in no mean."""


def read(record: Mapping[str, Any], row: int) -> Problem:
    """Read a question of one or two turns. Its `reference` is a JSON list of one string per turn; None without any.

    Two layouts are read: FastChat's question.jsonl (question_id, category, turns, and reference if there is one) and
    the data set HuggingFaceH4/mt_bench_prompts (prompt_id, category, prompt, and reference, which may be empty). Their
    references are not those that FastChat shows to the judge: `with_references` takes these from its
    reference_answer/gpt-4.jsonl.

    Raises:
        ValueError: a field is missing or malformed; the message names row and field.
    """
    turns_name = "prompt" if "prompt" in record else "turns"
    turns, reference = record.get(turns_name), record.get("reference")
    if not are_texts(turns) or not 1 <= len(turns) <= 2 or not all(turn.strip() for turn in turns):
        raise bad_field(row, turns_name, "a list of one or two non-empty strings", turns)
    if reference is not None and (not are_texts(reference) or len(reference) > len(turns)):
        raise bad_field(row, "reference", "a list of strings, at most one per turn", reference)
    return Problem(
        problem_id=_id(record, "prompt_id" if "prompt_id" in record else "question_id", row),
        query=turns[0],
        follow_ups=tuple(turns[1:]),
        reference=json.dumps(reference, ensure_ascii=False) if any(each.strip() for each in reference or ()) else None,
        category=text_field(record, "category", row),
    )


def with_references(problems: Iterable[Problem], records: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """The problems with the reference answers of FastChat's file (question_id, choices[0].turns), joined by the id.

    Answers to other questions are ignored, since the problems may be only some of the questions.

    Raises:
        ValueError: a record is malformed or duplicated, or a problem that needs a reference answer has none.
    """
    answers: dict[str, list[str]] = {}
    for row, record in enumerate(records):
        question_id = _id(record, "question_id", row)
        choices = record.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        turns = first.get("turns") if isinstance(first, dict) else None
        if not are_texts(turns) or not turns:
            raise bad_field(row, "choices[0].turns", "a non-empty list of strings", turns)
        if question_id in answers:
            raise ValueError(f"row {row}: the reference answer to question {question_id} is a duplicate")
        answers[question_id] = turns
    joined = []
    for problem in problems:
        if problem.problem_id in answers:
            joined.append(replace(problem, reference=json.dumps(answers[problem.problem_id], ensure_ascii=False)))
        elif problem.category in WITH_REFERENCE:
            raise ValueError(f"question {problem.problem_id} ({problem.category}) has no reference answer in this file")
        else:
            joined.append(problem)
    return joined


def judge_messages(problem: Problem, turn: int, answers: Sequence[str]) -> list[Message]:
    """The judge's prompt about the answer to a turn, 1 or 2. `answers`: the solutions, at least up to that turn.

    It is FastChat's plain prompt, or the one with reference answers for the categories that need them; the prompt for
    the second turn shows both turns. If an answer spells one of the prompt's marks, the mark's first character is
    replaced by "(".

    Raises:
        ValueError: there is no such turn, there are too few answers, or a required reference answer is missing.
    """
    questions = (problem.query, *problem.follow_ups)
    if not 1 <= turn <= min(2, len(questions)):
        raise ValueError(f"question {problem.problem_id} has no turn {turn}")
    if len(answers) < turn:
        raise ValueError(f"question {problem.problem_id}: turn {turn} needs {turn} answers, found {len(answers)}")
    shown = [_MARK.sub("(", answer) for answer in answers[:turn]]
    parts = {"question": questions[0], "answer": shown[0]}
    if turn == 2:
        parts = {"question_1": questions[0], "question_2": questions[1], "answer_1": shown[0], "answer_2": shown[1]}
    if problem.category in WITH_REFERENCE:
        references = json.loads(problem.reference) if problem.reference is not None else []
        if len(references) < turn:
            raise ValueError(
                f"question {problem.problem_id} ({problem.category}) is judged against a reference, but turn {turn} "
                "has none: add the file of reference answers"
            )
        parts |= {f"ref_answer_{number}": text for number, text in enumerate(references[:turn], start=1)}
    system, user = system_and_user(PROMPTS[turn, problem.category in WITH_REFERENCE])
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": _PARTS.sub(lambda part: parts[part[1]], user)},
    ]


def read_rating(text: str) -> float | None:
    """The rating of a verdict, 1 to 10; None if it has none. Raises nothing; takes time linear in the length.

    As in FastChat, it is the first number in double brackets, or else the first in single ones, but not in code or in a
    quotation. FastChat accepts any number, such as [[0]] or [[11]]; here a number outside 1 to 10 gives None, and no
    other number is tried.
    """
    text = unquoted(text)
    found = _RATING.search(text) or _SINGLE.search(text)
    rating = float(found[1]) if found else 0.0
    return rating if 1 <= rating <= 10 else None


def read_winner(text: str) -> Literal["A", "B", "tie"] | None:
    """The winner in a pairwise verdict; None if it names none.

    As in FastChat, [[A]] anywhere has precedence over [[B]] anywhere, and that over [[C]], a tie; but those in code or
    in a quotation do not count.
    """
    text = unquoted(text)
    if "[[A]]" in text:
        return "A"
    if "[[B]]" in text:
        return "B"
    return "tie" if "[[C]]" in text else None


def figures(verdicts: Iterable[tuple[str, int, float | None]]) -> Figures:
    """The figures of verdicts, given as category, turn, and rating (None if unreadable)."""
    ratings: dict[int, list[float]] = {1: [], 2: []}
    by_category: defaultdict[str, list[float]] = defaultdict(list)
    unread = 0
    for category, turn, rating in verdicts:
        of_category = by_category[category]
        if rating is None:
            unread += 1
        else:
            ratings[turn].append(rating)
            of_category.append(rating)
    every = ratings[1] + ratings[2]
    return Figures(
        turn_1=_mean(ratings[1]),
        turn_2=_mean(ratings[2]),
        overall=_mean(every),
        by_category={category: _mean(found) for category, found in sorted(by_category.items())},
        rated=len(every),
        unread=unread,
    )


def _mean(ratings: Sequence[float]) -> float | None:
    return sum(ratings) / len(ratings) if ratings else None


def _id(record: Mapping[str, Any], name: str, row: int) -> str:
    """An id, which is a number or a string in FastChat's files."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise bad_field(row, name, "an integer or a non-empty string", value)
    return str(value)
