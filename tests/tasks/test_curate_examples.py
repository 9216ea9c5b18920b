from __future__ import annotations

from pathlib import Path

import pytest

from infra.keys import PROJECT_ROOT
from tasks.curate_examples import BadInput, ExamplesConfig, curate_examples, example_files, read_example

GOOD = """---
topic: planning
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
    assert example["topic"] == "planning"
    assert example["query"] == "How do I pack ?"
    assert example["thoughts"].startswith("Goal: find")
    assert example["solution"].endswith("More of the solution.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("---\ntopic", "topic"), "front matter between two lines"),
        (("topic: planning", "topic: [planning"), "no YAML"),
        (("topic: planning", "subject: planning"), "must name a topic"),
        (("topic: planning", "topic: 3"), "must name a topic"),
        (("## Thoughts\n", "## Ideas\n"), "found ## Query, ## Solution"),
        (("## Thoughts\n", "## Query\n"), "found ## Query, ## Query, ## Solution"),
        (("How do I pack ?", " "), "section '## Query' is empty"),
        (("\nHow do I pack ?\n\n", ""), "section '## Query' is empty"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, change, said):
    assert change[0] in GOOD
    path = written(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(BadInput, match=r"one\.md") as error:
        read_example(path)
    assert said in str(error.value)


def test_sections_in_another_order_are_refused(tmp_path):
    swapped = GOOD.replace("## Query", "## X").replace("## Thoughts", "## Query").replace("## X", "## Thoughts")
    with pytest.raises(BadInput, match="in order, found ## Thoughts, ## Query, ## Solution"):
        read_example(written(tmp_path, swapped))


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "latin.md"
    path.write_bytes(GOOD.replace("Take", "Néhme").encode("latin-1"))
    with pytest.raises(BadInput, match=r"latin\.md: the file is not UTF-8"):
        read_example(path)


def test_the_step_writes_the_table_in_name_order_and_counts_topics(world, tmp_path):
    folder = tmp_path / "examples"
    written(folder, GOOD, "b.md")
    written(folder, GOOD.replace("planning", "maths"), "a.md")
    made = world.do(curate_examples, config=ExamplesConfig(folder=folder, least_actions=4))
    assert [(row["example_id"], row["topic"]) for row in world.rows(made)] == [("a", "maths"), ("b", "planning")]
    assert world.rows(made)[0]["actions"] == ["analysis", "branching", "planning", "reflection"]
    assert world.counts(made) == {"topics": {"maths": 1, "planning": 1}}


def test_an_example_that_can_not_serve_stops_the_step(world, tmp_path):
    folder = tmp_path / "examples"
    written(folder, GOOD.replace(" Alternatively, take two.", ""))
    with pytest.raises(BadInput, match=r"one\.md: section Thoughts shows 3 of the four .*at least 4"):
        world.do(curate_examples, config=ExamplesConfig(folder=folder, least_actions=4))
    written(folder, GOOD.replace("Take one bag.", "Write </think> here."))
    world.do(curate_examples, config=ExamplesConfig(folder=folder))
    written(folder, GOOD.replace("Take one bag.", "Write </internal_thoughts> here."))
    with pytest.raises(BadInput, match=r"one\.md: .*the solution contains the delimiter </internal_thoughts>"):
        world.do(curate_examples, key="other", config=ExamplesConfig(folder=folder))


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(BadInput, match="nowhere is missing or holds no"):
        example_files(ExamplesConfig(folder=tmp_path / "nowhere"))


@pytest.mark.parametrize("folder", ["examples", "nano/examples"])
def test_shipped_examples_serve(world, folder):
    if not (PROJECT_ROOT / folder).is_dir():
        pytest.skip(f"{folder} is not here yet")
    made = world.do(curate_examples, config=ExamplesConfig(folder=PROJECT_ROOT / folder, least_actions=3))
    assert made.rows == 10


def test_plain_is_no_format_for_examples(tmp_path):
    with pytest.raises(ValueError, match="format"):
        ExamplesConfig(folder=tmp_path, format="plain")
