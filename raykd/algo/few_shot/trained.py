"""Few-shot teachers that are trained by steps: CLAP, which moves the texts, and Tip-Adapter-F, which moves its keys.

Both are scored on labels in folds: a teacher trained on the others, from the start and by the same settings, scores
each. Rows are float32, draws keyed: the same labels give the same teacher, and torch's own generator is not touched.

N labeled images, V augmented views of each, R rows in all, C classes, D feature width, M keys of a kernel, E of them of
classes without labels, S steps, B rows of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from raykd.algo.errors import UserError
from raykd.algo.few_shot.honest import Learned, fitted
from raykd.algo.few_shot.kernels import cache, tip
from raykd.algo.few_shot.scorer import Scorer, linear
from raykd.algo.few_shot.support import Support
from raykd.algo.heads import softmax
from raykd.algo.keyed import generator

FOLDS = 5
WARM_UP = 1e-5  # CLAP's learning rate in its first epoch
TIP_F_RATE, TIP_F_EPOCHS, TIP_F_BATCH = 1e-3, 20, 256
NARROW = 10.0  # a beta that CLIP's features hardly ever call for


# ---------------------------------------------------------------- CLAP


@dataclass(frozen=True, kw_only=True)
class ClapSettings:
    """How CLAP is trained: by default as its authors do, in :data:`ACTIVEKD_CLAP` as ActiveKD's code does.

    Args:
        learning_rate: Of SGD with momentum 0.9, > 0.
        batch_size: Rows of a step, at least 1.
        epochs: Of as many rows as there are images, at least 1.
        schedule: Of the learning rate: ``cosine``, constant within an epoch, the first one at :data:`WARM_UP`; or
            ``linear``, up over the first tenth of the steps, then down to 0.
        replacement: Whether rows are drawn with replacement; or none twice within an epoch.
        clean_anchors: Whether anchors come from the images as they are; or from their views.

    Raises:
        UserError: One is out of range.
    """

    learning_rate: float = 0.1
    batch_size: int = 256
    epochs: int = 300
    schedule: Literal["cosine", "linear"] = "cosine"
    replacement: bool = False
    clean_anchors: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "linear"):
            raise UserError(f"CLAP's schedule {self.schedule!r} is unknown; known: cosine, linear")
        for name in ("learning_rate", "batch_size", "epochs"):
            if not getattr(self, name) > 0:
                raise UserError(f"CLAP's {name} is {getattr(self, name)}; expected a number above 0")


PUBLISHED_CLAP = ClapSettings()
ACTIVEKD_CLAP = ClapSettings(learning_rate=0.01, batch_size=64, schedule="linear", replacement=True, clean_anchors=True)
CLAP_SETTINGS = {"published": PUBLISHED_CLAP, "activekd": ACTIVEKD_CLAP}  # as a config calls them


def clap(support: Support, settings: ClapSettings = PUBLISHED_CLAP) -> Iterator[Learned]:
    """CLAP: prototypes that start as the texts, are trained by steps, and are held to where they start.

    ``cross entropy of scale * cosine(x, t_c) + mean over classes of a_c |t_c - w_c|^2``, over the prototypes t; w_c is
    the text of class c at its own length, a_c how sure of the class zero-shot is on its labels, 0 to 1
    (Silva-Rodriguez et al., CVPR 2024, arXiv 2312.12730; the trainings of theirs and of ActiveKD's code: PAPERS.md
    2.4). All views are learned from. Prototypes take the place of texts, so only the temperature is left to be found.

    Departures. A class without labels is held as strongly as the others on average: theirs has no number for it, and
    ActiveKD's code does not hold it, so that it drifts off. Texts of unknown length get length 1: the shorter they are,
    the farther a step turns them, so such a teacher is trained harder than theirs.

    Cost: 3 * epochs * N C D products a training, and there are 6. A step takes a third of a millisecond at least, so up
    to 256 labels take less than a second; 8,000 labels of 1,000 classes with D = 512 take 2 to 3 minutes a training on
    one core, about 12 in all; where classes have no label or one, up to four trainings more.
    """
    train = partial(prototypes_scorer, settings=settings)
    yield Learned(train(support), held_out_logits(support, train), partial(trained_again, train))


def prototypes_scorer(support: Support, settings: ClapSettings) -> Scorer:
    """CLAP's prototypes after training, as a scorer ``scale * cosine``."""
    prototypes_CD = prototypes(support, settings)
    return linear(support.texts.scale * prototypes_CD / np.linalg.norm(prototypes_CD, axis=1, keepdims=True))


def prototypes(support: Support, settings: ClapSettings) -> np.ndarray:
    """CLAP's prototypes after training, float32 [C, D]."""
    texts, (count, views) = support.texts, support.seen_NVD.shape[:2]
    lengths_C = np.ones(support.num_classes) if texts.lengths_C is None else texts.lengths_C
    rows_RD, labels_R = training_rows(support)
    texts_CD = torch.from_numpy((texts.directions_CD * lengths_C[:, None]).astype(np.float32))
    anchors_C = torch.from_numpy(anchors(support, settings.clean_anchors).astype(np.float32))
    moved_CD = texts_CD.clone().requires_grad_()

    def loss(rows_B: torch.Tensor) -> torch.Tensor:
        logits_BC = texts.scale * rows_RD[rows_B] @ F.normalize(moved_CD, dim=1).T
        pull = (anchors_C * (moved_CD - texts_CD).square().sum(dim=1)).mean()
        return F.cross_entropy(logits_BC, labels_R[rows_B]) + pull

    batches = clap_batches(count, views, settings)
    descend(torch.optim.SGD([moved_CD], momentum=0.9), clap_rates(len(batches), settings), batches, loss)
    return moved_CD.detach().numpy()


def anchors(support: Support, clean: bool) -> np.ndarray:
    """How strongly CLAP holds each class to its text, 0 to 1, float64 [C]: how probable zero-shot finds its labels.

    Args:
        support: The labels; a class without any gets the mean of the others.
        clean: Whether the images are looked at as they are, or all their views.
    """
    texts, counts_C = support.texts, support.counts_C
    seen_NVD = support.features_ND[:, None] if clean else support.seen_NVD
    own_N = np.zeros(len(support.labels_N))
    for view in range(seen_NVD.shape[1]):
        probs_NC = softmax(texts.scale * seen_NVD[:, view] @ texts.directions_CD.T)
        own_N += probs_NC[np.arange(len(own_N)), support.labels_N]
    means_C = np.bincount(support.labels_N, own_N / seen_NVD.shape[1], len(counts_C)) / np.maximum(counts_C, 1)
    return np.where(counts_C > 0, means_C, means_C[counts_C > 0].mean())


def clap_batches(count: int, views: int, settings: ClapSettings) -> list[np.ndarray]:
    """The rows of each of CLAP's steps, each int64 [B], of ``count * views`` rows, image by image.

    An epoch is as many rows as there are images, less what does not fill a batch. With fewer images than a batch has
    rows it is one batch, of all rows that fit.
    """
    draws, size, num_rows = generator("clap", count, views), settings.batch_size, count * views
    if settings.replacement:
        num_steps = settings.epochs * count // size
        return list(draws.integers(num_rows, size=(num_steps, size)))
    num_batches = max(1, count // size)
    drawn = min(num_batches * size, num_rows)
    epochs = (draws.choice(num_rows, drawn, replace=False) for _ in range(settings.epochs))
    return [rows_B for rows in epochs for rows_B in np.split(rows, num_batches)]


def clap_rates(num_steps: int, settings: ClapSettings) -> np.ndarray:
    """The learning rate of each of CLAP's steps, float64 [S]."""
    steps_S = np.arange(num_steps)
    if settings.schedule == "linear":
        warm = 0.1 * num_steps
        up_S, down_S = steps_S / max(1.0, warm), (num_steps - steps_S) / max(1.0, num_steps - warm)
        return settings.learning_rate * np.minimum(up_S, down_S)
    epochs_S = steps_S * settings.epochs // num_steps
    rates_S = settings.learning_rate * cosine_decay((epochs_S - 1) / settings.epochs)
    return np.where(epochs_S == 0, WARM_UP, rates_S)


# ---------------------------------------------------------------- Tip-Adapter-F


def tip_f(support: Support) -> Iterator[Learned]:
    """Tip-Adapter-F: Tip-Adapter (:func:`tip`) whose keys are trained (Zhang et al., ECCV 2022, arXiv 2207.09519).

    ``cross entropy of f0 + strength * mean over images of class c of exp(-2 beta (1 - x'key))``, over the keys of the
    images, which start as the images: AdamW with eps 1e-4 and weight decay 0.01, 20 epochs of batches of 256 to which
    each image comes once, in one view; the learning rate falls from 1e-3 to 0 as a cosine, step by step. As in the
    original an image that is learned from meets its own key, and keys may get any length.

    Departures. Those of Tip-Adapter. Its beta and strength, chosen by leave-one-out before training, also hold for all
    folds; theirs are given for training, then searched for on a validation set. Keys start as the images themselves,
    not as the mean of ten views; those of classes without labels stay what they are. The last keys count, not those
    that are best on the test set. Where beta is above :data:`NARROW`, as when images are all alike, the learning rate
    is as many times smaller: else a step would carry a key out of its own kernel.

    Cost: that of Tip-Adapter, then 60 N^2 (C + D) products a training, and there are 6: 8,000 labels of 1,000 classes
    with D = 512 take 2 to 3 minutes a training on one core, about 10 in all; where classes have no label or one, up to
    four trainings more.
    """
    untrained = fitted("tip", support, tip)
    # the values of a class sum to 1, so this is the strength in logits
    strength = untrained.chosen["temperature"] * untrained.scorer.values_MC.sum() / support.num_classes
    train = partial(keys_scorer, beta=untrained.scorer.beta, strength=float(strength))
    chosen = {name: untrained.chosen[name] for name in ("strength", "beta")}
    yield Learned(train(support), held_out_logits(support, train), partial(trained_again, train), chosen=chosen)


def trained_again(train: Callable[[Support], Scorer], support: Support) -> Learned:
    """Of other labels, whose held-out logits nobody asks for."""
    return Learned(train(support), np.empty((0, support.num_classes)), partial(trained_again, train))


def keys_scorer(support: Support, beta: float, strength: float) -> Scorer:
    """Tip-Adapter after the training of its keys, of a beta and a strength of its cache's logits."""
    keys_MD, values_MC = (torch.from_numpy(each.astype(np.float32)) for each in cache(support))
    texts_CD = support.texts.scale * torch.from_numpy(support.texts.directions_CD.astype(np.float32))
    rows_RD, labels_R = training_rows(support)
    values_MC *= strength
    count, views = support.seen_NVD.shape[:2]
    trained_ND, stand_ins_ED = keys_MD[:count].clone().requires_grad_(), keys_MD[count:]

    def loss(rows_B: torch.Tensor) -> torch.Tensor:
        cosines_BM = rows_RD[rows_B] @ torch.cat([trained_ND, stand_ins_ED]).T
        logits_BC = rows_RD[rows_B] @ texts_CD.T + (2 * beta * (cosines_BM - 1)).exp() @ values_MC
        return F.cross_entropy(logits_BC, labels_R[rows_B])

    batches = tip_f_batches(count, views)
    rates_S = TIP_F_RATE * min(1.0, NARROW / beta) * cosine_decay(np.arange(len(batches)) / len(batches))
    descend(torch.optim.AdamW([trained_ND], eps=1e-4), rates_S, batches, loss)
    keys_MD[:count] = trained_ND.detach()
    return Scorer(texts_CD.numpy(), np.zeros(support.num_classes), keys_MD.numpy(), values_MC.numpy(), beta)


def tip_f_batches(count: int, views: int) -> list[np.ndarray]:
    """The rows of each of Tip-Adapter-F's steps, each int64 [B], of ``count * views`` rows, image by image.

    An epoch is a new permutation of the images, each in one view, drawn at random.
    """
    draws = generator("tip_f", count, views)
    epochs = (draws.permutation(count) * views + draws.integers(views, size=count) for _ in range(TIP_F_EPOCHS))
    return [rows[start : start + TIP_F_BATCH] for rows in epochs for start in range(0, count, TIP_F_BATCH)]


# ---------------------------------------------------------------- both


def training_rows(support: Support) -> tuple[torch.Tensor, torch.Tensor]:
    """All views, float32 [N V, D], image by image, and their labels."""
    views, width = support.seen_NVD.shape[1:]
    rows_RD = torch.from_numpy(support.seen_NVD.reshape(-1, width).astype(np.float32))
    return rows_RD, torch.from_numpy(support.labels_N.astype(np.int64).repeat(views))


def descend(
    optimizer: torch.optim.Optimizer,
    rates_S: np.ndarray,
    batches: Iterable[np.ndarray],
    loss: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """One step a batch, each at its rate."""
    for rate, rows_B in zip(rates_S, batches, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss(torch.from_numpy(rows_B)).backward()
        optimizer.step()


def cosine_decay(progress_S: np.ndarray) -> np.ndarray:
    """From 1 at 0 to 0 at 1."""
    return (1 + np.cos(math.pi * progress_S)) / 2


def held_out_logits(support: Support, train: Callable[[Support], Scorer]) -> np.ndarray:
    """Of each labeled image, by a teacher trained on the other folds, float64 [N, C]; of a lone one, by the texts."""
    folds_N, logits_NC = folds(support.labels_N), support.text_logits_NC.copy()
    for fold in range(folds_N.max() + 1):
        own, others = np.flatnonzero(folds_N == fold), np.flatnonzero(folds_N != fold)
        if len(others):
            logits_NC[own] = train(support.some(others)).logits(support.features_ND[own])
    return logits_NC


def folds(labels_N: np.ndarray) -> np.ndarray:
    """The fold of each labeled image, int64 [N], 0 to FOLDS - 1: dealt out in turn, class by class.

    So the images of a class, and all images, are as many in each fold, give or take one.
    """
    folds_N = np.empty(len(labels_N), np.int64)
    folds_N[np.argsort(labels_N, kind="stable")] = np.arange(len(labels_N)) % FOLDS
    return folds_N
