"""BatchNorm over the images of all workers together, on CPUs too: torch's own refuses them.

N images of a worker, C channels, W workers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from raykd.errors import UserError


def synchronise(model: nn.Module) -> None:
    """Let every BatchNorm of a model take its statistics over all workers while it trains, in place.

    Names in its state and its values are as they were, and so is what it does when it does not train. Workers may have
    unlike numbers of images, but all must go through the model equally often.

    Raises:
        UserError: A module normalises over a batch in a way of its own (timm's split BatchNorm).
    """
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d):
            module.__class__ = SyncedBatchNorm
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, SyncedBatchNorm):
            raise UserError(
                f"student.sync_batchnorm: {type(module).__name__} normalises in its own way; leave it out, or choose "
                "another student.backbone"
            )


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Made of a BatchNorm, or of timm's with an activation behind it, by :func:`synchronise`."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any number of dimensions."""

    @torch.compiler.disable
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        found = self._synced(input) if self.training else super().forward(input)
        for name in ("drop", "act"):  # of timm's BatchNormAct2d
            if (behind := getattr(self, name, None)) is not None:
                found = behind(found)
        return found

    def _synced(self, input: torch.Tensor) -> torch.Tensor:
        normalised, mean_C, var_C, count = _Normalised.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean_C, share)
            self.running_var.lerp_(var_C * (count / (count - 1)), share)
        return normalised


class _Normalised(torch.autograd.Function):
    """Input, normalised over the images of all workers; their mean, variance and number (of pixels).

    Its gradient is that of the sum of all workers' losses, as torch's SyncBatchNorm has it. A gathering of 2 C + 1
    numbers forward, and a sum of 2 C backward.
    """

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight_C: Any, bias_C: Any, eps: float) -> tuple[torch.Tensor, ...]:
        over = [0, *range(2, input.ndim)]
        count = input.numel() // input.shape[1]
        var_C, mean_C = torch.var_mean(input.float(), over, correction=0)
        mine = torch.cat([mean_C, var_C, mean_C.new_tensor([count])])
        all_W = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(all_W, mine)
        means_WC, vars_WC, counts_W1 = torch.stack(all_W).split([len(mean_C), len(mean_C), 1], dim=1)
        count_1 = counts_W1.sum(0)
        mean_C = (counts_W1 * means_WC).sum(0) / count_1
        var_C = (counts_W1 * (vars_WC + (means_WC - mean_C).square())).sum(0) / count_1
        ctx.save_for_backward(input, weight_C, mean_C, torch.rsqrt(var_C + eps), count_1)
        ctx.mark_non_differentiable(mean_C, var_C, count_1)
        return F.batch_norm(input, mean_C, var_C, weight_C, bias_C, eps=eps), mean_C, var_C, count_1

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        input, weight_C, mean_C, scale_C, count_1 = ctx.saved_tensors
        over, shape = [0, *range(2, input.ndim)], [1, -1, *[1] * (input.ndim - 2)]
        gradient, normalised = gradients[0].float(), (input.float() - mean_C.view(shape)) * scale_C.view(shape)
        sums_2C = torch.cat([gradient.sum(over), (gradient * normalised).sum(over)])
        of_bias_C, of_weight_C = sums_2C.clone().chunk(2)  # of this worker: DDP takes the mean of all
        dist.all_reduce(sums_2C)
        along_bias_C, along_weight_C = (sums_2C / count_1).chunk(2)
        of_input = gradient - along_bias_C.view(shape) - normalised * along_weight_C.view(shape)
        factor_C = scale_C if weight_C is None else scale_C * weight_C
        of_input = (of_input * factor_C.view(shape)).to(input.dtype)
        return of_input, *((None, None) if weight_C is None else (of_weight_C, of_bias_C)), None
