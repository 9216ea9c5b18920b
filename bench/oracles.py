"""Compare our graders with the figures that the benchmarks' authors published: `python bench/oracles.py DATA`.

DATA is a folder with the authors' files. Prints one line per figure: as published, and as computed here. `tests/evals`
asserts the same, item by item.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from evals import arenahard, math_level5, mtbench, wildbench, zebralogic
from evals.style_control import Battles, Style, differences, style_controlled, win_rates
from infra.processes.limited import Limited, NoResult
from infra.text.markdown import markdown_table

BASELINE = "claude-3.7-sonnet"  # the baseline of the Arena-Hard fork whose verdicts are public


@dataclass(frozen=True)
class Line:
    benchmark: str
    figure: str
    published: str
    here: str


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def math500_lines(data: Path) -> Iterator[Line]:
    published = json.loads((data / "metrics_skythought.json").read_text())
    with Limited("evals.graders:math500", timeout_s=20, memory_bytes=4 << 30) as grade:
        for path in sorted(data.glob("outputs_*.jsonl")):
            answers = rows(path)
            given = [grade(row["response"], row["answer"]) for row in answers]
            right = [not isinstance(each, NoResult) and each["correct"] for each in given]
            agree = sum(a == row["score"] for a, row in zip(right, answers, strict=True))
            model = path.stem.removeprefix("outputs_")
            here = f"{100 * sum(right) / len(right):.1f}; {agree} of {len(right)} items agree"
            yield Line("MATH500", f"{model}: accuracy", f"{published[model]['acc']:.1f}", here)


def level5_lines(data: Path) -> Iterator[Line]:
    board = json.loads((data / "published_scoreboard.json").read_text())
    references = {row["id"]: math_level5.read(row, n).reference for n, row in enumerate(rows(data / "problems.jsonl"))}
    for path in sorted(data.glob("outputs_*.jsonl")):
        model = path.stem.removeprefix("outputs_")
        graded = [
            math_level5.grade(row["output"], references[row["id"]], boxed=math_level5.reads_boxes(model, row["output"]))
            for row in rows(path)
        ]
        shares = (sum(right for _, right in graded), sum(found is None for found, _ in graded))
        here = " / ".join(f"{100 * share / len(graded):.2f}" for share in shares)
        published = f"{board[model]['acc']} / {board[model]['no_answer']}"
        yield Line("MATH level 5", f"{model}: accuracy / no answer", published, here)


def zebra_lines(data: Path) -> Iterator[Line]:
    gold = {
        row["id"]: zebralogic.read(row, n).reference for n, row in enumerate(rows(data / "zebra_puzzles_gold.jsonl"))
    }
    boards = json.loads((data / "published_vs_held.json").read_text())
    for model, held in (("Llama-3.1-405B-Inst@sambanova", 224), ("Llama-3.1-405B-Inst@hyperbolic", 16)):
        answers = rows(data / f"outputs_{model.replace('@', '_at_')}.jsonl")[:held]
        found = zebralogic.figures((row["size"], zebralogic.grade(row["output"], gold[row["id"]])) for row in answers)
        board = boards[model]["published"]
        published = " / ".join(str(board[name]) for name in ("Puzzle Acc", "Cell Acc", "No answer"))
        here = f"{found.puzzle_accuracy:.2f} / {found.cell_accuracy:.2f} / {found.no_answer:.2f}"
        yield Line("ZebraLogic", f"{model}: puzzles / cells / no answer", published, here)


def mtbench_lines(data: Path) -> Iterator[Line]:
    single = rows(data / "gpt-4_single_ja.jsonl")
    agree = sum(mtbench.read_rating(row["judgment"]) == row["score"] for row in single)
    yield Line("MT-Bench", "ratings that are read as in the file", str(len(single)), str(agree))


def arena_lines(data: Path) -> Iterator[Line]:
    styles = {
        row["model"]: {key: Style(*counts) for key, counts in row["meta"].items()}
        for row in rows(data / "ko_style_metadata_72models.jsonl")
    }
    battles = []
    for row in rows(data / "ko_verdicts_76models.jsonl"):
        games = row["games"] * 2 if len(row["games"]) == 1 else row["games"]  # as the fork reads a single game
        lost, tied, won = arenahard.tally(games, "v0.1")
        ours, theirs = styles.get(row["model"], {}).get(row["question_id"]), styles[BASELINE].get(row["question_id"])
        differ = differences(ours, theirs, "v0.1") if ours and theirs else ()
        battles.append(Battles(row["model"], lost, tied, won, differ))
    for name, columns in (("no", None), ("style", slice(0, 4)), ("length", slice(0, 1)), ("markdown", slice(1, 4))):
        board = published_board(data / f"ko_leaderboard_20250423_{name}_control.csv")
        if columns is None:
            scores = win_rates(battles, "v0.1")
            equal = sum(round(100 * each.score, 2) == board[each.model] for each in scores)
            yield Line("Arena-Hard", "win rates to two decimals", str(len(board)), str(equal))
            continue
        held = [Battles(e.model, e.lost, e.tied, e.won, e.differences[columns]) for e in battles if e.differences]
        scores = style_controlled(held, "v0.1", BASELINE).scores
        worst = max(abs(100 * each.score - board[each.model]) for each in scores)
        yield Line("Arena-Hard", f"{name} control: points off at most", "0", f"{worst:.2f} ({len(scores)} models)")


def published_board(path: Path) -> dict[str, float]:
    return pd.read_csv(path, index_col="model")["score"].to_dict()


def wildbench_lines(data: Path) -> Iterator[Line]:
    board = json.loads((data / "published_score.json").read_text())
    for path in sorted(data.glob("score_gpt-4o_*.jsonl")):
        model = path.stem.removeprefix("score_gpt-4o_")
        scores = [wildbench.read_score(json.dumps(row["parsed_result"])) for row in rows(path)]
        found = wildbench.score_figures(wildbench.Rated([], "", score) for score in scores)
        published = f"{board[model]['score']:.4f} / {board[model]['adjusted_score']:.4f}"
        here = f"{found.mean:.4f} / {(found.score or 0) / 10:.4f}"
        yield Line("WildBench", f"{model}: mean / rescaled", published, here)
    pairs = json.loads((data / "published_pairwise_gpt4t_K-1.json").read_text())
    outcomes: tuple[wildbench.Outcome, ...] = get_args(wildbench.Outcome)
    rewards = {
        name: wildbench.reward({each: row[each] for each in outcomes}, row["total"]) for name, row in pairs.items()
    }
    equal = sum(abs(rewards[name] / 100 - row["reward"]) < 1e-9 for name, row in pairs.items())
    yield Line("WildBench", "pairwise rewards of all models", str(len(pairs)), str(equal))


def lines(data: Path) -> list[Line]:
    return [
        *math500_lines(data / "math500"),
        *level5_lines(data / "math_l5"),
        *zebra_lines(data / "zebra"),
        *mtbench_lines(data / "mtbench"),
        *arena_lines(data / "arenahard"),
        *wildbench_lines(data / "wildbench"),
    ]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(markdown_table([vars(line) for line in lines(Path(sys.argv[1]))]))
