"""What `metalearn compare` prints: the methods, what the tasks say of these models, and what the seeds do."""

from __future__ import annotations

import math
from collections.abc import Sequence

from metalearn.report import statistics
from metalearn.report.compare import Comparison, Pair, Paired, Side, decisive, enough
from metalearn.report.statistics import Components, Interval, OverSeeds
from metalearn.report.tables import grid
from metalearn.rundir.reader import Format

MOST_DIFFERENCES = 6  # keys, and signs of a value, that are told
MOST_LETTERS = 24
MOST_SEEDS = 5  # that are named


def text(found: Comparison) -> str:
    """All of it, for people: accuracies in percent."""
    parts = [_head(found), _methods(found), _differ(found)]
    parts += [_pair(found, found.pairs[0])] if len(found.pairs) == 1 else _pairs(found)
    return "\n\n".join(part for part in [*parts, *_sentences(found)] if part)


def signed(form: Format, value: float) -> str:
    return f"{value * form.scale:+.{form.digits}f}"


def between(form: Format, interval: Interval) -> str:
    """'+0.70 … +1.20 points'."""
    return f"{signed(form, interval.low)} … {signed(form, interval.high)}{unit(form)}"


def unit(form: Format) -> str:
    """Of a difference, with the space before it: what is in percent differs by points."""
    name = "points" if form.unit == "%" else form.unit
    return f" {name}" if name else ""


def p_value(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}" if p else "below 1e-300"


def _head(found: Comparison) -> str:
    better = "more" if found.higher_is_better else "less"
    counts = [side.scores.shape[1] for side in found.sides]
    if found.paired:
        head = f"{found.metric} ({better} is better) on {counts[0]:,} tasks, paired task by task"
    else:
        head = f"{found.metric} ({better} is better), unpaired: the methods were not judged alike"
    lines = [head]
    for name, values in found.unlike.items():
        told = ", ".join(f"{value} for {side.label}" for value, side in zip(values, found.sides, strict=True))
        lines.append(f"unlike: {name} is {told}")
    if found.left_out:
        most = max(found.left_out.values())
        lines.append(f"left out: up to {most:,} tasks of a result that not all results share")
    return "\n".join(lines)


def _methods(found: Comparison) -> str:
    rows = [["", "method", "seeds", "mean ± 95% CI over tasks", "tasks"]]
    for letter, side in zip(_letters(found.sides), found.sides, strict=True):
        mean = found.form.shown(side.mean, side.ci95)
        rows.append([letter, side.label, _seeds(side), mean, f"{side.scores.shape[1]:,}"])
    return grid(rows, right=(3, 4))


def _letters(sides: Sequence[Side]) -> list[str]:
    """A, B, … of methods; numbers where there are more than letters."""
    return [chr(ord("A") + n) if len(sides) <= 26 else str(n + 1) for n in range(len(sides))]


def _seeds(side: Side) -> str:
    seeds = side.method.seeds
    told = ", ".join(map(str, seeds)) if len(seeds) <= MOST_SEEDS else f"{len(seeds)} seeds"
    return told if side.trains else f"{told} (no matter)"


def _differ(found: Comparison) -> str:
    """In which keys the methods differ, where their labels do not say all of them."""
    untold = {
        key: values
        for key, values in found.differ.items()
        if not all(f"{key}={value}" in side.label for value, side in zip(values, found.sides, strict=True))
    }
    if not untold:
        return ""
    told = [
        f"{key} ({' | '.join(value[:MOST_LETTERS] for value in values)})"
        for key, values in [*untold.items()][:MOST_DIFFERENCES]
    ]
    rest = len(untold) - len(told)
    return f"the methods also differ in {', '.join(told)}" + (f" and {rest} more keys" if rest else "")


def _pair(found: Comparison, pair: Pair) -> str:
    """The numbers of two methods, one a line."""
    form = found.form
    rows = [("A − B", f"{signed(form, pair.difference)}{unit(form)}")]
    if pair.paired:
        rows += _paired(form, pair.paired)
        verdict = "overlap: they cannot tell the two apart" if pair.overlap else "do not overlap"
        rows.append(("unpaired intervals", verdict))
        rows.append(("Welch's unpaired 95% CI", between(form, pair.unpaired.t)))
    else:
        rows.append(("Welch's unpaired 95% CI", between(form, pair.unpaired.t)))
        rows.append(("Welch's p", p_value(pair.unpaired.p)))
        rows.append(("unpaired intervals", "overlap" if pair.overlap else "do not overlap"))
    parts = ["these trained models, over tasks\n" + _aligned(rows)]
    if pair.over_seeds:
        how = "; seeds are paired, as both are of the same runs" if pair.seeds_paired else ""
        parts.append(f"over seeds and tasks{how}\n" + _aligned(_over_seeds(found, pair, pair.over_seeds)))
    return "\n\n".join(parts)


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name.ljust(width)}  {value}" for name, value in rows)


def _paired(form: Format, paired: Paired) -> list[tuple[str, str]]:
    size, needed = paired.effect_size, paired.tasks_needed
    return [
        ("95% CI, paired t", between(form, paired.t)),
        ("paired t p", p_value(paired.p)),
        ("95% CI, paired bootstrap", between(form, paired.bootstrap)),
        ("Wilcoxon signed-rank p", f"{p_value(paired.wilcoxon_p)} (zeros as Pratt ranks them)"),
        ("effect size d_z", "not finite" if size is None else f"{size:+.3f} (mean / standard deviation)"),
        ("win / tie / loss of A", f"{paired.wins:,} / {paired.ties:,} / {paired.losses:,} tasks"),
        (
            "tasks needed",
            "no number tells a difference of 0 from 0"
            if needed is None
            else f"{needed:,} for a 95% CI without 0 with 80% power, if this difference is the true one",
        ),
    ]


def _over_seeds(found: Comparison, pair: Pair, over: OverSeeds) -> list[tuple[str, str]]:
    df = f"{over.df:.1f} degrees of freedom" if math.isfinite(over.df) else "no spread"
    rows = [
        ("95% CI, t", f"{between(found.form, over.interval)} ({df}, Satterthwaite)"),
        ("p", p_value(over.p)),
        ("variance of A − B", _shares(over.parts)),
    ]
    for letter, side in zip("AB", (pair.a, pair.b), strict=True):
        if side.trains:
            spread = statistics.components(side.scores)
            numbers = [
                f"{name} {math.sqrt(value) * found.form.scale:.{found.form.digits}f}"
                for name, value in spread._asdict().items()
            ]
            rows.append((f"standard deviations of {letter}", f"{', '.join(numbers)}{unit(found.form)}"))
    return rows


def _shares(parts: Components) -> str:
    together = sum(parts) or 1.0
    return ", ".join(f"{name} {value / together:.0%}" for name, value in parts._asdict().items())


def _pairs(found: Comparison) -> list[str]:
    """The numbers of more than two methods, one pair a line."""
    form, letters = found.form, dict(zip(map(id, found.sides), _letters(found.sides), strict=True))
    head = ["pair", "difference", "95% CI over tasks"]
    own = ["Wilcoxon p (Holm)", "d_z", "win / tie / loss", "tasks needed"] if found.paired else []
    rows = [[*head, "p (Holm)", *own]]
    seeds = [["pair", "95% CI over seeds and tasks", "df", "p (Holm)", "variance of the difference"]]
    for pair in found.pairs:
        name = f"{letters[id(pair.a)]} − {letters[id(pair.b)]}"
        test = pair.paired or pair.unpaired
        rows.append([name, signed(form, pair.difference) + unit(form), between(form, test.t)])
        rows[-1].append(p_value(test.holm_p))
        if pair.paired:
            rows[-1] += _paired_cells(pair.paired)
        if pair.over_seeds:
            over = pair.over_seeds
            p = p_value(pair.over_seeds_holm if pair.over_seeds_holm is not None else over.p)
            interval = between(form, over.interval) + (" (seeds paired)" if pair.seeds_paired else "")
            seeds.append([name, interval, f"{over.df:.1f}", p, _shares(over.parts)])
        else:
            seeds.append([name, f"none: {pair.why_not}", "", "", ""])
    kind = "paired t; Wilcoxon signed-rank p beside it" if found.paired else "Welch's t"
    count = len(found.pairs)
    said = f"these trained models, over tasks ({kind}; p corrected for {count} pairs by Holm's method)"
    return [f"{said}\n{grid(rows, right=tuple(range(1, len(rows[0]))))}", grid(seeds)]


def _paired_cells(paired: Paired) -> list[str]:
    size = "not finite" if paired.effect_size is None else f"{paired.effect_size:+.3f}"
    needed = "–" if paired.tasks_needed is None else f"{paired.tasks_needed:,}"
    return [
        p_value(paired.wilcoxon_holm_p),
        size,
        f"{paired.wins:,} / {paired.ties:,} / {paired.losses:,}",
        needed,
    ]


def _sentences(found: Comparison) -> list[str]:
    """What follows, and above all what does not."""
    if len(found.pairs) > 1:
        letters = dict(zip(map(id, found.sides), _letters(found.sides), strict=True))
        lines = [
            f"{letters[id(pair.a)]} − {letters[id(pair.b)]}: {_verdict(found, pair)}" for pair in found.pairs
        ]
        return ["\n".join(lines)]
    return [_verdict(found, found.pairs[0])]


def _verdict(found: Comparison, pair: Pair) -> str:
    first = (pair.difference > 0) == found.higher_is_better
    better = (pair.a if first else pair.b).label
    if pair.over_seeds is not None:
        if enough(pair):
            return f"Over seeds and tasks, {better} is better."
        holds = decisive(pair).holds(0.0)
        why = "the interval over seeds holds 0" if holds else "p is too large for so many pairs"
        return f"With {_count(pair)} this is not enough to say which is better: {why}."
    if not pair.a.trains and not pair.b.trains:
        if enough(pair):
            return f"On tasks like these, {better} is better; {pair.why_not}."
        few = "" if decisive(pair).holds(0.0) else " (p is too large for so many pairs)"
        return f"These tasks are not enough to say which is better{few}; {pair.why_not}."
    return (
        f"This says something of these trained models, and nothing of other seeds: {pair.why_not}.\n"
        f"With {_count(pair)} this is not enough to say which method is better."
    )


def _count(pair: Pair) -> str:
    """'3 seeds', '3 and 5 seeds', '1 seed' of the methods for which seeds matter."""
    counts = list(dict.fromkeys(len(side.scores) for side in (pair.a, pair.b) if side.trains))
    return f"{' and '.join(map(str, counts))} {'seed' if counts == [1] else 'seeds'}"


def undrawn(found: Comparison, pairs: Sequence[Pair]) -> str:
    """Which pairs a picture leaves out, behind the sentence that says where it is."""
    letters = dict(zip(map(id, found.sides), _letters(found.sides), strict=True))
    names = [f"{letters[id(pair.a)]} − {letters[id(pair.b)]}" for pair in pairs]
    return f", but for the pairs {', '.join(names)}, which have no panel" if names else ""
