"""The search for the mixture of two heads: candidates, how good each is, and when one is better than the default.

N images with labels that neither head was trained on, C classes, G points (rows ``ce_weight, temperature``). Nothing is
trained: a point is another way to read the same logits. Points are scored apart (:func:`point_scores`, any number of
them at a time), and the best of them all is held against the default (:func:`better_mixture`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from raykd.algo.errors import UserError, did_you_mean
from raykd.algo.heads import Mixture, softmax, two_heads
from raykd.algo.keyed import generator
from raykd.algo.metrics import confidence_bins

CE_WEIGHTS = tuple(np.round(np.arange(21) * 0.05, 2).tolist())
TEMPERATURES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)
NUMBERS_AT_ONCE = 2**15  # of a block of images and all classes: what stays in a core's own cache
TRIALS = 100  # of a search that draws, unless another number is given
Objective = Literal["accuracy", "log_loss", "calibration"]
"""What a mixture is chosen for: to be right, to make the labels likely, to be as sure as it is right (the ECE)."""


# ---------------------------------------------------------------- candidates


def grid(default: Mixture) -> np.ndarray:
    """The papers' grid, ce_weight 0 to 1 step 0.05 by temperature .5 to 4 (PAPERS.md 1.5), and the default.

    Returns:
        float64 [G, 2], G = 147, or 148 when the default is not among them; nearest to the default first, so that the
        first maximum is the tie to keep.
    """
    return _nearest_first(default, np.array([(w, t) for t in TEMPERATURES for w in CE_WEIGHTS]))


def random_points(default: Mixture, count: int, *key: int | str) -> np.ndarray:
    """As many draws over the papers' range, evenly in ce_weight and in the logarithm of the temperature; the default.

    Args:
        count: At least 1.
        key: What the draws are for, such as seed and round: the same key, the same points.

    Returns:
        float64 [G, 2] as of :func:`grid`, G = ``count`` + 1.
    """
    if count < 1:
        raise UserError(f"{count} mixtures to try; expected at least 1")
    draws_G2 = generator(*key, "mixtures").random((count, 2))
    least, most = np.log(TEMPERATURES[0]), np.log(TEMPERATURES[-1])
    return _nearest_first(default, np.stack([draws_G2[:, 0], np.exp(least + (most - least) * draws_G2[:, 1])], axis=1))


def given_points(default: Mixture, points: Sequence[Sequence[float]]) -> np.ndarray:
    """Points that somebody wrote down, float64 [G, 2] as of :func:`grid`.

    Raises:
        UserError: None, or one that is no mixture, with its place.
    """
    if not len(points):
        raise UserError("no mixture to try; expected one pair of ce_weight and temperature, or more")
    for place, point in enumerate(points):
        if len(point) != 2:
            raise UserError(f"mixture {place}: {list(point)!r}; expected ce_weight and temperature")
        try:
            Mixture(*point)
        except UserError as error:
            raise UserError(f"mixture {place}: {error}") from None
    return _nearest_first(default, np.array(points, np.float64))


def points_to_try(
    search: str, default: Mixture, points: Sequence[Sequence[float]] | None, count: int, *key: int | str
) -> np.ndarray | None:
    """float64 [G, 2] as of :func:`grid`, by kind of search; None: they come one by one (:func:`studied_points`).

    Args:
        search: "grid" (the papers', or ``points``), "random" (``count`` draws by ``key``) or "optuna".
    """
    if search == "optuna":
        return None
    if search == "random":
        return random_points(default, count, *key)
    return given_points(default, points) if points else grid(default)


def studied_points(
    logits: Mapping[str, np.ndarray],
    labels_N: np.ndarray,
    objective: Objective,
    default: Mixture,
    count: int,
    *key: int | str,
) -> tuple[np.ndarray, np.ndarray]:
    """Points that a study asks for one by one, from what those before have come to; the default is the first.

    Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), over the range of :func:`random_points`.

    Returns:
        float64 [G, 2] in the order asked, G = ``count`` + 1, and their :func:`point_scores` [G].

    Raises:
        UserError: Optuna is not installed.

    Cost: about 5 ms a point, beside scoring it.
    """
    optuna = imported_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=int(generator(*key, "study").integers(2**32)))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({"ce_weight": default.ce_weight, "temperature": default.temperature})
    least, most = (of(*TEMPERATURES, default.temperature) for of in (min, max))
    points, scores = [], []
    for _ in range(count + 1):
        trial = study.ask()
        ranges = (("ce_weight", 0.0, 1.0, False), ("temperature", least, most, True))
        point = [trial.suggest_float(name, low, high, log=log) for name, low, high, log in ranges]
        score = float(point_scores(logits, labels_N, np.array([point]), objective)[0])
        study.tell(trial, score)
        points.append(point)
        scores.append(score)
    return np.array(points), np.array(scores)


def imported_optuna() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "search: optuna needs a package that is not installed: pip install 'raykd[tune]'; or use search: random"
        ) from None
    return optuna


def _nearest_first(default: Mixture, points_G2: np.ndarray) -> np.ndarray:
    start = (default.ce_weight, default.temperature)
    points_G2 = np.unique(np.vstack([points_G2, start]), axis=0)
    far_G = np.abs(points_G2[:, 0] - start[0]) + np.abs(np.log(points_G2[:, 1] / start[1]))
    return points_G2[np.lexsort((points_G2[:, 1], points_G2[:, 0], np.round(far_G, 9)))]


# ---------------------------------------------------------------- how good each is


def hits(logits: Mapping[str, np.ndarray], labels_N: np.ndarray, points_G2: np.ndarray) -> np.ndarray:
    """Whether each mixture of a student of two heads is right on each image, bool [G, N].

    Cost: G * N * C, softmaxes once per temperature.

    Args:
        logits: float [N, C] of both heads.
        labels_N: int [N], class indices.
        points_G2: float [G, 2], as :func:`grid` gives them.
    """
    right_GN = np.empty((len(points_G2), len(labels_N)), bool)
    for g, rows, probs_NC in _mixed(logits, points_G2):
        right_GN[g, rows] = probs_NC.argmax(axis=1) == labels_N[rows]
    return right_GN


def losses(logits: Mapping[str, np.ndarray], labels_N: np.ndarray, points_G2: np.ndarray) -> np.ndarray:
    """-log of the probability that each mixture gives each label, float64 [G, N]; of 0 as :func:`log_loss` counts it.

    Cost: the softmaxes, once per temperature, and G * N: of a mixture only the label's own probability is made.
    """
    own_GN = np.empty((len(points_G2), len(labels_N)))
    ce_logits_NC, kd_logits_NC = two_heads(logits)
    rows_N = np.arange(len(labels_N))
    ce_N = softmax(ce_logits_NC)[rows_N, labels_N]
    for temperature in np.unique(points_G2[:, 1]):
        kd_N = softmax(np.asarray(kd_logits_NC, np.float64) / temperature)[rows_N, labels_N]
        of_G = points_G2[:, 1] == temperature
        weights_G1 = points_G2[of_G, :1]
        own_GN[of_G] = weights_G1 * ce_N + (1 - weights_G1) * kd_N
    return -np.log(np.maximum(own_GN, float(np.finfo(np.float32).smallest_subnormal)))


def gaps(
    logits: Mapping[str, np.ndarray], labels_N: np.ndarray, points_G2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much surer each mixture is of each image than it is right, float64 [G, N], and in which bin of the ECE.

    Cost: as :func:`hits`.
    """
    sure_GN, right_GN = np.empty((2, len(points_G2), len(labels_N)))
    for g, rows, probs_NC in _mixed(logits, points_G2):
        choices_N = probs_NC.argmax(axis=1)
        sure_GN[g, rows] = probs_NC[np.arange(len(choices_N)), choices_N]
        right_GN[g, rows] = choices_N == labels_N[rows]
    return sure_GN - right_GN, confidence_bins(sure_GN)


def _mixed(logits: Mapping[str, np.ndarray], points_G2: np.ndarray) -> Iterator[tuple[int, slice, np.ndarray]]:
    """Every point's probabilities of every image, float64, some images at a time; an array is good until the next."""
    ce_logits_NC, kd_logits_NC = two_heads(logits)
    count, num_classes = ce_logits_NC.shape
    block = max(1, NUMBERS_AT_ONCE // max(num_classes, 1))
    for start in range(0, count, block):
        rows = slice(start, min(start + block, count))
        ce_NC, kd_rows_NC = softmax(ce_logits_NC[rows]), np.asarray(kd_logits_NC[rows], np.float64)
        probs_NC, part_NC = np.empty_like(ce_NC), np.empty_like(ce_NC)
        for temperature in np.unique(points_G2[:, 1]):
            kd_NC = softmax(kd_rows_NC / temperature)
            for g in np.flatnonzero(points_G2[:, 1] == temperature):
                weight = points_G2[g, 0]
                np.multiply(ce_NC, weight, out=probs_NC)
                np.multiply(kd_NC, 1 - weight, out=part_NC)
                np.add(probs_NC, part_NC, out=probs_NC)
                yield int(g), rows, probs_NC


def point_scores(
    logits: Mapping[str, np.ndarray], labels_N: np.ndarray, points_G2: np.ndarray, objective: Objective = "accuracy"
) -> np.ndarray:
    """How good each mixture is, float64 [G], the larger the better; a point's does not depend on the others.

    The number of images that it has right, less its mean log-loss, or less its expected calibration error (15 bins,
    :func:`raykd.algo.metrics.calibration_error`). Cost: 147 points on 10,000 images of 100 classes take
    half a second of one shared core, by log-loss 0.2 s.

    Raises:
        UserError: An unknown objective, or no image.
    """
    if objective not in get_args(Objective):
        raise UserError(f"unknown objective {objective!r}; {did_you_mean(str(objective), get_args(Objective))}")
    if not len(labels_N):
        raise UserError(f"no label to measure {objective} on; expected images that the student was not trained on")
    if objective == "accuracy":
        return hits(logits, labels_N, points_G2).sum(axis=1).astype(np.float64)
    if objective == "log_loss":
        return -losses(logits, labels_N, points_G2).mean(axis=1)
    return -np.array(
        [_ece(gaps_N, bins_N)[0] for gaps_N, bins_N in zip(*gaps(logits, labels_N, points_G2), strict=True)]
    )


def searched(
    logits: Mapping[str, np.ndarray], labels_N: np.ndarray, default: Mixture, search: str, objective: Objective,
    points: Sequence[Sequence[float]] | None, count: int, *key: int | str,
) -> Mixture:  # fmt: skip
    """The whole search in this process, as a campaign's round does it on Ray Tune.

    Args:
        search, points, count, key: As of :func:`points_to_try`.
    """
    points_G2 = points_to_try(search, default, points, count, *key)
    if points_G2 is None:
        points_G2, scores_G = studied_points(logits, labels_N, objective, default, count, *key)
    else:
        scores_G = point_scores(logits, labels_N, points_G2, objective)
    return better_mixture(logits, labels_N, default, points_G2, scores_G, objective)[0]


# ---------------------------------------------------------------- when one is better


def better_mixture(
    logits: Mapping[str, np.ndarray],
    labels_N: np.ndarray,
    default: Mixture,
    points_G2: np.ndarray,
    scores_G: np.ndarray,
    objective: Objective = "accuracy",
) -> tuple[Mixture, bool, str]:
    """The best point, if it beats the default by a standard error (:func:`is_real_gain` and its kin).

    Args:
        logits, labels_N: What was searched on; see :func:`hits`.
        default: What stays otherwise.
        points_G2: float64 [G, 2], as :func:`grid` gives them; of equals the first is taken.
        scores_G: float [G], of :func:`point_scores`, by the same objective.

    Returns:
        The mixture, whether it is another than the default, and the best point's gain in words: so much more accurate,
        or so much less of log-loss or calibration error.
    """
    best = points_G2[int(scores_G.argmax())]
    both = np.array([best, (default.ce_weight, default.temperature)])
    real, gain = GAINS[objective](logits, labels_N, both)
    return Mixture(float(best[0]), float(best[1])) if real else default, real, gain


def is_real_gain(right_best_N: np.ndarray, right_default_N: np.ndarray) -> tuple[bool, str]:
    """The one-standard-error rule: whether the best point's paired gain over the default exceeds its standard error.

    The best of 147 points on few images is mostly luck, so the default stays unless the data say otherwise.

    Args:
        right_best_N, right_default_N: bool [N], from :func:`hits`.

    Returns:
        The answer, and the gain in words.
    """
    gain_N = right_best_N.astype(float) - right_default_N
    error = gain_N.std(ddof=1) / np.sqrt(len(gain_N)) if len(gain_N) > 1 else np.inf
    won, lost = (gain_N > 0).sum(), (gain_N < 0).sum()
    # Exactly mean > error, in whole numbers: for one image won the two are equal, and rounding would decide.
    real = won > lost and (won - lost) ** 2 > won + lost
    return bool(real), f"{gain_N.mean():+.3f} ± {error:.3f}"


def is_real_saving(losses_best_N: np.ndarray, losses_default_N: np.ndarray) -> tuple[bool, str]:
    """The same rule of a mean loss, image by image: float [N] each, from :func:`losses`."""
    gain_N = losses_default_N - losses_best_N
    error = gain_N.std(ddof=1) / np.sqrt(len(gain_N)) if len(gain_N) > 1 else np.inf
    return bool(gain_N.mean() > error), f"{gain_N.mean():+.3f} ± {error:.3f}"


def is_better_calibrated(gaps_2N: np.ndarray, bins_2N: np.ndarray) -> tuple[bool, str]:
    """The same rule of the calibration error, which is no mean over images: its standard error is the jackknife's.

    Both errors are computed anew without each image in turn, and what their difference does is its deviation (Efron and
    Stein 1981): the two answer the same images, so most of what moves one moves the other. Nothing is drawn.

    Args:
        gaps_2N, bins_2N: [2, N] of the best point and of the default, from :func:`gaps`. Cost: N.
    """
    (best, best_N), (default, default_N) = (_ece(*of) for of in zip(gaps_2N, bins_2N, strict=True))
    gain_N, count = default_N - best_N, gaps_2N.shape[1]
    error = np.sqrt((count - 1) / count * ((gain_N - gain_N.mean()) ** 2).sum()) if count > 1 else np.inf
    return bool(default - best > error), f"{default - best:+.3f} ± {error:.3f}"


def _ece(gaps_N: np.ndarray, bins_N: np.ndarray) -> tuple[float, np.ndarray]:
    """The expected calibration error, and what it is without each image, float64 [N]."""
    count = len(gaps_N)
    sums = np.bincount(bins_N, weights=gaps_N)
    total = np.abs(sums).sum()
    without_N = total - np.abs(sums[bins_N]) + np.abs(sums[bins_N] - gaps_N)
    return float(total / count), without_N / max(count - 1, 1)


GAINS: dict[Objective, Callable[[Mapping[str, np.ndarray], np.ndarray, np.ndarray], tuple[bool, str]]] = {
    "accuracy": lambda *of: is_real_gain(*hits(*of)),
    "log_loss": lambda *of: is_real_saving(*losses(*of)),
    "calibration": lambda *of: is_better_calibrated(*gaps(*of)),
}
"""How the best point is held against the default: logits, labels and these two points."""
