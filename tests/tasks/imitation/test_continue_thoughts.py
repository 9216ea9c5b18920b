"""Solutions written after thoughts that have none."""

from __future__ import annotations

from fakes import TinyServers, completions

from infra.store.schemas import DISTILLED
from infra.text.chat import load_tokenizer
from nano.vocabulary import tokenizer
from tasks.imitation.continue_thoughts import continue_thoughts, continued_prompt
from tasks.responses.generate import GenerateConfig

CONFIG = GenerateConfig(samples=1, temperature=0, max_tokens=20, format="bolt", request_seeds=False, in_flight=1)


def text(number, **changes):
    plain = {"query_id": f"q{number}", "sample": 0, "query": "which day is it ?", "topic": None, "source": "f"}
    plain |= {"source_row": number, "thoughts": "plan : one .", "solution": None, "violations": [], "continued": True}
    return {**plain, "thought_tokens": 4, "solution_tokens": 0, **changes}


def test_solutions_are_written_after_the_thoughts(world, model, serve):
    replies = iter(
        ["answer : 1 .\n</external_solution>", "answer : 2", "no close", "answer : 4 .\n</external_solution>"]
    )
    reasons = iter(["stop", "length", "stop", "stop"])
    server = serve(completions=completions(lambda _: (next(replies), next(reasons))))
    servers = TinyServers(world.work_dir, server)
    rows = [*map(text, range(3)), text(3, solution="answer : 9 .", continued=False), text(4)]
    given = world.table(DISTILLED, rows, "distilled")
    made = world.do(
        continue_thoughts,
        config=CONFIG.model_copy(update={"max_truncated_share": 0.5}),
        distilled=given,
        model=model,
        servers=servers,
    )
    assert [(row["query_id"], row["solution"], row["solution_tokens"]) for row in world.rows(made)] == [
        ("q0", "answer : 1 .", 4),
        ("q4", "answer : 4 .", 4),
    ]
    assert world.counts(made) == {
        "read": 4,
        "kept": 2,
        "dropped: truncated": 1,
        "dropped: malformed: unclosed_solution": 1,
    }
    prompt = tokenizer().decode(server.asked[0]["prompt"])
    assert prompt.endswith("<|assistant|> <internal_thoughts> plan : one . </internal_thoughts> <external_solution>")


def test_what_the_template_opens_is_not_repeated(world, opening_model):
    opened = opening_model("<internal_thoughts>\n")
    folder = world.store.local_path(f"{opened.step}/{opened.key}")
    prompt = continued_prompt(load_tokenizer(folder), text(0), "bolt")
    assert prompt.count("<internal_thoughts>") == 1
    assert prompt.endswith("<internal_thoughts>\nplan : one .\n</internal_thoughts>\n\n<external_solution>\n")


def test_with_nothing_to_continue_the_table_is_empty(world, model):
    given = world.table(DISTILLED, [text(0, solution="x", continued=False)], "distilled")
    made = world.do(continue_thoughts, config=CONFIG, distilled=given, model=model, servers=TinyServers(world.work_dir))
    assert made.rows == 0
