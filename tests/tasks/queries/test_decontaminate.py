from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from infra.errors import BadInput
from infra.store.manifest import Ref
from infra.store.schemas import QUERIES
from tasks.queries.decontaminate import DecontaminateConfig, Problems, decontaminate, find_contaminated, read_held_out
from tasks.queries.overlap import words
from tasks.queries.sources import Source, problems_of

BENCH = Path(__file__).parents[3].parent / "shared" / "bench"
REAL = (
    ("math500/math500", "problem"),
    ("math_l5/problems", "problem"),
    ("arenahard/question_v0.1", "prompt"),
    ("arenahard/question_v2.0", "prompt"),
    ("mtbench/mt_bench_question", "turns"),
    ("zebra/zebra_puzzles_gold", "puzzle"),
    ("queries/ifeval", "prompt"),
)
real_texts = pytest.mark.skipif(not BENCH.is_dir(), reason="the real texts (../shared/bench) are not here")
BOILERPLATE = "Answer the following multiple choice question by giving the letter of the right answer alone:"
WORDS = ["amber", "bridge", "copper", "dune", "ember", "fjord", "garnet", "hollow", "inlet", "jasper", "kelp", "moss"]
WORDS += ["nectar", "onyx", "plume"]


WRAPS = (
    "Please help me with my homework. {} Think step by step.",
    "Q: {}\nA:",
    '"{}" Explain your answer to a child of ten years.',
    "Here is a task.\n\n```\n{}\n```\n\nSolve it with Python.",
)


def problems(folder: Path, *texts: str, name: str = "test.jsonl") -> Source:
    path = folder / name
    path.write_text("".join(json.dumps({"query": text}) + "\n" for text in texts))
    return Source(path=str(path))


def contaminated(world: Any, config: DecontaminateConfig, queries: Ref, key: str = "k", **shard: int) -> Ref:
    held_out = world.do(read_held_out, "held-out", key, held_out=config.held_out)
    given = {"config": config, "held_out": held_out, "queries": queries, **shard}
    found: Ref = world.do(find_contaminated, "contaminated", key, **given)
    return found


def index(source: Source, **more: object) -> Problems:
    return Problems(DecontaminateConfig(held_out=(source,), **more), list(problems_of(source)))


def signs(index: Problems, *texts: str) -> list[str | None]:
    return [hit and hit[1] for hit in index.hits(texts)]


def test_each_sign_is_found(tmp_path):
    long = " ".join(WORDS)
    found = index(problems(tmp_path, "What is 2+3, exactly?", long))
    assert signs(
        found,
        "WHAT is\n2 + 3 exactly",
        "What is 2+4, exactly?",
        "What is 2+3, really exactly?",
        "What is 2+3?",
        f"Tell me of {' '.join(WORDS[1:14])}",
        "entirely another matter",
        "",
    ) == ["same text", *["one word differs"] * 3, "shared 13-gram", None, None]
    mixed = " ".join([*WORDS[:5], "of", *WORDS[5:10], "to", *WORDS[10:]])  # two words inserted: no 13 in a row
    assert signs(found, mixed) == [None]
    assert signs(index(problems(tmp_path, long), near_duplicates=0.4), mixed) == ["near-duplicate"]


def test_a_problem_among_its_siblings_is_found(tmp_path):
    """Problems that resemble one another share bands: the one that is similar enough may come after others."""
    draw = random.Random(0)
    vocabulary = [f"word{n}" for n in range(300)]
    missed = tried = 0
    for number in range(40):
        text = draw.sample(vocabulary, 40)
        siblings = [[*text[:at], f"other{at}", *text[at + 1 :]] for at in draw.sample(range(40), 20)]
        changed = " ".join(["new" if at in (9, 19, 29) else word for at, word in enumerate(text)])
        name, everything = f"{number}.jsonl", [" ".join(each) for each in (*siblings, text)]
        options = {"ngram": None, "near_duplicates": 0.6}
        alone = signs(index(problems(tmp_path, everything[-1], name=f"alone-{name}"), **options), changed)
        tried += alone == ["near-duplicate"]
        missed += alone != signs(index(problems(tmp_path, *everything, name=name), **options), changed)
    assert tried > 30
    assert missed == 0


def test_a_check_that_is_turned_off_gives_no_sign(tmp_path):
    found = index(problems(tmp_path, " ".join(WORDS), "Is 7 odd ?"), ngram=None, near_duplicates=None)
    assert signs(found, "Is 8 odd ?", f"more {' '.join(WORDS)}", "is 7 ODD?") == [None, None, "same text"]


def test_boilerplate_of_many_problems_is_no_sign(tmp_path):
    texts = [f"{BOILERPLATE} is {word} older than {other}?" for word, other in pairwise(WORDS)]
    query = f"{BOILERPLATE} who wrote the Iliad, and when did people first read it aloud?"
    assert signs(index(problems(tmp_path, *texts)), query, texts[3].upper()) == [None, "same text"]
    few = index(problems(tmp_path, *texts[:10]))
    assert signs(few, query) == ["shared 13-gram"]
    assert signs(index(problems(tmp_path, *texts[:10] * 9)), query) == ["shared 13-gram"]  # the same ten again


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_short_problem_wrapped_in_other_text_is_found(tmp_path, wrap):
    short = [
        "How tall is Mont Blanc?",
        "Find the sum of $\\frac{1}{2}$ and 3.",
        "写一首关于大海的诗",
        "Who was the first king of Fiji",
    ]
    found = index(problems(tmp_path, *short, "Hello", "What is 2+2?"))
    assert signs(found, *(wrap.format(text) for text in short)) == ["contains the problem"] * 4
    assert (
        signs(found, *(wrap.format(text.upper().replace(" ", "\n")) for text in short)) == ["contains the problem"] * 4
    )
    changed = [text.replace(" ", " very ", 1).replace("大", "小") for text in short]
    assert signs(found, *(wrap.format(text) for text in changed)) == [None] * 4


def test_a_long_problem_of_boilerplate_alone_is_found_where_it_is_whole(tmp_path):
    texts = [f"{BOILERPLATE} is {word} older than {other}?" for word, other in pairwise(WORDS)]
    found = index(problems(tmp_path, *texts), near_duplicates=None)
    assert signs(found, f"Well: {texts[3]} I say no.", f"Well: {BOILERPLATE} is it?") == ["contains the problem", None]


def test_short_and_common_problems_drop_no_unrelated_queries(tmp_path):
    phrase = "Answer the following question in one word"
    others = [f"{phrase}: what is {word}?" for word in WORDS]
    given = problems(tmp_path, "Hello", "Thanks!", "What is 2+2?", "Is 7 odd?", phrase, *others)
    found = index(given, near_duplicates=None)
    chat = ["Hello, who was Ada?", "Thanks! Now explain tides", "What is 2+2*x if x is 9?", "If so, is 7 odd or not?"]
    assert signs(found, *chat, f"{phrase}: who was Ada?") == [None] * 5
    everything = index(problems(tmp_path, "Hello", "Is 7 odd?"), contained_words=1)
    assert signs(everything, chat[0], chat[3]) == ["contains the problem"] * 2
    off = index(problems(tmp_path, "How tall is Mont Blanc?"), contained_words=None)
    assert signs(off, WRAPS[0].format("How tall is Mont Blanc?")) == [None]


def test_contaminated_queries_are_recorded_with_their_problem_and_counted(world, query, tmp_path, bars):
    one = problems(tmp_path, "How tall is Mont Blanc?", name="one.jsonl")
    two = problems(tmp_path, "Who was Ada?", "Name three rivers of Peru.", name="two.jsonl")
    texts = ["how tall is mont blanc", "Name four rivers of Peru.", "Where do cats sleep at night?"]
    queries = world.table(QUERIES, [query(str(n), text) for n, text in enumerate(texts)])
    config = DecontaminateConfig(held_out=(one,)).without(two)
    assert config.without(two) == config
    found = contaminated(world, config, queries)
    assert [(row["query_id"], row["problem_set"], row["problem_row"], row["sign"]) for row in world.rows(found)] == [
        ("0", "one.jsonl", 0, "same text"),
        ("1", "two.jsonl", 1, "one word differs"),
    ]
    assert world.rows(found)[1]["problem"] == "Name three rivers of Peru."
    kept = world.do(decontaminate, queries=queries, contaminated=[found])
    assert [row["query"] for row in world.rows(kept)] == texts[2:]
    assert world.counts(kept) == {
        "read": 3,
        "dropped: held out for evaluation, same text": 1,
        "dropped: held out for evaluation, one word differs": 1,
        "kept": 1,
    }
    assert bars == {"contaminated": 1.0}


def test_without_evaluation_sets_all_are_kept(world, query):
    queries = world.table(QUERIES, [query("0", "anything at all")])
    found = contaminated(world, DecontaminateConfig(), queries)
    assert (found.rows, world.do(decontaminate, queries=queries, contaminated=[found]).rows) == (0, 1)


def test_shards_find_what_one_pass_finds(world, query, tmp_path):
    texts = [f"How tall is mountain number {n} of the range in metres?" for n in range(23)]
    config = DecontaminateConfig(held_out=(problems(tmp_path, *texts[3:20:4]),), near_duplicates=None)
    queries = world.table(QUERIES, [query(str(n), text) for n, text in enumerate(texts)])
    whole = contaminated(world, config, queries)
    parts = [contaminated(world, config, queries, key=str(n), shard=n, shards=3) for n in range(3)]
    assert [row for part in parts for row in world.rows(part)] == world.rows(whole)
    assert [world.counts(part)["queries"] for part in parts] == [7, 8, 8]
    given = {"queries": queries}
    kept = [world.do(decontaminate, key=str(n), **given, contaminated=each) for n, each in enumerate(([whole], parts))]
    assert world.rows(kept[0]) == world.rows(kept[1])
    assert kept[0].rows == 23 - 5


@pytest.mark.parametrize(
    ("problem", "query"),
    [
        ("How tall is Mount\u200b Everest to\u200bday?", "How tall is Mount Everest today?"),
        ("How tall is Mount Ever\xadest today?", "How tall is Mount Everest today?"),
        ("How tall is Mount Everest today?", "How tall is Mo\u200dunt Ever\u200cest to\u200fday?"),
        ("Compute 2⁵ + 3² + 4 now", "Compute 2^5 + 3^2 + 4 now"),
        ("Factor the polynomial x^{2}-5 x", "Factor the polynomial x^2-5x"),
        ("ما هو مجموع ١٢ و ١٣", "ما هو مجموع 12 و 13"),
    ],
)
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_short_problem_written_otherwise_is_found_in_other_text(tmp_path, problem, query, wrap):
    assert signs(index(problems(tmp_path, problem)), wrap.format(query)) == ["contains the problem"]


@pytest.mark.parametrize(("problem", "query"), [("दिन में काम", "दीन मे कम"), ("ទឹក នៅ ទី", "ទាក នៃ ទា")])
def test_texts_that_differ_in_vowel_signs_are_not_the_same(tmp_path, problem, query):
    assert signs(index(problems(tmp_path, problem), near_duplicates=None), query, problem) == [None, "same text"]


def test_unusable_rows_of_evaluation_sets_are_counted_and_a_set_of_them_alone_is_an_error(world, query, tmp_path):
    queries = world.table(QUERIES, [query("0", "Who was Ada?")])
    made = problems(tmp_path, "Who was Ada?", "", name="one.jsonl"), problems(tmp_path, "a", "", name="two.jsonl")
    held_out = world.do(read_held_out, held_out=made)
    assert (held_out.rows, world.counts(held_out)) == (2, {"held-out rows passed over: empty": 2})
    found = world.do(
        find_contaminated, "contaminated", config=DecontaminateConfig(), held_out=held_out, queries=queries
    )
    assert world.counts(found) == {"problems": 2, "queries": 1}
    none = (made[0], problems(tmp_path, "", name="none.jsonl"))
    with pytest.raises(BadInput, match=r"none\.jsonl: none of its 1 rows has a query \(empty: 1\): set `layout`"):
        world.do(read_held_out, key="none", held_out=none)


def test_a_bad_row_of_an_evaluation_set_is_named(world, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"query": "good"}\n{"text": "bad"}\n')
    with pytest.raises(BadInput, match=r"bad\.jsonl, row 1: expected a field query"):
        world.do(read_held_out, held_out=[Source(path=str(tmp_path / "bad.jsonl"))])


# ---- real problems, real queries


@pytest.fixture(scope="module")
def real() -> Problems:
    sources = tuple(Source(path=str(BENCH / f"{name}.jsonl"), column=column) for name, column in REAL)
    config = DecontaminateConfig(held_out=sources)
    return Problems(config, [problem for source in sources for problem in problems_of(source)])


def one_word_changed(text: str, rng: random.Random) -> str:
    """The text with one of its words replaced."""
    parts = re.split(r"(\s+)", text.strip())
    parts[2 * rng.randrange((len(parts) + 1) // 2)] = "banana"
    return "".join(parts)


@real_texts
@pytest.mark.parametrize(
    "change",
    [
        lambda text, _: text,
        lambda text, rng: rng.choice(["\n", " \t ", "   "]).join(["", *text.split(), ""]),
        lambda text, rng: rng.choice([str.upper, str.lower, str.title, str.swapcase])(text),
        one_word_changed,
        lambda text, rng: one_word_changed(text, rng).swapcase().replace(" ", " \n"),
    ],
    ids=["verbatim", "re-spaced", "re-cased", "one word changed", "all at once"],
)
def test_planted_copies_of_all_problems_are_caught(real, change: Callable[[str, random.Random], str]):
    rng = random.Random(7)
    # shorter texts have too few words in common with a copy in which one is replaced
    whole = [p["query"] for p in real.rows if len(p["query"].split()) > 3 and len(words(p["query"])) > 3]
    some = rng.sample(whole, 1_000) + sorted(whole, key=len)[:300]
    missed = [text for text, hit in zip(some, real.hits([change(text, rng) for text in some]), strict=True) if not hit]
    assert not missed


@real_texts
@pytest.mark.parametrize("wrap", WRAPS)
def test_real_short_problems_are_found_in_other_text(real, wrap):
    short = [p["query"] for p in real.rows if 5 <= len(words(p["query"])) < 13]
    assert len(short) > 200
    assert None not in real.hits([wrap.format(text) for text in short])


@real_texts
def test_real_queries_are_kept(real):
    texts = [row["query"] for row in problems_of(Source(path=str(BENCH / "queries/wildchat-if.jsonl")))][:2_000]
    hits = Counter(hit[1] for hit in real.hits(texts) if hit)
    assert hits.total() < 0.01 * len(texts), hits
