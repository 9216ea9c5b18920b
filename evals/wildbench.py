"""WildBench v2: 1,024 real conversations, each with a checklist that is shown to the judge, graded as by its authors.

WB-Score rates one answer from 1 to 10. WB-Reward compares it once with a reference model's answer, on a side chosen by
a coin. Source of the rules and of the judge's prompts: allenai/WildBench (Apache-2.0): src/eval.py,
src/openai_batch_eval/batch_results_format.py, leaderboard/data_dir/_create_tables.py and _merge_results.py. Three
things differ on purpose: broken JSON is read if it ends with the value (the authors drop it); an answer cannot close
the marks around it; and the coin is derived from the problem's id.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, Literal

from evals.problem import Message, Problem, are_texts, bad_field, text_field
from evals.templates import template
from evals.verdict_text import unquoted_json

Outcome = Literal["win_much", "win", "tie", "lose", "lose_much"]

TASKS: dict[str, str] = {
    "Information seeking": "Information/Advice seeking",
    "Creative Writing": "Creative Tasks",
    "Coding & Debugging": "Coding & Debugging",
    "Reasoning": "Planning & Reasoning",
    "Editing": "Creative Tasks",
    "Math": "Math & Data Analysis",
    "Planning": "Planning & Reasoning",
    "Brainstorming": "Creative Tasks",
    "Role playing": "Creative Tasks",
    "Advice seeking": "Information/Advice seeking",
    "Data Analysis": "Math & Data Analysis",
    "Others": "Creative Tasks",
}
"""The data set's tags, each with its group of tasks. Figures are also given for each of the five groups."""

WEIGHTS: dict[str, float] = {
    "Creative Tasks": 0.5,
    "Planning & Reasoning": 1.25,
    "Math & Data Analysis": 1.0,
    "Information/Advice seeking": 0.75,
    "Coding & Debugging": 1.25,
}
"""The weight of each group of tasks in the macro figures."""

PAIR_WORDS = 1000
"""How many words of each text in a pair the judge sees. A pair with a longer answer counts for neither model."""
EMPTY = "[This model response is empty.]"

_OUTCOMES: dict[str, tuple[Outcome, Outcome]] = {
    "A++": ("win_much", "lose_much"),
    "A+": ("win", "lose"),
    "A=B": ("tie", "tie"),
    "B+": ("lose", "win"),
    "B++": ("lose_much", "win_much"),
}
_REWARDS: dict[Outcome, float] = {"win_much": 1.0, "win": 0.5, "tie": 0.0, "lose": -0.5, "lose_much": -1.0}

_PARTS = re.compile(r"\{\$(history|user_query|model_output|candidate_A|candidate_B|checklist)\}")
_GAP = r"[\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]"  # white space and invisible characters
_MARK = re.compile(
    rf"[<＜](?={_GAP}*+[|｜]{_GAP}*+(?:begin|end)_of_(?:history|query|response|checklist))", re.IGNORECASE
)
_SCORE = r"\s*+\[?\s*+(\d{1,2}(?:\.\d++)?+)\s*+\]?\s*+"
_CHOICE = r"\s*+\[?\s*+(A\+\+|A\+|A=B|B\+\+|B\+)\s*+\]?\s*+"


@dataclass(frozen=True)
class Answer:
    """A model's answer, from a file in the authors' layout."""

    problem_id: str
    model: str
    text: str


@dataclass(frozen=True)
class Rated:
    """An answer, and the judge's score of it."""

    tasks: Sequence[str]
    """The problem's groups of tasks: `checklist_and_tasks`."""
    answer: str
    score: float | None
    """1 to 10; None if the verdict is unreadable."""


@dataclass(frozen=True)
class Compared:
    """A pair of answers, and the judge's choice between them."""

    tasks: Sequence[str]
    answer: str
    reference_answer: str
    model_is_a: bool
    choice: str | None
    """A++, A+, A=B, B+ or B++; None if the verdict is unreadable."""


@dataclass(frozen=True)
class ScoreFigures:
    """WB-Score, from -80 to 100 as on the leader board (ten times the value in score.json); None without scores."""

    mean: float | None
    """Mean of the judge's scores, 1 to 10."""
    score: float | None
    """(mean - 5) x 2, times 10."""
    task_macro: float | None
    """Weighted mean over the groups of tasks; None if one has no scores."""
    by_task: dict[str, float]
    """As `score`, for each group, but without empty answers, which `mean` includes."""
    mean_length: float | None
    """Mean number of characters of the answers with a score, without empty ones."""
    scored: int
    unread: int


@dataclass(frozen=True)
class RewardFigures:
    """WB-Reward against one reference model, from -100 to 100 as on the leader board; None without verdicts.

    The values in the authors' files are a hundredth of these.
    """

    reward: float | None
    """100 x (win_much + win / 2 - lose / 2 - lose_much) / (judged + left_out)."""
    task_macro: float | None
    """Weighted mean over the groups of tasks; None if one has no pairs."""
    by_task: dict[str, float]
    """As `reward`, for each group, without the pairs in `left_out`."""
    outcomes: dict[Outcome, int]
    mean_length: float | None
    """Mean number of characters of the model's answers in the pairs that count."""
    judged: int
    """Pairs that count: the sum of `outcomes`."""
    left_out: int
    """Pairs with a verdict, but with an empty answer or one of more than `PAIR_WORDS` words; they count as ties."""
    unread: int


def read(record: Mapping[str, Any], row: int) -> Problem:
    """Read a conversation in the authors' layout.

    Its fields are session_id, conversation_input, checklist, primary_tag and secondary_tags.

    The problem's `reference` is JSON text with the checklist and the groups of tasks: see `checklist_and_tasks`. Its
    `category` is the group of the primary tag. The data set's `references`, GPT-4's answers, are not shown to the judge
    and are not kept.

    Raises:
        ValueError: a field is missing or malformed; the message names row and field.
    """
    session_id = text_field(record, "session_id", row)
    turns = record.get("conversation_input")
    if not isinstance(turns, list) or not turns:
        raise bad_field(row, "conversation_input", "a list of messages", turns)
    messages = [_message(turn, f"conversation_input[{number}]", row) for number, turn in enumerate(turns)]
    if messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise bad_field(row, "conversation_input", "a non-empty message of the user at the end", turns[-1])
    checklist = record.get("checklist")
    if not are_texts(checklist) or not checklist:
        raise bad_field(row, "checklist", "a non-empty list of strings", checklist)
    primary, secondary = record.get("primary_tag"), record.get("secondary_tags")
    if not isinstance(primary, str) or primary not in TASKS:
        raise bad_field(row, "primary_tag", f"one of {', '.join(TASKS)}", primary)
    if not are_texts(secondary) or not set(secondary) <= TASKS.keys():
        raise bad_field(row, "secondary_tags", f"a list of {', '.join(TASKS)}", secondary)
    tasks = list(dict.fromkeys(TASKS[tag] for tag in [primary, *secondary]))
    return Problem(
        problem_id=session_id,
        query=messages[-1]["content"],
        history=tuple(messages[:-1]),
        reference=json.dumps({"checklist": checklist, "tasks": tasks}, ensure_ascii=False),
        category=TASKS[primary],
    )


def read_answer(record: Mapping[str, Any], row: int) -> Answer:
    """Read an answer in the authors' layout: session_id, generator, and output, a string or a list of one.

    Raises:
        ValueError: a field is missing or malformed; the message names row and field.
    """
    output = record.get("output")
    text = output[0] if isinstance(output, list) and len(output) == 1 else output
    if not isinstance(text, str):
        raise bad_field(row, "output", "a string or a list of one", output)
    return Answer(text_field(record, "session_id", row), text_field(record, "generator", row), text)


def checklist_and_tasks(problem: Problem) -> tuple[list[str], list[str]]:
    """The checklist of a problem and its groups of tasks. Raises `ValueError` if the problem has none."""
    if problem.reference is None:
        raise ValueError(f"problem {problem.problem_id} has no checklist")
    parts = json.loads(problem.reference)
    return parts["checklist"], parts["tasks"]


def score_messages(problem: Problem, answer: str) -> list[Message]:
    """The judge's prompt for WB-Score: one user turn, with the whole answer.

    If the answer spells one of the prompt's marks, the mark's first character is replaced by "(".
    """
    parts = {"history": _history(problem), "user_query": problem.query, "model_output": _MARK.sub("(", answer)}
    return _filled("evals/prompts/wildbench-score.md", parts, problem)


def pair_messages(problem: Problem, answer: str, reference_answer: str) -> list[Message]:
    """The judge's prompt for WB-Reward: one user turn. `model_is_a` determines the side of `answer`.

    Long texts are cut to `PAIR_WORDS` words, an empty answer becomes `EMPTY`, and marks are broken as for WB-Score.
    """
    shown = [_MARK.sub("(", _shortened(each)) if each.strip() else EMPTY for each in (answer, reference_answer)]
    a, b = shown if model_is_a(problem.problem_id) else reversed(shown)
    texts = {"history": _shortened(_history(problem)), "user_query": _shortened(problem.query)}
    return _filled("evals/prompts/wildbench-pairwise.md", {**texts, "candidate_A": a, "candidate_B": b}, problem)


def model_is_a(problem_id: str) -> bool:
    """Whether the model's answer is shown as response A: a fair coin from the problem's id, the same for all models."""
    return sha256(problem_id.encode("utf-8", "surrogatepass")).digest()[0] % 2 == 0


def read_score(text: str) -> float | None:
    """The score in a verdict, 1 to 10; None if it has none. Raises nothing; takes time linear in the length."""
    found = _value(text, "score", _SCORE)
    score = float(found) if found else 0.0
    return score if 1 <= score <= 10 else None


def read_choice(text: str) -> str | None:
    """The choice in a verdict, A++, A+, A=B, B+ or B++; None if it has none. Otherwise as `read_score`."""
    return _value(text, "choice", _CHOICE)


def outcome(pair: Compared, margin: int | None) -> Outcome | None:
    """The outcome of a pair for the model; None if the verdict is unreadable.

    `margin`: a slight win is a tie if the winner's answer is longer by more than this many characters; None for no such
    rule. (The authors measure the texts in their prompt, which adds some line feeds and, to B, a mark.)

    Raises:
        KeyError: the choice is not one of the five.
    """
    if pair.choice is None:
        return None
    found = _OUTCOMES[pair.choice][0 if pair.model_is_a else 1]
    longer = len(pair.answer) - len(pair.reference_answer)
    if margin is not None and ((found == "win" and longer > margin) or (found == "lose" and -longer > margin)):
        return "tie"
    return found


def score_figures(verdicts: Iterable[Rated]) -> ScoreFigures:
    """The figures of WB-Score, without unreadable verdicts."""
    scores: list[float] = []
    lengths: list[int] = []
    by_task: defaultdict[str, list[float]] = defaultdict(list)
    unread = 0
    for each in verdicts:
        if each.score is None:
            unread += 1
            continue
        scores.append(each.score)
        if each.answer.strip():
            lengths.append(len(each.answer))
            for task in each.tasks:
                by_task[task].append(20 * (each.score - 5))
    mean = _mean(scores)
    tasks = {task: sum(points) / len(points) for task, points in sorted(by_task.items())}
    return ScoreFigures(
        mean=mean,
        score=None if mean is None else 20 * (mean - 5),
        task_macro=task_macro(tasks),
        by_task=tasks,
        mean_length=_mean(lengths),
        scored=len(scores),
        unread=unread,
    )


def reward_figures(verdicts: Iterable[Compared], margin: int | None) -> RewardFigures:
    """The figures of WB-Reward with the length rule of `outcome`, without unreadable verdicts."""
    outcomes: Counter[Outcome] = Counter()
    by_task: defaultdict[str, Counter[Outcome]] = defaultdict(Counter)
    lengths: list[int] = []
    unread = left_out = 0
    for each in verdicts:
        found = outcome(each, margin)
        if found is None:
            unread += 1
        elif not all(text.strip() and _shortened(text) == text for text in (each.answer, each.reference_answer)):
            left_out += 1
        else:
            outcomes[found] += 1
            lengths.append(len(each.answer))
            for task in each.tasks:
                by_task[task][found] += 1
    tasks = {task: reward(counts, counts.total()) for task, counts in sorted(by_task.items())}
    judged = outcomes.total()
    return RewardFigures(
        reward=reward(outcomes, judged + left_out) if judged + left_out else None,
        task_macro=task_macro(tasks),
        by_task=tasks,
        outcomes={name: outcomes[name] for name in _REWARDS},
        mean_length=_mean(lengths),
        judged=judged,
        left_out=left_out,
        unread=unread,
    )


def reward(outcomes: Mapping[Outcome, int], pairs: int) -> float:
    """WB-Reward, from -100 to 100, of `pairs` pairs with these outcomes; pairs without an outcome count as ties."""
    return 100 * sum(_REWARDS[name] * number for name, number in outcomes.items()) / pairs


def task_macro(by_task: Mapping[str, float]) -> float | None:
    """The weighted mean over the five groups of tasks; None if one is missing."""
    if not WEIGHTS.keys() <= by_task.keys():
        return None
    return sum(weight * by_task[task] for task, weight in WEIGHTS.items()) / sum(WEIGHTS.values())


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _shortened(text: str) -> str:
    """A text cut as by the authors: words are separated by spaces only, not by line feeds."""
    words = text.split(" ", PAIR_WORDS)
    return text if len(words) <= PAIR_WORDS else " ".join(words[:PAIR_WORDS]) + "... (truncated)"


def _history(problem: Problem) -> str:
    return "".join(f"{turn['role'].upper()}: {turn['content']}\n\n" for turn in problem.history)


def _filled(prompt: str, parts: Mapping[str, str], problem: Problem) -> list[Message]:
    """One of the authors' prompts, filled in at once, so that no part is searched for placeholders of the others."""
    checklist = "".join(f"- {item}\n" for item in checklist_and_tasks(problem)[0])
    filled = {**parts, "checklist": checklist}
    return [{"role": "user", "content": _PARTS.sub(lambda part: filled[part[1]], template(prompt))}]


def _value(text: str, key: str, form: str) -> str | None:
    """The value of a key in the judge's JSON object, which is the whole text or spans its first to its last brace.

    Without such an object, or without the key in it, the text must end with the entry, as the prompt asks: an earlier
    one may be a quotation from an answer, as is an object in a block quote, in backticks or amid other code.
    """
    text = unquoted_json(text)
    for part in (text, text[max(text.find("{"), 0) : text.rfind("}") + 1]):
        try:
            verdict = json.loads(part, strict=False)
        except (ValueError, RecursionError):  # no JSON, a number of over 4,300 digits, nested too deep
            continue
        if isinstance(verdict, dict) and key in verdict:
            value = verdict[key]
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            found = re.fullmatch(form, str(value)) if isinstance(value, str | int | float) else None
            return found[1] if found else None
    found = _last_entry(key, form).search(text)
    return found[1] or found[2] if found else None


@cache
def _last_entry(key: str, form: str) -> re.Pattern[str]:
    """A key with a quoted value, or with a bare one that something follows: else its last digits may be cut off."""
    quote = "[\"'“”]"
    value = rf"(?:{quote}{form}{quote}|{form}(?=[,}}]))"
    return re.compile(rf"(?<!\\){quote}(?i:{key}){quote}\s*+:\s*+{value}[\s,`}}]*+\Z")


def _message(turn: Any, field: str, row: int) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
    if role not in ("user", "assistant") or not isinstance(content, str):
        raise bad_field(row, field, "a message of the user or the assistant", turn)
    return {"role": role, "content": content}
