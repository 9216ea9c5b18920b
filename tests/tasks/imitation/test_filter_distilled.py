"""The rules that drop texts of other models, on made-up texts and on real ones."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest

from infra.errors import BadInput
from infra.store.schemas import DISTILLED
from tasks.imitation.filter import DistilledFilter, filter_distilled
from tasks.imitation.ngrams import known_trigrams, unusual_share

REAL = Path(__file__).parents[3].parent / "shared" / "bench" / "longcot"
WORDS = ["so", "we", "need", "to", "find", "the", "number", "of", "apples", "and", "then", "check", "it", "before"]


def text(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=120))


def row(number: int, **changes: Any) -> dict[str, Any]:
    plain = {"query_id": f"q{number}", "sample": 0, "query": "how many ?", "topic": "math", "source": "f.jsonl"}
    plain |= {"source_row": number, "thoughts": text(number), "solution": f"There are {number} apples."}
    return {**plain, "violations": [], "continued": False, "thought_tokens": 120, "solution_tokens": 5, **changes}


def test_each_rule_drops_its_text_and_the_funnel_adds_up_by_source(world):
    rng = random.Random(0)
    letters = "".join(rng.choice(string.ascii_lowercase + "   ") for _ in range(900)).strip()
    others = [row(number) for number in range(100, 130)]
    rows = [
        row(0),
        row(1, thoughts=letters),
        row(2, thoughts=text(0).upper(), solution="There are 0  apples."),  # as the first, but for case and space
        row(3, violations=["unclosed_thoughts"], thoughts=None, solution=None),
        row(4, thought_tokens=3),
        row(5, thoughts=text(5) + " 所以我们检查"),
        row(6, thoughts=" ".join(["we check it again and again"] * 90)),
        row(7, thoughts=f"{text(7)} <|end_of_thought|> x"),
        row(8, solution=None, continued=True, source="g.jsonl"),
        row(9, solution=None, continued=True, source="g.jsonl", thoughts=None, violations=["missing_thoughts"]),
        row(10, continued=True, source="g.jsonl", solution="As in my thoughts above, 3."),
        row(11, thought_tokens=9999),
        *({**each, "source": "h.jsonl"} for each in others),
    ]
    given = world.table(DISTILLED, rows, "distilled")
    made = world.do(filter_distilled, config=DistilledFilter(max_thought_tokens=5000), target="still2", distilled=given)
    assert [each["query_id"] for each in world.rows(made)][:2] == ["q0", "q8"]
    assert world.counts(made) == {
        "read": 42,
        "kept": 32,
        "dropped: too long": 1,
        "dropped: solution mentions the thoughts": 1,
        "dropped: gibberish": 1,
        "dropped: duplicate": 1,
        "dropped: malformed: unclosed_thoughts": 1,
        "dropped: too short": 1,
        "dropped: mixed language": 1,
        "dropped: repetition loop": 1,
        "dropped: special token": 1,
        "dropped: malformed: missing_thoughts": 1,
        "sources": {
            "f.jsonl": {
                "read": 9,
                "kept": 1,
                "dropped: too long": 1,
                "dropped: gibberish": 1,
                "dropped: duplicate": 1,
                "dropped: malformed: unclosed_thoughts": 1,
                "dropped: too short": 1,
                "dropped: mixed language": 1,
                "dropped: repetition loop": 1,
                "dropped: special token": 1,
            },
            "g.jsonl": {
                "read": 3,
                "kept": 1,
                "dropped: malformed: missing_thoughts": 1,
                "dropped: solution mentions the thoughts": 1,
            },
            "h.jsonl": {"read": 30, "kept": 30},
        },
    }
    none = world.table(DISTILLED, rows[3:4], "distilled", "2")
    with pytest.raises(BadInput, match="no text is left"):
        world.do(filter_distilled, key="2", config=DistilledFilter(), target="still2", distilled=none)


def test_gibberish_that_stands_twice_is_gibberish_and_few_texts_are_not_judged(world):
    rng = random.Random(0)
    letters = "".join(rng.choice(string.ascii_lowercase + "   ") for _ in range(900)).strip()
    twice = [row(1, thoughts=letters, solution="x"), row(2, thoughts=letters, solution="x")]
    given = world.table(DISTILLED, [*map(row, range(10, 30)), *twice], "distilled", "1")
    made = world.do(filter_distilled, config=DistilledFilter(), target="still2", distilled=given)
    assert world.counts(made)["dropped: gibberish"] == 2
    few = world.table(DISTILLED, [row(0)], "distilled", "2")
    assert world.do(filter_distilled, key="2", config=DistilledFilter(), target="still2", distilled=few).rows == 1


def test_a_few_names_in_a_short_text_are_no_gibberish():
    known = known_trigrams([text(0), text(1)])
    assert unusual_share("Xhosa, Ljubljana and Szczecin", known) < 0.2
    assert unusual_share("所以我们检查" * 50, known) == 0


@pytest.mark.skipif(not REAL.is_dir(), reason="the real texts are missing (../shared/bench/longcot)")
def test_no_real_text_is_gibberish_and_random_letters_are():
    texts = [
        json.loads(line)["response"] for path in sorted(REAL.glob("*.jsonl")) for line in path.open(encoding="utf-8")
    ]
    known = known_trigrams(texts)
    assert max(unusual_share(each, known) for each in texts) < 0.1
    rng = random.Random(0)
    letters = "".join(rng.choice(string.ascii_lowercase + "    ") for _ in range(3000))
    assert unusual_share(letters, known) > 0.7
    assert unusual_share(" ".join("".join(rng.sample(word, len(word))) for word in texts[0].split()), known) > 0.3
