"""A convolution with its batch norm, and max-pooling, in the order of work that costs least.

The first layer of an image network is the cheapest to multiply and the dearest to read: one channel in, 64
out, at full size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.models.base import Norm

# n images, M places of all of them, K inputs of an output (channels times kernel), C channels out

MOST_INPUTS = 32  # of an output, up to which the moments of what it sees are cheaper than its own


def normalised(
    conv: nn.Conv2d,
    norm: Norm,
    x: Tensor,
    given: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    step: int | Tensor = 0,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`norm(conv(x), given, mask, step)` of a convolution without bias, groups and dilation.

    Where inputs are few, by the moments of patches: an output is w·p of a patch p of the image, so that its
    mean over all places is w·E[p] and its variance w·Cov[p]·w, for which no output is read. The norm's scale
    then goes into w, and its shift is a bias, so that neither outputs nor their gradients are gone through
    but by the product with the patches.
    """
    # in bfloat16 weights are rounded, and statistics not those of the outputs
    if conv.weight[0].numel() > MOST_INPUTS or x.itemsize < 4:
        return norm(conv(x), given, mask, step)
    assert isinstance(conv.padding, tuple)
    patches_MK = (
        F.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride).transpose(1, 2).flatten(0, 1)
    )
    weight_CK = conv.weight.flatten(1)
    mean, var = statistics = moments(patches_MK, weight_CK, mask) if given is None else given
    scale, shift = norm.affine(mean, var, step)
    # Contiguous as (K, C): autograd then multiplies patchesᵀ·gradient; for a view it takes gradientᵀ·patches,
    # which is 8 times as slow.
    weight_KC = (scale * weight_CK.T).contiguous()
    y_MC = torch.addmm(shift, patches_MK, weight_KC)
    height, width = (
        (x.shape[2 + side] + 2 * conv.padding[side] - conv.kernel_size[side]) // conv.stride[side] + 1
        for side in (0, 1)
    )
    return y_MC.view(len(x), height, width, len(weight_CK)).permute(0, 3, 1, 2), statistics


def moments(patches_MK: Tensor, weight_CK: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of weight·patch over the places of the real images. mask: (n,).

    In float64 within: neighbouring pixels are nearly equal, so that for a filter that looks at differences
    w·Cov·w is small beside its terms. In float32 it was off by 1e-4, which reached the loss.
    """
    dtype = weight_CK.dtype
    patches_MK, weight_CK = patches_MK.double(), weight_CK.double()
    if mask is None:
        mean_K = patches_MK.mean(0)
        centred_MK = patches_MK - mean_K
        covariance_KK = centred_MK.T @ centred_MK / len(patches_MK)
    else:
        places = len(patches_MK) // len(mask)
        share_M1 = (mask.double() / (mask.sum() * places).clamp(min=1)).repeat_interleave(places)[:, None]
        mean_K = (share_M1 * patches_MK).sum(0)
        centred_MK = patches_MK - mean_K
        covariance_KK = (share_M1 * centred_MK).T @ centred_MK
    return (weight_CK @ mean_K).to(dtype), (weight_CK @ covariance_KK * weight_CK).sum(1).to(dtype)


def max_pool(x: Tensor) -> Tensor:
    """`F.max_pool2d(x, 2)`, bit for bit in its values and its gradient: of equal values the first one takes
    it all.

    Compiled, a value that is not a number may be passed over here; a norm that measures its statistics has
    made all of them so before.
    """
    if not torch.compiler.is_compiling():
        return F.max_pool2d(x, 2)
    # The compiler fuses comparisons with what is around them, forwards and backwards; a pooling is a kernel
    # of its own that scatters.
    height, width = (size // 2 * 2 for size in x.shape[-2:])
    a, b, c, d = (x[..., row:height:2, column:width:2] for row in (0, 1) for column in (0, 1))
    above, below = torch.where(a < b, b, a), torch.where(c < d, d, c)
    return torch.where(above < below, below, above)
