"""Four 3x3 convolutions with batch norm: the backbone of most few-shot papers, in its two variants.

`stride`: strided convolutions, as MAML's Omniglot network (Finn et al. 2017); `pool`: max-pooling, as
Vinyals et al. 2016. The convolutions have no bias, since the norm that follows would subtract it again.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import InputSpec, one_of
from metalearn.models.base import STATISTICS, Model, Norm, Statistics, initialise
from metalearn.models.context import film, unmoved
from metalearn.models.convolution import max_pool, normalised

THIRD = 2  # the block that context parameters modulate, as in the authors' code


class Conv4(Model):
    """Images (n, C, H, W) → features (n, out_features); out_features follows from the image size."""

    def __init__(
        self,
        input_spec: InputSpec,
        *,
        channels: int,
        downsample: str,
        readout: str,
        norm_statistics: str,
        init: str,
        head_init: str,
    ) -> None:
        super().__init__(init=init, head_init=head_init)
        if isinstance(input_spec, dict) or len(input_spec.shape) != 3:
            raise ValueError(
                "model=conv4 needs images (channels, height, width); choose model=mlp for vectors or "
                "model=user_item for mappings"
            )
        one_of("model.downsample", downsample, ("stride", "pool"))
        one_of("model.readout", readout, ("mean", "flatten"))
        one_of("model.norm_statistics", norm_statistics, STATISTICS)
        self.downsample, self.readout, self.norm_statistics = downsample, readout, norm_statistics
        in_channels, height, width = input_spec.shape
        self.convs, self.bns = nn.ModuleList(), nn.ModuleList()
        for _ in range(4):
            self.convs.append(
                nn.Conv2d(
                    in_channels, channels, 3, stride=2 if downsample == "stride" else 1, padding=1, bias=False
                )
            )
            self.bns.append(Norm(channels))
            in_channels = channels
            height, width = (
                ((height + 1) // 2, (width + 1) // 2) if downsample == "stride" else (height // 2, width // 2)
            )
        if height * width == 0:
            raise ValueError(
                f"images of {input_spec.shape[1]}x{input_spec.shape[2]} pixels vanish after four poolings; "
                "raise data.image_size to 16 or more"
            )
        self.out_features = channels if readout == "mean" else channels * height * width
        initialise(self, init)
        self.film: nn.Linear | None = None
        self.register_parameter("context", None)

    def add_context(self, num_context: int) -> None:
        """Let so many context parameters scale and shift the channels of the third block, before its ReLU."""
        channels = self.convs[THIRD].out_channels
        assert isinstance(channels, int)
        self.film = initialise(nn.Linear(num_context, 2 * channels), self.init)
        self.context = unmoved(num_context)

    def forward(
        self, x: Tensor, given: Statistics | None = None, mask: Tensor | None = None, step: int | Tensor = 0
    ) -> tuple[Tensor, Statistics]:
        statistics = []
        for i, (conv, norm) in enumerate(zip(self.convs, self.bns, strict=True)):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, Norm)
            x, used = normalised(conv, norm, x, given[i] if given else None, mask, step)
            # ReLU after pooling equals ReLU before it, on a quarter of the pixels.
            x = max_pool(x) if self.downsample == "pool" else x
            x = F.relu(film(x, self.film, self.context) if i == THIRD else x)
            statistics.append(used)
        return (x.mean((-2, -1)) if self.readout == "mean" else x.flatten(1)), tuple(statistics)
