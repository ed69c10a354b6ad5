"""Running sums of the metrics between two log lines."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Window:
    """Sums of the metrics since the last log line, kept on the device."""

    count: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: dict[str, Tensor]) -> None:
        self.count += 1
        self.sums = {name: self.sums[name] + value if name in self.sums else value for name, value in metrics.items()}

    def take(self) -> dict[str, float]:
        """Means over the window, which starts anew."""
        means = {name: value.item() / self.count for name, value in self.sums.items()}
        self.count, self.sums = 0, {}
        return means
