"""Arena-Hard's figures from battles: win rates against the baseline, and the same with the answers' style controlled.

Source of the rules: lmarena/arena-hard-auto (Apache-2.0). v0.1: show_result.py, utils_math.py and the Bradley-Terry
model of Chatbot Arena; v2.0: show_result.py, utils/math_utils.py, utils/add_markdown_info.py. With a single baseline
the Bradley-Terry fit of v0.1 gives every model just its weighted win rate, so that nothing is fitted without style.

Style control fits all models' strengths and one coefficient a covariate together. The covariates are centred on their
mean over all battles, so a score tells of the win rate at that mean difference of style, not at equal style: with a
single model it is nearly its plain win rate, and it says something only of several models that differ in style.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

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
# The authors' `^\s*` spans lines, which finds the same but takes quadratic time on blank lines.
_ORDERED = re.compile(r"^[^\S\n]*\d+\.\s", re.MULTILINE)
_UNORDERED = re.compile(r"^[^\S\n]*[-*+]\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_BOLD_TOO = re.compile(r"__[^_\n]+__")


@dataclass(frozen=True)
class Style:
    """What style control knows of an answer."""

    tokens: int
    """The authors count with tiktoken's encoding of gpt-4o."""
    headers: int
    lists: int
    """List items, ordered and unordered."""
    bold: int


@dataclass(frozen=True)
class Battles:
    """A model's battles against the baseline on one question: how many it lost, tied and won."""

    model: str
    lost: int
    tied: int
    won: int
    differences: tuple[float, ...] = ()
    """The covariates that are controlled for: all or some of `differences`."""


@dataclass(frozen=True)
class Score:
    """A model's win rate against the baseline with its bootstrap interval, in 0..1 (published in percent)."""

    model: str
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class StyleControl:
    """Scores at the mean difference of style, and what the judge's favour for style is."""

    scores: list[Score]
    """Best first."""
    coefficients: tuple[float, ...]
    """Log odds of winning for one standard deviation more of each covariate."""


@dataclass(frozen=True)
class _Fit:
    """How a version fits: the unit of the strengths, the L2 penalty, and when L-BFGS stops."""

    unit: float
    penalty: float
    options: dict[str, float]


# v0.1: scikit-learn's LogisticRegression(fit_intercept=False) as it is set by default, on every battle twice: C = 1,
# and L-BFGS ends as soon as no mean gradient is over 1e-4. That is a little early, and the published scores have it so.
# v2.0: no penalty; PyTorch's L-BFGS with tolerances of 1e-9.
_FITS: dict[Version, _Fit] = {
    "v0.1": _Fit(log(10), 0.5, {"gtol": 1e-4, "ftol": 64 * np.finfo(float).eps, "maxiter": 100, "maxls": 50}),
    "v2.0": _Fit(1.0, 0.0, {"gtol": 1e-9, "ftol": 0.0, "maxiter": 1000, "maxls": 50}),
}


def style_of(answer: str, tokens: int) -> Style:
    """The style of an answer of so many tokens, its markdown counted as the authors do. Raises nothing.

    Their rule for code, kept since published counts have it: what stands in a block of three backquotes is deleted, and
    so is the same text anywhere else in the answer.
    """
    text = _without_code(answer)
    return Style(
        tokens=tokens,
        headers=_count(_HEADER, text),
        lists=_count(_ORDERED, text) + _count(_UNORDERED, text),
        bold=_count(_BOLD, text) + _count(_BOLD_TOO, text),
    )


def differences(model: Style, baseline: Style, version: Version) -> tuple[float, float, float, float]:
    """The covariates of one question: relative differences in tokens, headers, list items and bold, model - baseline.

    v0.1: (a - b) / (a + b + 1) of all counts. v2.0: (a - b) / (a + b) of the tokens, 0 where both are empty, and
    (a - b) / (a + b + 1) of the counts per token + 1.
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
    """Every model's share of battles won, a tie half, best first; a model without battles has no score.

    The interval is over battles, as the authors have it, though those of one question hang together; v0.1 draws them
    from all models', v2.0 from each model's own.
    """
    names, index, counts = _table(battles)
    cells = np.zeros((len(names), 3))
    np.add.at(cells, index, counts)
    totals = cells.sum(axis=1)
    rng = np.random.default_rng(0)
    if version == "v0.1":
        shares = cells.ravel() / max(cells.sum(), 1)
        drawn = rng.multinomial(int(cells.sum()), shares, RESAMPLES).reshape(RESAMPLES, -1, 3)
    else:
        drawn = np.stack(
            [rng.multinomial(int(n), row / n, RESAMPLES) for n, row in zip(totals, cells, strict=True)] or [cells],
            axis=1,
        )
    with np.errstate(invalid="ignore"):  # no battle of a model among those drawn: nan
        resampled = (drawn[..., 2] + drawn[..., 1] / 2) / drawn.sum(axis=2)
    return _scores(names, (cells[:, 2] + cells[:, 1] / 2) / totals, resampled, version)


def style_controlled(battles: Sequence[Battles], version: Version) -> StyleControl:
    """Every model's win rate at the mean difference of style, with what was fitted for style.

    A model without battles has no score, and a covariate that never varies has the coefficient 0. The standard scores
    of the covariates are taken over all battles once, and the resamples use them, as the authors' do.

    Raises:
        ValueError: the battles have no covariates, or not all the same number of them.
    """
    fought = [each for each in battles if each.lost + each.tied + each.won]
    widths = {len(each.differences) for each in fought}
    if fought and (len(widths) != 1 or widths == {0}):
        raise ValueError(f"expected as many differences in style for all battles, at least one, found {sorted(widths)}")
    names, index, counts = _table(fought)
    if not names:
        return StyleControl([], ())
    covariates = _standardised(np.array([each.differences for each in fought]), counts.sum(axis=1), version)
    strengths, coefficients = _fit(index, counts, covariates, len(names), version)
    resampled = np.array(
        [
            np.where(_drawn_any(index, drawn, len(names)), _fit(index, drawn, covariates, len(names), version)[0], np.nan)
            for drawn in _resamples(counts)
        ]
    )
    scores = _scores(names, special.expit(strengths), special.expit(resampled), version)
    return StyleControl(scores, tuple(coefficients.tolist()))


def interval(resampled: Array, version: Version) -> Array:
    """The low and the high end for every column; resamples where it is nan do not count."""
    ends: Array = np.nanquantile(resampled, QUANTILES[version], axis=0)
    return ends


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def _without_code(answer: str) -> str:
    absent: set[str] = set()
    for content in _CODE.findall(answer):
        if content and content not in absent:
            shorter = answer.replace(content, "")
            if len(shorter) == len(answer):
                absent.add(content)
            else:
                answer, absent = shorter, set()  # what is left may spell any content anew
    return answer


def _table(battles: Sequence[Battles]) -> tuple[list[str], NDArray[np.intp], Array]:
    """The models that have battles, by name; and of every row with some, its model's number and its three counts."""
    fought = [each for each in battles if each.lost + each.tied + each.won]
    names = sorted({each.model for each in fought})
    number = {name: position for position, name in enumerate(names)}
    index = np.array([number[each.model] for each in fought], dtype=np.intp)
    counts = np.array([(each.lost, each.tied, each.won) for each in fought], dtype=np.float64).reshape(-1, 3)
    return names, index, counts


def _standardised(raw: Array, weights: Array, version: Version) -> Array:
    """Standard scores of the columns over all battles; 0 in a column that does not vary."""
    total = weights.sum()
    centred = raw - weights @ raw / total
    degrees = total if version == "v0.1" else max(total - 1, 1)
    deviation = np.sqrt(weights @ centred**2 / degrees)
    varies = deviation > 1e-12
    scaled: Array = np.where(varies, centred / np.where(varies, deviation, 1), 0.0)
    return scaled


def _fit(
    index: NDArray[np.intp], counts: Array, covariates: Array, models: int, version: Version
) -> tuple[Array, Array]:
    """Maximum likelihood: log odds of every model against the baseline at covariates of 0, and the coefficients."""
    how = _FITS[version]
    total = counts.sum()
    fought = counts.sum(axis=1)
    won = counts[:, 2] + counts[:, 1] / 2

    def loss(parameters: Array) -> tuple[float, Array]:
        strengths, baseline, coefficients = np.split(parameters, [models, models + 1])
        odds = how.unit * (strengths - baseline)[index] + covariates @ coefficients
        residual = fought * special.expit(odds) - won
        by_model = how.unit * np.bincount(index, residual, models)
        gradient = np.concatenate([by_model, [-by_model.sum()], residual @ covariates]) + how.penalty * parameters
        value = fought @ np.logaddexp(0, odds) - won @ odds + how.penalty / 2 * parameters @ parameters
        return value / total, gradient / total

    start = np.zeros(models + 1 + covariates.shape[1])
    found: Array = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=how.options).x
    return how.unit * (found[:models] - found[models]), found[models + 1 :]


def _resamples(counts: Array) -> Iterator[Array]:
    """Counts as `counts` of as many battles, drawn from all with replacement."""
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(counts.size), counts.astype(np.intp).ravel())
    for _ in range(RESAMPLES):
        drawn = cell[rng.integers(len(cell), size=len(cell))]
        yield np.bincount(drawn, minlength=counts.size).reshape(counts.shape).astype(np.float64)


def _drawn_any(index: NDArray[np.intp], drawn: Array, models: int) -> NDArray[np.bool_]:
    return np.bincount(index, drawn.sum(axis=1), models) > 0


def _scores(names: Sequence[str], points: Array, resampled: Array, version: Version) -> list[Score]:
    low, high = interval(resampled, version)
    rows = (Score(*row) for row in zip(names, points.tolist(), low.tolist(), high.tolist(), strict=True))
    return sorted(rows, key=lambda row: (-row.score, row.model))
