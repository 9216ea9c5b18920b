from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import BadInput
from infra.store.schemas import QUERIES
from tasks.queries.draw import DrawConfig, quotas, subsample

TOPICS = ("coding", "maths", "writing")


@pytest.fixture
def thirty(query):
    return [query(f"q{n:02d}", difficulty=None, topic=TOPICS[n % 3]) for n in range(30)]


def drawn(world, rows, key="k", **config):
    made = world.do(subsample, key=key, config=DrawConfig(**config), queries=world.table(QUERIES, rows))
    counts = world.counts(made)
    assert counts["read"] == counts["kept"] + sum(n for name, n in counts.items() if name.startswith("dropped"))
    return [row["query_id"] for row in world.rows(made)], counts


def test_draws_with_skip_share_nothing_and_cover_all(make_world, thirty):
    draws = [drawn(make_world(f"w{skip}"), thirty, skip=skip, limit=10)[0] for skip in (0, 10, 20)]
    assert sorted(each for draw in draws for each in draw) == [row["query_id"] for row in thirty]
    assert draws[0] == sorted(draws[0])  # in the table's order
    assert draws[0] != [row["query_id"] for row in thirty[:10]]
    assert drawn(make_world("again"), thirty, limit=10)[0] == draws[0]
    assert drawn(make_world("seed"), thirty, limit=10, seed=1)[0] != draws[0]
    assert sorted(drawn(make_world("back"), thirty[::-1], limit=10)[0]) == draws[0]


def test_every_reason_is_counted(world, query, thirty):
    rows = [*thirty, query("easy", difficulty=4), query("hard", difficulty=5)]
    _, counts = drawn(world, rows, caps={"maths": 4}, skip=3, limit=20)
    assert counts == {
        "read": 32,
        "dropped: too easy": 1,
        "dropped: topic full": 6,
        "dropped: passed over": 3,
        "dropped: beyond the limit": 2,
        "kept": 20,
    }


def test_queries_without_a_reference_are_left_out_where_only_answers_are_rewarded(world, query, thirty):
    rows = [{**row, "reference": "7"} for row in thirty] + [query("none"), query("easy", difficulty=4)]
    kept, counts = drawn(world, rows, references_only=True)
    assert kept == [row["query_id"] for row in thirty]
    assert counts == {"read": 32, "dropped: too easy": 1, "dropped: no reference": 1, "kept": 30}


def test_weights_share_out_the_limit(world, thirty):
    kept, counts = drawn(world, thirty, weights={"coding": 3, "maths": 1}, limit=12)
    topics = [TOPICS[int(name[1:]) % 3] for name in kept]
    assert (topics.count("coding"), topics.count("maths"), topics.count("writing")) == (9, 3, 0)
    assert counts["dropped: topic not wanted"] == 10
    assert counts["dropped: beyond the limit"] == 8


def test_too_few_are_an_error_that_says_how_many(world, thirty):
    with pytest.raises(BadInput, match=r"31 queries are needed \(skip 26, then 5\), found 30 .*passed over.*lower"):
        drawn(world, thirty, skip=26, limit=5, min_queries=5)
    with pytest.raises(BadInput, match="1 queries are needed"):
        drawn(world, [])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"weights": {"a": 1}}, "set a limit"),
        ({"weights": {"a": 1}, "limit": 3, "skip": 1}, "cannot be combined with `skip`"),
        ({"weights": {"a": -1, "b": 2}, "limit": 3}, "weights: expected numbers >= 0"),
        ({"weights": {"a": 0}, "limit": 3}, "at least one of them > 0"),
        ({"caps": {"a": -1}}, "caps: expected numbers >= 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        DrawConfig(**config)


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(0, 30)),
    st.dictionaries(st.sampled_from("abcde"), st.sampled_from([0, 0.5, 1, 2, 7]), min_size=1),
    st.integers(1, 90),
)
def test_quotas_reach_the_limit_where_they_can(available, weights, limit):
    shares = quotas(available, weights, limit)
    wanted = {topic for topic, weight in weights.items() if weight}
    assert sum(shares.values()) == min(limit, sum(count for topic, count in available.items() if topic in wanted))
    assert all(0 <= share <= available[topic] for topic, share in shares.items())
    assert set(shares) <= wanted
