from __future__ import annotations

import pytest
import yaml

from infra.store.manifest import BadArtifact, Provenance
from infra.store.schemas import QUERIES, RESPONSES, SCORES
from infra.store.tables import write_table
from tasks.report.dataset_card import ancestors, dataset_card, size_category
from tasks.rewards.select import SelectConfig, select

HOSTILE = "<script>alert(1)</script> | [x](javascript:y)\n# ```"


@pytest.fixture
def longcot(world, model, query, response):
    """A LongCoT table with all its ancestors; topics, sources and licences are hostile."""

    def table(step, schema, rows, counts, key="k", config=None, **inputs):
        provenance = Provenance(
            inputs={name.replace("__", "/"): ref for name, ref in inputs.items()}, config=config or {}
        )
        return write_table(world.store, step, key, schema, [rows], provenance, counts=counts)

    mined = [query(name, topic=HOSTILE if name == "a" else None, source=HOSTILE) for name in "abc"]
    config = {"source": {"path": "/home/someone/secret/set.jsonl", "licence": HOSTILE}}
    queries = table("queries", QUERIES, mined, {"read": 5, "kept": 3, "dropped: empty": 2}, config=config)
    rows = [response(name, n) for name in "abc" for n in range(2)]
    shards = {
        f"responses__{n}": table(
            "responses",
            RESPONSES,
            rows[n::2],
            {"truncated": n + 1},
            f"k{n}",
            {"samples": 2},
            queries=queries,
            model=model,
        )
        for n in range(2)
    }
    fenced = {"special_tokens": True, "note": "```"}
    filtered = table("filtered", RESPONSES, rows, {"read": 6, "kept": 6}, config=fenced, queries=queries, **shards)
    values = {"reward_model": "m", "format_reward": 1.0, "total": 2.0}
    found = [
        {**values, "query_id": r["query_id"], "sample": r["sample"], "reward": float(n)} for n, r in enumerate(rows)
    ]
    rewards = table("rewards", SCORES, found, {"scored": 6}, responses__0=filtered, reward_model=model)
    scores = table("scores", SCORES, found, {"scored": 6}, rewards__0=rewards)
    inputs = {"scores": scores, "queries": queries}
    given = {"config": SelectConfig(), "responses": [filtered], **inputs}
    return world.do(select, name="longcot", inputs={**inputs, "responses/0": filtered}, **given)


def parts_of(card: str) -> tuple[dict, dict[str, str]]:
    """The front matter, and the sections by title."""
    _, head, body = card.split("---\n", 2)
    sections = dict(part.split("\n\n", 1) for part in body.split("\n## ")[1:])
    return yaml.safe_load(head), sections


def test_the_card_shows_what_is_in_the_manifests(world, longcot):
    head, sections = parts_of(dataset_card(ancestors(world.store, longcot), "apache-2.0"))
    assert head["license"] == "apache-2.0"
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert "| wrote the responses | nano |" in sections["Made with"]
    assert "| scored the solutions | nano |" in sections["Made with"]
    assert "| set\\.jsonl |" in sections["Sources"]
    lines = sections["Funnel"].splitlines()
    for line in ("| queries | dropped: empty | 2 |", "| responses | truncated | 3 |", "| responses | rows | 6 |"):
        assert line in lines
    assert "| longcot | below the percentile | 2 |" in lines
    assert "| longcot | kept | 2 |" in lines
    assert "| reward | 4 | " in sections["Rewards and lengths of the rows"]
    assert "| (none) | 2 | 100.0% |" in sections["Topics"]
    assert '"percentile"' not in sections["Settings"]  # the test's plan has no settings of `longcot`
    assert '"samples": 2' in sections["Settings"]
    assert longcot.digest[:16] in sections["Provenance"]


def test_only_manifests_are_read(world, longcot):
    for path in world.store.list():
        if path.endswith(".parquet"):
            world.store.delete(path)
    assert "2 rows." in dataset_card(ancestors(world.store, longcot))


def test_what_users_wrote_is_escaped_and_folders_are_not_shown(world, longcot):
    card = dataset_card(ancestors(world.store, longcot))
    _, sections = parts_of(card)
    assert "<script>" not in card
    assert "/home/someone" not in card
    assert r"\<script\>alert\(1\)\</script\> \| \[x\]\(javascript:y\) \# \`\`\`" in sections["Sources"]
    assert sections["Settings"].count("```") == 2


def test_missing_ancestors_are_left_out_but_the_table_itself_must_exist(world, longcot):
    world.store.delete("queries/k/manifest.json")
    made = ancestors(world.store, longcot)
    assert "queries" not in {each.step for each in made}
    assert "## Sources" not in dataset_card(made)
    world.store.delete(f"{longcot.step}/{longcot.key}/manifest.json")
    with pytest.raises(BadArtifact):
        ancestors(world.store, longcot)


def test_size_categories_are_the_hubs():
    assert [size_category(n) for n in (0, 999, 1_000, 220_000, 5_000_000)] == [
        "n<1K",
        "n<1K",
        "1K<n<10K",
        "100K<n<1M",
        "n>1M",
    ]
