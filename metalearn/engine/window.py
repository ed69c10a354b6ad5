"""Running sums of the metrics between two log lines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

LEFT_OUT = "left_out"  # steps of the window whose update was


@dataclass
class Window:
    """Sums of the metrics since the last log line, kept on the device."""

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: dict[str, Tensor], bad: Tensor | None = None) -> None:
        """bad: whether the update was left out, and its metrics with it; None where nothing ever is."""
        self.count += 1
        if bad is not None:
            metrics = {**{name: value.masked_fill(bad, 0) for name, value in metrics.items()}, LEFT_OUT: bad.long()}
        sums = {name: self.sums[name] + value if name in self.sums else value for name, value in metrics.items()}
        self.sums = sums | {name: value for name, value in self.sums.items() if name not in sums}

    def take(self) -> dict[str, float]:
        """Means over the window, which starts anew, and how many of its steps they leave out; NaN if all."""
        sums = {name: value.item() for name, value in self.sums.items()}
        count = self.count - sums.get(LEFT_OUT, 0)
        means = {name: value if name == LEFT_OUT else value / count if count else math.nan for name, value in sums.items()}
        self.count, self.sums = 0, {}
        return means
