"""Zero-shot classification with a CLIP-like model: class embeddings from prompts, logits from cosines.

N images, C classes, P prompts of all classes, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

LEAST_F16 = float(np.finfo(np.float16).min)


def class_embeddings(text_features_PD: torch.Tensor, num_prompts_C: Sequence[int]) -> torch.Tensor:
    """One direction per class: the mean of its prompts' unit vectors, again of length 1 (CLIP's prompt ensemble).

    Args:
        text_features_PD: float [P, D], embeddings of the prompts, class by class; any length.
        num_prompts_C: How many of them each class has, at least 1.

    Returns:
        float [C, D], rows of length 1; equal to ``open_clip.build_zero_shot_classifier(...).T``.
    """
    of_classes = F.normalize(text_features_PD, dim=-1).split(list(num_prompts_C))
    return F.normalize(torch.stack([unit_TD.mean(dim=0) for unit_TD in of_classes]), dim=-1)


def zero_shot_logits(
    image_features_ND: torch.Tensor, classes_CD: torch.Tensor, scale: float, bias: float = 0.0
) -> torch.Tensor:
    """``scale * cosine + bias``, whose softmax is the zero-shot prediction (the papers' teacher: PAPERS.md 2.3).

    The rule for sigmoid models (SigLIP, arXiv 2303.15343): there ``sigmoid(l_c)`` is the probability that text c fits
    the image, each text for itself; they need not sum to 1. A class list says more: exactly one of the C is right.
    Given that, and the fits independent, class c has the probability

        P(c) ~ sigmoid(l_c) * prod_{k != c} (1 - sigmoid(l_k)) ~ sigmoid(l_c) / (1 - sigmoid(l_c)) = exp(l_c)

    which is the softmax of the logits, as of any CLIP; the bias cancels. How likely it is that *none* of the texts
    fits is not in it.

    Args:
        image_features_ND: float [N, D], any length.
        classes_CD: float [C, D], rows of length 1.
        scale: The model's own ``exp(logit_scale)``; 100 for OpenAI's CLIP.
        bias: SigLIP's ``logit_bias``. The same for every class, so the softmax, and with it distillation and
            selection, does not see it; it is kept so that ``sigmoid(logits)`` is SigLIP's own probability. (With
            several prompts a class, of the class's mean direction.)

    Returns:
        float [N, C].
    """
    return scale * F.normalize(image_features_ND, dim=-1) @ classes_CD.T + bias


def rounded(logits_NC: np.ndarray) -> np.ndarray:
    """Logits in half precision, each row shifted so that its largest is 0.

    That changes no softmax, and the finest steps of a float16 are then where they matter.

    Returns:
        float16 [N, C]. A probability is off by at most a 2,048th of itself times its logit's distance from the largest.
    """
    logits = torch.from_numpy(np.ascontiguousarray(logits_NC))
    shifted = logits - logits.max(dim=1, keepdim=True).values if logits.numel() else logits
    halves: np.ndarray = shifted.clamp_(min=LEAST_F16).half().numpy()
    return halves
