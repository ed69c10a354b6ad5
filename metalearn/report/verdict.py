"""Whether a recipe still gives what it gave, and what was published: two verdicts from numbers alone.

Every figure is in the unit in which people read it, percent for accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

Z = 1.96  # half-width of a 95% interval in standard errors
POWER = 0.8416  # 80% of differences of (Z + POWER) standard errors are seen
# Numbers are rounded where they are recorded, so that equality to the last bit would be decided by that.
SLACK = 1e-9

PASS, FAIL, INCONCLUSIVE, NO_RECORD = "PASS", "FAIL", "INCONCLUSIVE", "NO RECORD"
REACHED, BELOW, NOT_COMPARABLE, NONE = "REACHED", "BELOW", "NOT COMPARABLE", "NO PUBLISHED FIGURE"


class Measured(NamedTuple):
    """mean: over seeds. ci95: half-width over tasks, the mean of the seeds'. std: over seeds, None for one.

    plan: how it was computed, which changes bits; None if that is not known.
    """

    mean: float
    ci95: float
    std: float | None
    seeds: tuple[int, ...]
    plan: str | None = None


class Ours(NamedTuple):
    """difference: new minus recorded. allowed: the largest that passes. detectable: the true difference that
    would be noticed four times out of five. None where there is nothing to compute them from.
    """

    verdict: str
    reason: str
    difference: float | None = None
    allowed: float | None = None
    detectable: float | None = None


class Published(NamedTuple):
    verdict: str
    reason: str


def ours(new: Measured, recorded: Measured) -> Ours:
    """PASS where |new − recorded| ≤ 1.96·√(se_new² + se_rec² + s²(1/n_new + 1/n_rec)).

    se: of the mean over tasks. s: the spread over n seeds, pooled over both sides. With one seed on either
    side it is unknown, and 0 only where the same seed was computed in the same way.
    """
    difference = new.mean - recorded.mean
    spread = 0.0
    if new.std is not None and recorded.std is not None:
        spread = pooled(new.std, len(new.seeds), recorded.std, len(recorded.seeds))
    elif new.seeds != recorded.seeds or new.plan is None or new.plan != recorded.plan:
        return Ours(INCONCLUSIVE, why_unknown(new, recorded), difference)
    error = math.sqrt(
        (new.ci95 / Z) ** 2
        + (recorded.ci95 / Z) ** 2
        + spread**2 * (1 / len(new.seeds) + 1 / len(recorded.seeds))
    )
    allowed = Z * error
    same = abs(difference) <= allowed + SLACK * max(1.0, abs(recorded.mean))  # not if one is NaN
    reason = f"spread over seeds {spread:.3g}" if new.std is not None else "the same seed and plan"
    return Ours(PASS if same else FAIL, reason, difference, allowed, (Z + POWER) * error)


def pooled(a: float, num_a: int, b: float, num_b: int) -> float:
    """The standard deviation over seeds, from those of both sides."""
    return math.sqrt(((num_a - 1) * a**2 + (num_b - 1) * b**2) / (num_a + num_b - 2))


def why_unknown(new: Measured, recorded: Measured) -> str:
    what = "one seed does not say how much seeds differ"
    if new.seeds != recorded.seeds:
        both = f"seeds {listed(new.seeds)} against {listed(recorded.seeds)} of the record"
        more = (
            f"--seeds {len(recorded.seeds)}" if len(recorded.seeds) > 1 else "--seeds 3 --record, and again"
        )
        return f"{what}: {both}; run it with {more}"
    if recorded.plan is None:
        return f"{what}, and the record does not say by which plan it was computed; renew it with --record"
    return f"{what}, and the plan is another: {new.plan}, recorded {recorded.plan}"


def listed(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))


def published(
    figure: float | None,
    protocol: Mapping[str, Any],
    facts: Mapping[str, Any],
    new: Measured,
    *,
    higher_is_better: bool | None,
) -> Published:
    """REACHED where the 95% interval of the new figure, over tasks and seeds, reaches the published one.

    From three seeds on it is by t with Satterthwaite's degrees of freedom, as that of `metalearn compare`;
    with fewer, it is of these models, over tasks only, and the reason says so.

    protocol: what is known of the published figure. facts: the same and more of the new one.
    higher_is_better: None if nothing says so. A published figure's own interval is not counted.
    """
    if figure is None:
        return Published(NONE, "")
    unlike = [
        f"{name} {shown(facts.get(name))} instead of {shown(value)}"
        for name, value in protocol.items()
        if facts.get(name) != value
    ]
    if unlike:
        return Published(NOT_COMPARABLE, ", ".join(unlike))
    if not protocol:
        return Published(NOT_COMPARABLE, "the recipe does not say how the figure was measured")
    if higher_is_better is None:
        return Published(NOT_COMPARABLE, "nothing says whether more of this metric is better")
    half, of_what = interval(new)
    gap = new.mean - figure if higher_is_better else figure - new.mean
    worse = "less" if higher_is_better else "more"
    if gap + half + SLACK * max(1.0, abs(figure)) >= 0:
        return Published(REACHED, (f"within {half:.3g} of it" if gap < 0 else "or better") + of_what)
    return Published(
        BELOW, f"{-gap:.3g} {worse} than published, more than the interval of {half:.3g}{of_what}"
    )


def interval(new: Measured) -> tuple[float, str]:
    """The half-width of the 95% interval of a figure, and what is to be said of it."""
    from metalearn.report.statistics import FEWEST_SEEDS, half_width, satterthwaite  # scipy is slow to load

    count = len(new.seeds)
    if new.std is None or count < FEWEST_SEEDS:
        return new.ci95, ", of these models, over tasks only"
    over_both = satterthwaite([(new.std**2 / count, count - 1), ((new.ci95 / Z) ** 2, math.inf)])
    return max(new.ci95, half_width(*over_both)), ""


def shown(value: Any) -> str:
    if value is None:
        return "unknown"
    return str(value).lower() if isinstance(value, bool) else str(value)
