"""What the next round is likely to bring, from the rounds so far; or why nothing can be said. R rounds, B draws.

Two curves that bend towards a limit are fitted to accuracy over labels::

    POW4:  c - a (n + b)^-d            MMF4:  (a b + c n^d) / (b + n^d)

They forecast learning curves better than a trained network does (LC-PFN; TU Delft 2025, on LCDB 1.1). Both are "limit
less a falling curve": for given b and d the limit (at most 1) and the height (at least 0) come of a closed form, b and
d of a grid. The forecast is the mean of the two, by how likely they make the rounds. Its interval is a bootstrap of all
of that by the accuracies' own sampling noise, widened where the rounds lie farther off the curves than that, and by
Student's t with R degrees of freedom over 1.96: in simulations (4, 6 and 10 rounds on 400 images) it held in 97 % of
673 forecasts, and without Student's t in 87 % of those after 4 rounds. Both curves know no fall: where there is one,
there is no forecast.

A curve of active learning belongs to its strategy, and about one in seven learning curves is not well-behaved (LCDB
1.1, NeurIPS 2025): so two rounds ahead at most, and :func:`score_forecasts` keeps the books.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from raykd.algo.errors import UserError
from raykd.algo.keyed import generator
from raykd.algo.statistics import Z95, student_t

FEWEST_ROUNDS = 4
DRAWS = 400
_B, _D = (
    np.geomspace(*of).tolist() for of in ((0.02, 5.0, 12), (0.15, 5.0, 16))
)  # labels in units of the last round's


class Forecast(TypedDict):
    """What a round is likely to bring, with 95 % intervals; of no forecast the reason, and None for all else."""

    labels: int  # then, in all
    accuracy: float | None  # as it will be measured on the images that the others were measured on
    low: float | None
    high: float | None
    gain: float | None  # since the last round, along the curve: what measures now by luck is not counted
    gain_low: float | None
    gain_high: float | None
    reason: str | None  # why there is no forecast


def sampling_noise(right_RN: np.ndarray) -> np.ndarray:
    """How the accuracies of R rounds on the same N images vary by which images these are, and together: float64 [R, R].

    What is hard for one student is hard for the next, so they go up and down together, and their differences vary less.
    The variances are at least what is left of doubt where all are right (Agresti and Coull 1998).

    Args:
        right_RN: bool [R, N], N >= 2.
    """
    num_images = right_RN.shape[1]
    noise_RR = np.atleast_2d(np.cov(right_RN.astype(np.float64))) / num_images
    shares_R = (right_RN.sum(axis=1) + 2) / (num_images + 4)
    least_R = shares_R * (1 - shares_R) / (num_images + 4)
    noise_RR[np.diag_indices(len(noise_RR))] = np.maximum(noise_RR.diagonal(), least_R)
    return noise_RR


def forecast(
    labels_R: np.ndarray, accuracies_R: np.ndarray, noise_RR: np.ndarray, next_labels: int, *key: int | str
) -> Forecast:
    """Accuracy at ``next_labels``, or why not: too few rounds, too far, a fall that is no chance, or nothing but noise.

    Args:
        labels_R: [R], training labels, ascending.
        accuracies_R: float [R], 0 to 1.
        noise_RR: float [R, R], covariance of what chance does to them (:func:`sampling_noise`; diagonal where each
            round was measured on images of its own). Positive variances.
        next_labels: More than the last, by at most two of its steps.
        key: What the draws are for.

    Raises:
        UserError: Labels that do not ascend.

    Cost: about 0.1 s: 2 families of 192 curves, 400 draws.

    Example:
        >>> labels = np.array([20, 40, 60, 80, 100])
        >>> found = forecast(labels, 0.9 - 8 / (labels + 10), np.diag(np.full(5, 1e-6)), 120, 0)
        >>> round(found["accuracy"], 3), found["reason"]
        (0.838, None)
    """
    labels_R, accuracies_R = np.asarray(labels_R, np.float64), np.asarray(accuracies_R, np.float64)
    count, ahead = len(labels_R), [*np.asarray(labels_R).tolist(), float(next_labels)]
    assert (accuracies_R.shape, noise_RR.shape) == ((count,), (count, count)), (accuracies_R.shape, noise_RR.shape)
    if (np.diff(ahead) <= 0).any():
        raise UserError(f"labels of the rounds and of the next {ahead}; expected each more than the one before")
    if count < FEWEST_ROUNDS:
        return _none(next_labels, f"{FEWEST_ROUNDS} measured rounds are needed, and there are {count}")
    if next_labels - labels_R[-1] > 2 * (labels_R[-1] - labels_R[-2]):
        return _none(next_labels, f"{next_labels} labels are more than two rounds ahead")
    left = 1 - float(accuracies_R[-1])
    if left <= 0:
        return _none(next_labels, "nothing is left to gain: all are right")
    noise_BR = _correlated(noise_RR, *key)
    if fall_by_chance(accuracies_R, noise_RR, noise_BR[:, :-1]) < 0.05:
        return _none(next_labels, "accuracy has fallen by more than chance, which no curve of this kind does")
    found = _ahead(labels_R / labels_R[-1], next_labels / labels_R[-1], accuracies_R, noise_RR, noise_BR)
    if found.high - found.low > left:
        wide, rest = 100 * (found.high - found.low), 100 * left
        return _none(
            next_labels, f"its interval of {wide:.1f} points is wider than the {rest:.1f} that are left to gain"
        )
    values = {name: float(value) for name, value in found._asdict().items()}
    return {"labels": next_labels, "reason": None, **values}  # type: ignore[typeddict-item]


def _none(labels: int, reason: str) -> Forecast:
    empty = dict.fromkeys(_Ahead._fields)
    return {"labels": labels, "reason": reason, **empty}  # type: ignore[typeddict-item]


class _Ahead(NamedTuple):
    accuracy: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


def _correlated(noise_RR: np.ndarray, *key: int | str) -> np.ndarray:
    """Draws of what chance does to the rounds and to the next, float64 [B, R + 1]: to this as to the last two."""
    count = len(noise_RR)
    normal_BR = generator(*key, "forecast").standard_normal((DRAWS, count + 1))
    values, vectors = np.linalg.eigh(noise_RR)
    drawn_BR = (normal_BR[:, :-1] * np.sqrt(np.maximum(values, 0))) @ vectors.T
    together = noise_RR[-1, -2] / np.sqrt(noise_RR[-1, -1] * noise_RR[-2, -2])
    alone_B = np.sqrt(noise_RR[-1, -1] * max(1 - together**2, 0)) * normal_BR[:, -1]
    return np.column_stack([drawn_BR, together * drawn_BR[:, -1] + alone_B])


# ---------------------------------------------------------------- does it rise at all?


def fall_by_chance(accuracies_R: np.ndarray, noise_RR: np.ndarray, noise_BR: np.ndarray) -> float:
    """How easily chance makes a curve that never falls look as falling as this one: a p-value.

    Its squared distance from the nearest curve that does not fall (isotonic regression), held against that of flat
    curves with the same noise, which of all such curves fall most easily (Robertson, Wright and Dykstra 1988).

    Args:
        accuracies_R: float [R].
        noise_RR: Their covariance; ``noise_BR``: draws of it.
    """
    weights_R = 1 / noise_RR.diagonal()
    both = np.vstack([accuracies_R[None], noise_BR])
    far = (weights_R * (both - rising(both, weights_R)) ** 2).sum(axis=1)
    return float((1 + (far[1:] >= far[0] - 1e-12).sum()) / len(far))


def rising(values_BR: np.ndarray, weights_R: np.ndarray) -> np.ndarray:
    """The nearest curves that never fall (weighted isotonic regression), float64 [B, R].

    By its max-min formula: the largest, over the rounds up to here, of the least, over the rounds from here, mean in
    between. Cost: B * R^2.
    """
    count = len(weights_R)
    sums_BR = np.cumsum(np.pad(values_BR * weights_R, ((0, 0), (1, 0))), axis=1)
    total_R = np.cumsum(np.pad(weights_R, (1, 0)))
    means_BRR = np.full((len(values_BR), count, count), np.inf)  # from round j up to round k
    for j in range(count):
        means_BRR[:, j, j:] = (sums_BR[:, j + 1 :] - sums_BR[:, [j]]) / (total_R[j + 1 :] - total_R[j])
    least_BRR = np.minimum.accumulate(means_BRR[:, :, ::-1], axis=2)[:, :, ::-1]  # over k, from here on
    least_BRR[:, np.tri(count, count, -1, dtype=bool)] = -np.inf  # round j is after here
    return least_BRR.max(axis=1)


# ---------------------------------------------------------------- the curves


def _falling(x_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is still missing at x, of each b and d, float64 [G, R] by POW4 and by MMF4."""
    b, d = (of.reshape(-1, 1) for of in np.meshgrid(_B, _D))
    start = x_R[0] if x_R[0] > 0 else 1.0
    return ((x_R + b) / (start + b)) ** -d, b / (b + x_R**d)


def _ahead(
    x_R: np.ndarray, x_next: float, accuracies_R: np.ndarray, noise_RR: np.ndarray, noise_BR: np.ndarray
) -> _Ahead:
    values, vectors = np.linalg.eigh(noise_RR)
    whiten_RR = (vectors / np.sqrt(np.maximum(values, 1e-6 * values.max()))).T  # makes noise equal and independent
    families = _falling(np.append(x_R, x_next))
    (curve_R,), (far,) = _mean_curve(whiten_RR, families, accuracies_R[None])
    wider = np.sqrt(max(1.0, far / max(len(x_R) - FEWEST_ROUNDS, 1)))  # than by sampling alone
    measured_BR = curve_R + wider * noise_BR
    again_BR, _ = _mean_curve(whiten_RR, families, measured_BR[:, :-1])
    most, least = np.quantile(again_BR[:, -1] - measured_BR[:, -1], [0.975, 0.025]) * student_t(len(x_R)) / Z95
    gain = curve_R[-1] - curve_R[-2]
    gain_low, gain_high = np.quantile(again_BR[:, -1] - again_BR[:, -2], [0.025, 0.975])
    low, high = max(0.0, curve_R[-1] - most), min(1.0, curve_R[-1] - least)
    return _Ahead(curve_R[-1], low, high, gain, min(gain, gain_low), max(gain, gain_high))


def _mean_curve(
    whiten_RR: np.ndarray, families: tuple[np.ndarray, ...], values_BR: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both families' best curves, [B, R + 1], averaged by how likely they make the values; the least distance, [B]."""
    curves, far = zip(*(_fit(whiten_RR, family_GR, values_BR) for family_GR in families), strict=True)
    least_B = np.min(far, axis=0)
    weights_FB = np.exp((least_B - np.array(far)) / 2)
    mean_BR: np.ndarray = (weights_FB[:, :, None] * np.array(curves)).sum(axis=0) / weights_FB.sum(axis=0)[:, None]
    return mean_BR, least_B


def _fit(whiten_RR: np.ndarray, family_GR: np.ndarray, values_BR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best ``limit - height * falling`` of each row, at the rounds and at the next, and its squared distance.

    Limit 0 to 1 and height at least 0, by least squares: of each falling curve in closed form, and the best of these.

    Returns:
        float64 [B, R + 1] and [B].
    """
    u_R, v_GR, y_BR = whiten_RR.sum(axis=1), family_GR[:, :-1] @ whiten_RR.T, values_BR @ whiten_RR.T
    uu, uv_G, vv_G = u_R @ u_R, v_GR @ u_R, (v_GR**2).sum(axis=1)
    uy_B, vy_BG, yy_B = y_BR @ u_R, y_BR @ v_GR.T, (y_BR**2).sum(axis=1)
    height_BG = (uv_G * uy_B[:, None] - uu * vy_BG) / np.maximum(uu * vv_G - uv_G**2, 1e-12 * uu * vv_G)
    limit_BG = (uy_B[:, None] + height_BG * uv_G) / uu
    at_one_BG, flat_B = np.maximum((uv_G - vy_BG) / vv_G, 0), np.clip(uy_B / uu, 0, 1)

    def distance(limit: np.ndarray, height: np.ndarray) -> np.ndarray:
        far: np.ndarray = yy_B[:, None] + limit * (limit * uu - 2 * uy_B[:, None])
        return far + height * (height * vv_G + 2 * vy_BG - 2 * limit * uv_G)

    allowed_BG = (height_BG >= 0) & (limit_BG <= 1)
    one_BG, flat_BG = np.ones_like(limit_BG), np.broadcast_to(flat_B[:, None], limit_BG.shape)
    edge_BG = distance(one_BG, at_one_BG) < distance(flat_BG, np.zeros_like(at_one_BG))
    limit_BG = np.where(allowed_BG, limit_BG, np.where(edge_BG, one_BG, flat_BG))
    height_BG = np.where(allowed_BG, height_BG, np.where(edge_BG, at_one_BG, 0))
    far_BG = distance(limit_BG, height_BG)
    rows, best_B = np.arange(len(values_BR)), far_BG.argmin(axis=1)
    curve_BR = limit_BG[rows, best_B, None] - height_BG[rows, best_B, None] * family_GR[best_B]
    return curve_BR, np.maximum(far_BG[rows, best_B], 0)


# ---------------------------------------------------------------- was it right, and what does it cost?


class ForecastScore(TypedDict):
    """How good past forecasts were; None of none."""

    num: int
    num_inside: int  # measured within the interval
    mean_error: float | None  # of the forecast less what was measured: above 0 it promises too much
    mean_size: float | None  # of the error, whichever way


def score_forecasts(past: Sequence[Forecast], measured: Sequence[float]) -> ForecastScore:
    """Holds forecasts against what was measured then, in the same order; those without a forecast do not count.

    Example:
        >>> none: Forecast = dict(labels=9, reason="too few", **dict.fromkeys(_Ahead._fields))
        >>> score_forecasts([none], [0.5])
        {'num': 0, 'num_inside': 0, 'mean_error': None, 'mean_size': None}
    """
    errors, inside = [], 0
    for each, accuracy in zip(past, measured, strict=True):
        if each["accuracy"] is not None and each["low"] is not None and each["high"] is not None:
            errors.append(each["accuracy"] - accuracy)
            inside += each["low"] <= accuracy <= each["high"]
    return {
        "num": len(errors),
        "num_inside": inside,
        "mean_error": float(np.mean(errors)) if errors else None,
        "mean_size": float(np.mean(np.abs(errors))) if errors else None,
    }


class PointPrice(TypedDict):
    """What a percentage point of accuracy costs, in whatever the labels are paid in; None: no point for any price."""

    cost: float  # of the round
    per_point: float | None
    low: float | None  # if the round brings as much as it may,
    high: float | None  # and as little


def price_per_point(ahead: Forecast, num_labels: int, per_label: float) -> PointPrice:
    """The price of a point in the next round; of no forecast the cost alone.

    Args:
        num_labels: That the round buys: training, audit and validation labels alike.
        per_label: Above 0.

    Example:
        >>> ahead = Forecast(labels=120, accuracy=0.82, low=0.79, high=0.85, gain=0.02, gain_low=0.0, gain_high=0.04,
        ...     reason=None)
        >>> price_per_point(ahead, 100, 0.5)
        {'cost': 50.0, 'per_point': 25.0, 'low': 12.5, 'high': None}
    """
    if per_label <= 0:
        raise UserError(f"a price of {per_label:g} a label; expected one above 0")
    cost = num_labels * per_label

    def price(gain: float | None) -> float | None:
        return cost / (100 * gain) if gain is not None and gain > 1e-9 else None

    return {
        "cost": cost,
        "per_point": price(ahead["gain"]),
        "low": price(ahead["gain_high"]),
        "high": price(ahead["gain_low"]),
    }
