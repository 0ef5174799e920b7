"""BatchNorm over the images of all workers together, on CPUs too, which torch's own does not do.

A model keeps its modules and the names of its state: only how they normalise while they train is another.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise(model: nn.Module) -> None:
    """Let every BatchNorm of a model take its statistics over all workers, in place.

    Workers may have unlike numbers of images. Cost: two sums of as many numbers as channels, over all workers, for each
    BatchNorm and each pass.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.forward = partial(_normalise, module)  # type: ignore[method-assign]


def _normalise(norm: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of a BatchNorm, and of what timm puts behind it (dropout, activation)."""
    if not norm.training:
        return type(norm).forward(norm, x)
    over = [0, *range(2, x.ndim)]
    values, shape = x.float(), [1, -1, *[1] * (x.ndim - 2)]
    count = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float32, device=x.device)
    sums = all_reduce(torch.cat([values.sum(over), count]))
    total, mean = sums[-1].detach(), sums[:-1] / sums[-1]
    centered = values - mean.view(shape)
    variance = all_reduce(centered.square().sum(over)) / total
    if norm.track_running_stats:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        with torch.no_grad():
            unbiased = variance * total / (total - 1).clamp(min=1)
            for kept, now in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                assert kept is not None
                kept.lerp_(now.to(kept.dtype), share)
    found = centered * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        found = found * norm.weight.view(shape) + norm.bias.view(shape)
    found = found.to(x.dtype)
    for name in ("drop", "act"):  # of timm's BatchNormAct2d
        if isinstance(behind := getattr(norm, name, None), nn.Module):
            found = behind(found)
    return found
