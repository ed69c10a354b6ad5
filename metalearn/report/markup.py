"""One table for a person, a paper or a program: Markdown, LaTeX with booktabs, or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

FORMATS = ("md", "tex", "csv")
LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
}


class Grid(NamedTuple):
    """title and note: sentences above and below. bold: rows whose cell `best` is set in bold."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    right: Sequence[int] = ()
    bold: Sequence[int] = ()
    best: int = 0


def written(grids: Sequence[Grid], form: str) -> str:
    """Tables one after the other; form: one of FORMATS. In CSV the title is the first column."""
    if form == "csv":
        return _csv(grids)
    return "\n\n".join((_latex if form == "tex" else _markdown)(one) for one in grids) + "\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; what would end a cell or begin a tag is escaped."""
    rule = ["---:" if place in right else "---" for place in range(len(head))]
    lines = [head, rule, *([_cell(text) for text in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _markdown(one: Grid) -> str:
    rows = [
        [
            f"**{text}**" if place in one.bold and column == one.best else text
            for column, text in enumerate(row)
        ]
        for place, row in enumerate(one.rows)
    ]
    parts = [
        f"### {_cell(one.title)}" if one.title else "",
        markdown(one.head, rows, one.right),
        _cell(one.note),
    ]
    return "\n\n".join(part for part in parts if part)


def _latex(one: Grid) -> str:
    columns = "".join("r" if place in one.right else "l" for place in range(len(one.head)))
    rows = []
    for place, row in enumerate(one.rows):
        cells = [latex(text) for text in row]
        if place in one.bold:
            cells[one.best] = rf"\textbf{{{cells[one.best]}}}"
        rows.append("  " + " & ".join(cells) + r" \\")
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        *(
            [rf"\caption{{{latex(' '.join([one.title, one.note]).strip())}}}"]
            if one.title or one.note
            else []
        ),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        "  " + " & ".join(map(latex, one.head)) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def latex(text: str) -> str:
    """The text as LaTeX sets it."""
    return "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _csv(grids: Sequence[Grid]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titled = any(one.title for one in grids)
    for place, one in enumerate(grids):
        if place == 0:
            writer.writerow([*(["protocol"] if titled else []), *one.head])
        writer.writerows([*([one.title] if titled else []), *row] for row in one.rows)
    return text.getvalue()
