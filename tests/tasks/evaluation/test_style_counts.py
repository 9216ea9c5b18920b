from __future__ import annotations

from fakes import TinyServers

from evals.style_control import Style, style_of
from infra.store.schemas import BASELINES, RESPONSES
from tasks.evaluation.style_counts import count_styles


def test_both_sides_are_counted_with_the_models_tokenizer(world, model, response):
    text = "# plan\n\n- one step\n- two\n\n**answer** is 4"
    rows = [response("b", solution=None, thoughts="# a\n# b"), response("a", solution=text, thoughts="- x", text="- y")]
    texts = {"a": "today is mon", "b": "1. one\n2. two", "c": "__no__ answer"}  # c was quarantined: no response
    baselines = [{"query_id": name, "model": "base", "text": text} for name, text in texts.items()]
    made = world.do(
        count_styles,
        responses=[world.table(RESPONSES, [row], key=f"k{n}") for n, row in enumerate(rows)],
        baselines=world.table(BASELINES, baselines, "baselines"),
        model=model,
        servers=TinyServers(world.work_dir),
    )
    found = {
        row.pop("query_id"): [
            Style(*(row[f"{side}{name}"] for name in ("tokens", "headers", "lists", "bold")))
            for side in ("", "baseline_")
        ]
        for row in world.rows(made)
    }
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == [Style(10, 1, 2, 1), Style(3, 0, 0, 0)]
    assert found["b"] == [Style(0, 0, 0, 0), Style(4, 0, 2, 0)]
    assert found["c"] == [Style(0, 0, 0, 0), Style(2, 0, 0, 1)]
    assert found["a"][0] == style_of(text, 10)
