"""STILL-1 over seeds: the tables of reward models and searches."""

from __future__ import annotations

from tasks.report.mutual_study import (
    accuracy_rows,
    difference_rows,
    judge_rows,
    judges_of,
    mutual_tables,
    searches_of,
    searches_plot,
)


def searched(seed: int, policy: str, name: str, answer: str, accuracy: float | None) -> dict[str, object]:
    strategy = name.partition("-")[0]
    plain = {"budget": 100, "tokens": 100.0 + seed, "solutions": 4.0, "seconds": 2.0}
    return {
        "arm": "mutual", "seed": seed, "policy": policy, "name": name, "answer": answer, "strategy": strategy,
        "accuracy": accuracy, **plain,
    }  # fmt: skip


SEARCHES = [
    searched(seed, policy, name, answer, accuracy + seed / 100 + better)
    for seed in (1, 2, 3)
    for policy, better in (("adapted", 0.0), ("round-1", 0.1))
    for name, answer, accuracy in (
        ("sampling-4", "majority", 0.4),
        ("sampling-4", "best", 0.45),
        ("mctsg-4", "weighted", 0.5 + seed / 100),
    )
]
JUDGES = [
    {
        "arm": "mutual",
        "seed": seed,
        "round": 1,
        "accuracy": 0.8,
        "auroc": 0.9 + seed / 100,
        "auroc_within": 0.5,
        "calibration_error": 0.1,
        "by_topic": {"days": {"auroc": 0.7}, "months": {"auroc": None}},
    }
    for seed in (1, 2, 3)
]


def test_searches_have_a_row_each_and_a_column_for_each_policy() -> None:
    rows = accuracy_rows(SEARCHES)
    assert [(row["search"], row["answer"]) for row in rows] == [
        ("sampling-4", "majority"),
        ("sampling-4", "best"),
        ("mctsg-4", "weighted"),
    ]
    assert rows[0]["adapted"] == "0.420 (0.395 to 0.445)"
    assert rows[0]["round-1"].startswith("0.520 (")
    assert (rows[0]["tokens"], rows[0]["seconds"]) == ("102", "2.0")


def test_differences_are_taken_seed_by_seed_at_the_same_budget() -> None:
    rows = {row["difference, points"]: row for row in difference_rows(SEARCHES)}
    assert set(rows) == {"mctsg - best of n", "mctsg - majority vote", "best of n - majority vote"}
    assert rows["best of n - majority vote"]["adapted"] == "5.0 (5.0 to 5.0)"
    assert rows["mctsg - best of n"]["all"] == "7.0 (4.5 to 9.5)"
    assert rows["mctsg - best of n"]["tokens"] == "100"


def test_reward_models_have_a_row_for_each_round() -> None:
    (row,) = judge_rows(JUDGES)
    assert row["AUROC"] == "0.920 (0.895 to 0.945)"
    assert (row["AUROC, days"], row["AUROC, months"]) == ("0.700", "")


def test_the_rows_of_a_cell_are_those_of_its_summary() -> None:
    search = {"policy": "adapted", "name": "mctsg-4", "answer": "best", "tokens": 1, "solutions": 1, "seconds": 1}
    summary = {
        "searches": [{**search, "accuracy": None, "search": {"strategy": "mctsg", "tokens": 100}, "problems": 5}],
        "rounds": [{"held_out": {"accuracy": 0.5}}],
    }
    assert searches_of(summary, "a", 1) == [
        {"arm": "a", "seed": 1, "strategy": "mctsg", "budget": 100, **search, "accuracy": None}
    ]  # fmt: skip
    assert judges_of(summary, "a", 1) == [{"arm": "a", "seed": 1, "round": 1, "accuracy": 0.5}]


def test_a_page_without_grades_or_of_another_method_has_no_such_tables() -> None:
    assert mutual_tables({}) == []
    assert mutual_tables({"searches": [{**row, "accuracy": None} for row in SEARCHES]}) == []
    assert len(mutual_tables({"searches": SEARCHES, "judges": JUDGES})) == 6
    assert searches_plot([], "mutual") is None
    svg = searches_plot(SEARCHES, "mutual")
    assert svg is not None
    assert b"mctsg, weighted" in svg


def test_a_policy_that_a_seed_lacks_is_not_compared() -> None:
    rows = [row for row in SEARCHES if not (row["seed"] == 3 and row["policy"] == "round-1")]
    found = {row["difference, points"]: row for row in difference_rows(rows)}
    assert found["mctsg - best of n"]["all"] == found["mctsg - best of n"]["adapted"] == "7.0 (4.5 to 9.5)"
    assert "round-1" not in found["mctsg - best of n"]


def test_topics_of_all_arms_are_columns_and_their_names_do_nothing() -> None:
    other = {**JUDGES[0], "arm": "other", "by_topic": {"x|<img src=x>": {"auroc": 0.6}}}
    rows = judge_rows([*JUDGES, other])
    assert rows[0].keys() == rows[1].keys()
    assert not any("<" in name.replace("\\<", "") or "|" in name.replace("\\|", "") for name in rows[1])
