"""What a reward model rewards beside being right, as its scores of a benchmark show it.

Scores are compared between the replies to one prompt only. With d the difference between two of them, the differences of
scores are regressed, without an intercept, on a trait and on what is controlled for:

    d score / SD = effect * d trait + b * d correct [+ c * d log2 length]

over all unordered pairs of an item's responses, so an item weighs as much as it has pairs. The unit SD is the pooled
within-item standard deviation of the scores (`within_sd`). For a trait that a reply has or lacks, the effect is a
standardised mean difference, which Cohen calls small at 0.2, medium at 0.5 and large at 0.8 (1988, "Statistical Power
Analysis for the Behavioral Sciences", 2nd edition, section 2.2). 0 says that of two replies that are equally right, and
equally long where length is controlled for, the one with the trait scores no higher. Pairs were not made to differ in the
trait alone: an effect may be due to what goes with the trait. Changed replies (`probes`) don't have that doubt.

Intervals are percentile bootstraps over items (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3);
the unit is taken as given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildreward_ray.reward.benchmarks.items import Floats, Item
from wildreward_ray.reward.benchmarks.text_features import length, markdown

Refuses = Callable[[str], bool]

_LEVEL = 0.95
# An interval over the few resamples that happen to define an effect would be made up.
_LEAST_DEFINED = 0.9
# Items times resamples that are drawn at once: a few arrays of 8 MB.
_CHUNK = 1 << 20
# A trait of which less than this share of its variance is its own can't be told from what is controlled for.
_COLLINEAR = 1e-9

# Variables of a response, in the order of the columns of cross-products.
_CORRECT, _LENGTH, _MARKDOWN, _REFUSAL, _SCORE = range(5)
_EQUAL = "0: no difference between replies that are equally right"
_TRAITS: tuple[tuple[str, int, tuple[int, ...], str, str], ...] = (
    (
        "length",
        _LENGTH,
        (_CORRECT,),
        "SD per doubling",
        f"score gained where a reply is twice as long; {_EQUAL}",
    ),
    (
        "markdown",
        _MARKDOWN,
        (_CORRECT, _LENGTH),
        "SD",
        f"score gained where a reply has markdown; {_EQUAL} and equally long",
    ),
    (
        "refusal",
        _REFUSAL,
        (_CORRECT, _LENGTH),
        "SD",
        f"score gained where a reply refuses; {_EQUAL} and equally long",
    ),
)
_SHORTER = (
    "accuracy on pairs whose right reply is the shorter one, minus that where it is the longer one; "
    "0: length doesn't decide; below 0: the longer reply is favoured"
)


def observed(
    items: Sequence[Item], scores: Sequence[Floats], is_refusal: Refuses, *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """What goes with high scores among the replies to one prompt; needs no further scoring.

    Args:
        items: the benchmark's items; those with one response contribute nothing.
        scores: [R] of every item, finite.
        is_refusal: whether a reply refuses.
        resamples: of the items, for the 95 % intervals.
        seed: of the resamples, not negative.

    Returns:
        Effects of `length` (in SD per doubling of the length in words, an empty reply counting as one word; controls for which
        is right), of `markdown` and of `refusal` (in SD; both control for which is right and for length), and `shorter right`:
        the share of right x wrong pairs that are in order where the right reply is the shorter one, minus that where it is the
        longer one; equal scores are out of order. Each has `name`, `effect`, `low`, `high`, `n`, `unit`, `meaning`. `n` counts
        the pairs that differ in the trait. `effect` is None where n is 0, where all scores are equal and where the trait can't
        be told from what is controlled for; `low` and `high` also where a tenth of the resamples don't define the effect.

    Raises:
        ValueError: numbers of items, responses and scores don't fit together.
    """
    check_scores(items, scores)
    pairs = [(item, values) for item, values in zip(items, scores, strict=True) if len(values) > 1]
    tables = [_table(item, values, is_refusal) for item, values in pairs]
    products = np.array([_products(table) for table in tables]).reshape(-1, 25)
    orders = np.array([_orders(table) for table in tables]).reshape(-1, 4)
    columns = np.hstack([products, orders])
    whole, drawn = columns.sum(axis=0, keepdims=True), resampled(columns, resamples, seed)
    sd = within_sd([values for _, values in pairs])
    result = []
    for name, trait, controls, unit, meaning in _TRAITS:
        n = sum(_differing(table[:, trait]) for table in tables)
        point, spread = (_slope(sums[:, :25].reshape(-1, 5, 5), trait, controls, sd) for sums in (whole, drawn))
        result.append(_row(name, n, point, spread) | {"unit": unit, "meaning": meaning})
    point, spread = _accuracy_gap(whole[:, 25:]), _accuracy_gap(drawn[:, 25:])
    n = int(whole[0, 25] + whole[0, 27]) if np.isfinite(point[0]) else 0
    return [*result, _row("shorter right", n, point, spread) | {"unit": "share", "meaning": _SHORTER}]


def check_scores(items: Sequence[Item], scores: Sequence[Floats]) -> None:
    """Return if every response has its score.

    Raises:
        ValueError: it doesn't; names the first such item.
    """
    if len(items) != len(scores):
        raise ValueError(f"scores of {len(scores)} items for {len(items)} items")
    for item, values in zip(items, scores, strict=True):
        if np.shape(values) != (len(item.responses),):
            raise ValueError(f"{item.id}: scores of shape {np.shape(values)} for {len(item.responses)} responses")


def within_sd(scores: Sequence[Floats]) -> float:
    """Standard deviation of scores around their item's mean: sqrt(sum of squares / (responses - items)).

    Of scores that differ within no item it is 0; NaN where no item has two.
    """
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in scores if len(values) and np.ptp(values))
    freedom = sum(len(values) - 1 for values in scores if len(values))
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def resampled(columns: Floats, resamples: int, seed: int) -> Floats:
    """Sums of each column over items drawn with replacement, as many as there are.

    Args:
        columns: [I, C].
        resamples: how often items are drawn.
        seed: not negative.

    Returns:
        [resamples, C]; no rows where there are fewer than two items, which have no spread.
    """
    n = len(columns)
    if n < 2:
        return np.empty((0, columns.shape[1]))
    rng, step = np.random.default_rng(seed), max(1, _CHUNK // n)
    parts = []
    for done in range(0, resamples, step):
        size = min(step, resamples - done)
        drawn = rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        parts.append(counts @ columns)
    return np.concatenate(parts) if parts else np.empty((0, columns.shape[1]))


def interval(values: Floats) -> tuple[float | None, float | None]:
    """Ends of the middle 95 % of an effect's resamples [R]; NaN where a resample doesn't define it.

    None where there are none, or where more than a tenth of them don't.
    """
    defined = values[np.isfinite(values)]
    if len(values) == 0 or len(defined) < _LEAST_DEFINED * len(values):
        return None, None
    low, high = np.quantile(defined, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _row(name: str, n: int, point: Floats, spread: Floats) -> dict[str, Any]:
    effect = float(point[0]) if n and np.isfinite(point[0]) else None
    low, high = (None, None) if effect is None else interval(spread)
    return {"name": name, "effect": effect, "low": low, "high": high, "n": n}


def _table(item: Item, scores: Floats, is_refusal: Refuses) -> Floats:
    """[R, 5] the variables of every response."""
    rows = [
        (right, np.log2(max(1, length(text))), markdown(text) > 0, is_refusal(text), score)
        for right, text, score in zip(item.correct, item.responses, scores, strict=True)
    ]
    return np.array(rows, dtype=np.float64)


def _products(table: Floats) -> Floats:
    """[25] sums over an item's pairs of the products of two variables' differences.

    sum over i < j of (x_i - x_j)(y_i - y_j) = R * sum over i of (x_i - mean x)(y_i - mean y): no pair is ever formed.
    """
    # The exact mean of equal numbers can be a rounding error off, which would make a constant trait vary.
    centred = np.where(np.ptp(table, axis=0) > 0, table - table.mean(axis=0), 0.0)
    products: Floats = len(table) * centred.T @ centred
    return products.ravel()


def _orders(table: Floats) -> Floats:
    """[4] right x wrong pairs whose right reply is shorter and those of them in order; likewise where it is longer."""
    right, wrong = table[table[:, _CORRECT] == 1], table[table[:, _CORRECT] == 0]
    longer = np.sign(right[:, _LENGTH, None] - wrong[:, _LENGTH])
    won = right[:, _SCORE, None] > wrong[:, _SCORE]
    return np.array([count for sign in (-1, 1) for count in ((longer == sign).sum(), won[longer == sign].sum())], float)


def _differing(values: Floats) -> int:
    """How many of the pairs of values differ."""
    _, counts = np.unique(values, return_counts=True)
    return int(len(values) ** 2 - (counts**2).sum()) // 2


def _slope(products: Floats, trait: int, controls: tuple[int, ...], sd: float) -> Floats:
    """[S] the trait's coefficient of least squares for each of the sums of products [S, 5, 5]; NaN where there is none.

    The controls are taken out of trait and scores first (Frisch & Waugh 1933, Econometrica 1(4)), so that a control that
    doesn't vary does no harm.
    """
    of_controls = products[:, controls][:, :, controls]
    shares = (products[:, None, trait, controls] @ np.linalg.pinv(of_controls, rcond=_COLLINEAR, hermitian=True))[:, 0]
    own = products[:, trait, trait] - (shares * products[:, controls, trait]).sum(axis=1)
    with_score = products[:, trait, _SCORE] - (shares * products[:, controls, _SCORE]).sum(axis=1)
    defined = (own > _COLLINEAR * products[:, trait, trait]) & bool(sd > 0)
    return _quotient(with_score, own * sd, defined)


def _accuracy_gap(orders: Floats) -> Floats:
    """[S] of the sums of `_orders` [S, 4]; NaN where either kind of pair is missing."""
    shorter, shorter_won, longer, longer_won = orders.T
    defined = (shorter > 0) & (longer > 0)
    return _quotient(shorter_won, shorter, defined) - _quotient(longer_won, longer, defined)


def _quotient(above: Floats, below: Floats, defined: NDArray[np.bool_]) -> Floats:
    quotient: Floats = np.divide(above, below, out=np.full(len(above), np.nan), where=defined)
    return quotient
