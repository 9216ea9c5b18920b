"""Arena-Hard's figures from battles: win rates against the baseline, plain and style-controlled.

Source of the rules: lmarena/arena-hard-auto (Apache-2.0). v0.1: show_result.py, utils_math.py and the Bradley-Terry
model of Chatbot Arena; v2.0: show_result.py, utils/math_utils.py, utils/add_markdown_info.py. With a single baseline,
the Bradley-Terry fit of v0.1 gives every model exactly its weighted win rate, so plain win rates need no fit.

Style control fits the strengths of all models and one coefficient per covariate together. The covariates are centred on
their mean over all battles, so a score is the win rate at that mean difference in style, not at equal style. For a
single model the mean is its own style, so nothing is controlled for: style control only makes sense with several models
of different style.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special  # type: ignore[import-untyped]

Version = Literal["v0.1", "v2.0"]
Array = NDArray[np.float64]

RESAMPLES = 100
QUANTILES: dict[Version, tuple[float, float]] = {"v0.1": (0.025, 0.975), "v2.0": (0.05, 0.95)}
"""The ends of the bootstrap interval: 95 % and 90 %."""

_CODE = re.compile(r"```([^`]*)```")
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
# The authors' `^\s*` also spans line breaks: it finds the same, but in quadratic time on blank lines.
_ORDERED = re.compile(r"^[^\S\n]*\d+\.\s", re.MULTILINE)
_UNORDERED = re.compile(r"^[^\S\n]*[-*+]\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_BOLD_TOO = re.compile(r"__[^_\n]+__")


@dataclass(frozen=True)
class Style:
    """The style of an answer, as far as it is controlled for."""

    tokens: int
    """The authors count them with tiktoken's encoding for gpt-4o."""
    headers: int
    lists: int
    """List items, ordered and unordered."""
    bold: int


@dataclass(frozen=True)
class Battles:
    """A model's battles against the baseline on one question: the numbers it lost, tied and won."""

    model: str
    lost: int
    tied: int
    won: int
    differences: tuple[float, ...] = ()
    """The covariates to control for: all or some of those that the function `differences` returns."""


@dataclass(frozen=True)
class Score:
    """A model's win rate against the baseline with its bootstrap interval, from 0 to 1 (published in percent)."""

    model: str
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class StyleControl:
    """Scores at the mean difference in style, and the judge's preference for style."""

    scores: list[Score]
    """Best first."""
    coefficients: tuple[float, ...]
    """For each covariate, the change in log odds of winning per standard deviation."""


_UNIT: dict[Version, float] = {"v0.1": log(10), "v2.0": 1.0}  # unit of the fitted strengths, in log odds
_PENALTY: dict[Version, float] = {"v0.1": 0.5, "v2.0": 0.0}  # L2; v0.1: scikit-learn's C = 1 with every battle twice
# The defaults of scikit-learn's LogisticRegression, which stops as soon as no mean gradient exceeds 1e-4. That is a
# little early (by up to 0.24 points of a score in the tests' data), but the published scores of v0.1 were fitted so.
_PUBLISHED: dict[str, Any] = {
    "method": "L-BFGS-B",
    "options": {"gtol": 1e-4, "ftol": 64 * np.finfo(float).eps, "maxiter": 100, "maxls": 50},
}
# For v2.0 and for all resamples; converges to 0.001 points of a score. L-BFGS-B would call LAPACK, whose threads take
# most of its time on busy cores.
_CONVERGED: dict[str, Any] = {"method": "TNC", "options": {"gtol": 1e-6, "ftol": 1e-10, "maxfun": 3000}}


def style_of(answer: str, tokens: int) -> Style:
    """The style of an answer of `tokens` tokens, with its markdown counted as the authors count it. Raises nothing.

    Their rule for code is kept, since published counts are based on it: the content of a block in three backquotes is
    deleted, and so is the same text anywhere else in the answer. This takes time in proportion to the answer's length
    times the number of different blocks: about a second for 150,000 characters of short blocks.
    """
    text = _without_code(answer)
    return Style(
        tokens=tokens,
        headers=len(_HEADER.findall(text)),
        lists=len(_ORDERED.findall(text)) + len(_UNORDERED.findall(text)),
        bold=len(_BOLD.findall(text)) + len(_BOLD_TOO.findall(text)),
    )


def differences(model: Style, baseline: Style, version: Version) -> tuple[float, float, float, float]:
    """The covariates of one question: relative differences, model - baseline, in tokens, headers, list items and bold.

    v0.1: (a - b) / (a + b + 1) for all counts. v2.0: (a - b) / (a + b) for the tokens, 0 if both are 0; and
    (a - b) / (a + b + 1) for the other counts, each divided by its answer's tokens + 1.
    """
    counts = [(model.headers, baseline.headers), (model.lists, baseline.lists), (model.bold, baseline.bold)]
    a, b = model.tokens, baseline.tokens
    if version == "v0.1":
        first, *rest = ((x - y) / (x + y + 1) for x, y in [(a, b), *counts])
    else:
        first = (a - b) / (a + b) if a + b else 0.0
        dense = ((x / (a + 1), y / (b + 1)) for x, y in counts)
        rest = [(x - y) / (x + y + 1) for x, y in dense]
    return first, rest[0], rest[1], rest[2]


def win_rates(battles: Sequence[Battles], version: Version) -> list[Score]:
    """Every model's share of battles won, with a tie as half, best first; a model without battles has no score.

    As in the authors' programs, the bootstrap resamples battles, although those of one question are not independent.
    v0.1 draws from the battles of all models, v2.0 from each model's own.
    """
    names, index, counts = _table(battles)
    if not names:
        return []
    cells = np.zeros((len(names), 3))
    np.add.at(cells, index, counts)
    totals = cells.sum(axis=1)
    rng = np.random.default_rng(0)
    if version == "v0.1":
        everyone = rng.multinomial(int(totals.sum()), cells.ravel() / totals.sum(), RESAMPLES)
        drawn = everyone.reshape(RESAMPLES, len(names), 3)
    else:
        own = [rng.multinomial(int(total), row / total, RESAMPLES) for total, row in zip(totals, cells, strict=True)]
        drawn = np.stack(own, axis=1)
    with np.errstate(invalid="ignore"):  # nan if no battle of a model was drawn
        resampled = (drawn[..., 2] + drawn[..., 1] / 2) / drawn.sum(axis=2)
    return _scores(names, (cells[:, 2] + cells[:, 1] / 2) / totals, resampled, version)


def style_controlled(battles: Sequence[Battles], version: Version, baseline: str | None = None) -> StyleControl:
    """Every model's win rate against the baseline at the mean difference in style, with the fitted coefficients.

    A model without battles has no score, and a covariate that never varies has the coefficient 0. The covariates are
    standardised once over all battles, and the resamples use these values, as in the authors' programs.
    `baseline` names the baseline if it is among the models, as in some files: as in the authors' program, its battles
    against itself are part of the fit but give no score.

    Raises:
        ValueError: the battles have no covariates, or different numbers of them.
    """
    fought = [each for each in battles if each.lost + each.tied + each.won]
    widths = {len(each.differences) for each in fought}
    if fought and (len(widths) != 1 or widths == {0}):
        raise ValueError(
            f"expected the same number (> 0) of differences in style for all battles, found {sorted(widths)}"
        )
    names, index, counts = _table(fought, last=baseline or "")
    if len(names) == 1:
        return StyleControl([], ())
    covariates = _standardised(np.array([each.differences for each in fought]), counts.sum(axis=1), version)
    data = index, covariates, len(names), version
    strengths, coefficients = _fit(counts, *data, _PUBLISHED if version == "v0.1" else _CONVERGED)
    resampled = np.array([_fit(drawn, *data, _CONVERGED)[0] for drawn in _resamples(counts)])
    scores = _scores(names[:-1], special.expit(strengths), special.expit(resampled), version)
    return StyleControl(scores, tuple(coefficients.tolist()))


def interval(resampled: Array, version: Version) -> Array:
    """The low and the high end of the interval of every column; nan values are ignored."""
    ends: Array = np.nanquantile(resampled, QUANTILES[version], axis=0)
    return ends


def _without_code(answer: str) -> str:
    absent: set[str] = set()
    for content in _CODE.findall(answer):
        if content and content not in absent:
            shorter = answer.replace(content, "")
            if len(shorter) == len(answer):
                absent.add(content)
            else:
                answer, absent = shorter, set()  # what remains may contain any of them again
    return answer


def _table(battles: Sequence[Battles], last: str | None = None) -> tuple[list[str], NDArray[np.intp], Array]:
    """The names of the models that have battles; and for every row with battles, its model's index and its counts.

    `last` is put last among the models, whether it has battles or not.
    """
    fought = [each for each in battles if each.lost + each.tied + each.won]
    names = sorted({each.model for each in fought} - {last}) + ([] if last is None else [last])
    number = {name: position for position, name in enumerate(names)}
    index = np.array([number[each.model] for each in fought], dtype=np.intp)
    counts = np.array([(each.lost, each.tied, each.won) for each in fought], dtype=np.float64).reshape(-1, 3)
    return names, index, counts


def _standardised(raw: Array, weights: Array, version: Version) -> Array:
    """The standard scores of the columns over all battles; 0 in a column that does not vary."""
    total = weights.sum()
    centred = raw - weights @ raw / total
    degrees = total if version == "v0.1" else max(total - 1, 1)
    deviation = np.sqrt(weights @ centred**2 / degrees)
    varies = deviation > 1e-12
    scaled = np.where(varies, centred / np.where(varies, deviation, 1), 0.0)
    return np.asfortranarray(scaled)


def _fit(
    counts: Array, index: NDArray[np.intp], covariates: Array, models: int, version: Version, how: Mapping[str, Any]
) -> tuple[Array, Array]:
    """Maximum likelihood fit: log odds of every model against the baseline, which is the last one; and coefficients.

    The log odds are those at covariates of 0, nan if a model has no battles. For the baseline's battles against itself,
    the odds are its own strength rather than 0, as in the authors' matrix, where -1 overwrites 1.
    (Sums and einsum are used instead of @: BLAS would start threads, which cost more than they gain.)
    """
    unit, penalty = _UNIT[version], _PENALTY[version]
    total = counts.sum()
    fought = counts.sum(axis=1)
    won = counts[:, 2] + counts[:, 1] / 2
    others = unit * (index != models - 1)

    def loss(parameters: Array) -> tuple[float, Array]:
        strengths, coefficients = parameters[:models], parameters[models:]
        odds = unit * strengths[index] - others * strengths[-1] + np.einsum("ij,j->i", covariates, coefficients)
        tail = np.exp(-np.abs(odds))
        residual = fought * np.where(odds < 0, tail, 1) / (1 + tail) - won
        gradient = penalty * parameters
        gradient[:models] += unit * np.bincount(index, residual, models)
        gradient[models - 1] -= (others * residual).sum()
        gradient[models:] += np.einsum("i,ij->j", residual, covariates)
        value = (fought * (np.maximum(odds, 0) + np.log1p(tail)) - won * odds).sum()
        return float(value + penalty / 2 * (parameters**2).sum()) / total, gradient / total

    start = np.zeros(models + covariates.shape[1])
    found: Array = optimize.minimize(loss, start, jac=True, **how).x
    strengths = np.where(np.bincount(index, fought, models) > 0, unit * (found[:models] - found[models - 1]), np.nan)
    return strengths[:-1], found[models:]


def _resamples(counts: Array) -> Iterator[Array]:
    """Bootstrap resamples of `counts`: the same number of battles, drawn from all with replacement."""
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(counts.size), counts.astype(np.intp).ravel())
    for _ in range(RESAMPLES):
        drawn = cell[rng.integers(len(cell), size=len(cell))]
        yield np.bincount(drawn, minlength=counts.size).reshape(counts.shape).astype(np.float64)


def _scores(names: Sequence[str], points: Array, resampled: Array, version: Version) -> list[Score]:
    low, high = interval(resampled, version)
    rows = (Score(*row) for row in zip(names, points.tolist(), low.tolist(), high.tolist(), strict=True))
    return sorted(rows, key=lambda row: (-row.score, row.model))
