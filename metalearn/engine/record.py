"""What validation said so far, and so which checkpoint is best and whether training has stopped improving."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Record:
    """entries: [step, value of the monitored metric] of every validation, in order; values that are not finite are None."""

    higher_is_better: bool
    entries: list[list[float | None]] = field(default_factory=list)

    def enter(self, step: int, value: float) -> None:
        self.entries.append([step, value if math.isfinite(value) else None])

    def ranked(self, count: int) -> list[int]:
        """Steps of the `count` best values, best first (at least one if there is any); the earlier of equals comes first."""
        sign = -1 if self.higher_is_better else 1
        scored = sorted((sign * value, step) for step, value in self.entries if value is not None and step is not None)
        return [int(step) for _, step in scored[: max(count, 1)]]

    def best(self) -> int | None:
        return next(iter(self.ranked(1)), None)

    def since_best(self) -> int:
        """Validations after the best one."""
        best = self.best()
        return len(self.entries) if best is None else sum(1 for step, _ in self.entries if step is not None and step > best)

    def forget(self, step: int) -> None:
        """Leave a validation out, because its checkpoint is lost."""
        self.entries = [entry for entry in self.entries if entry[0] != step]
