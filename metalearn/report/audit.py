"""The page of an audit: what was found, with pictures; one file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from metalearn.report.page import page, picture
from metalearn.report.tables import grid

LARGEST = 160  # side of a picture on the page, in pixels; larger ones are reduced
WIDTH, HEIGHT = 640, 160  # of the figure of sizes
RANK = {"error": 0, "warning": 1, "note": 2, "ok": 3}


def audit_table(findings: Sequence[Any]) -> str:
    """One line per finding, in the order of the checks."""
    return grid([["check", "severity", "finding"], *([f.check, f.severity, f.text] for f in findings)])


def audit_page(*, title: str, command: str, audit: Any) -> str:
    """HTML. audit: `metalearn.data.findings.Audit`, or what has its attributes."""
    shown = [
        {"finding": finding, "exhibits": [_encoded(exhibit) for exhibit in finding.exhibits]}
        for finding in sorted(audit.findings, key=lambda finding: RANK[finding.severity])
        if finding.severity != "ok" and (finding.exhibits or len(finding.names) > 1)
    ]
    return page(
        "audit.html",
        title=title,
        command=command,
        findings=audit.findings,
        shown=shown,
        method=audit.method,
        sizes=_curves(audit.sizes),
        width=WIDTH,
        height=HEIGHT,
        largest=max((max(sizes, default=0) for sizes in audit.sizes.values()), default=0),
    )


def _encoded(exhibit: Any) -> dict[str, Any]:
    pictures = [{"name": name, "address": picture(_png(pixels))} for name, pixels in exhibit.pictures]
    return {"caption": exhibit.caption, "pictures": pictures}


def _png(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((LARGEST, LARGEST))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _curves(sizes: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """Of each split: its classes from the largest to the smallest as steps of a line, for SVG."""
    highest = max((max(found, default=0) for found in sizes.values()), default=0)
    curves = []
    for split, found in sizes.items():
        if not found or not highest:
            continue
        points, done = [], 0
        for size, alike in groupby(sorted(found, reverse=True)):
            y, start, done = HEIGHT * (1 - size / highest), done, done + len(list(alike))
            points += [f"{WIDTH * place / len(found):.1f},{y:.1f}" for place in (start, done)]
        curves.append({"split": split, "points": " ".join(points), "classes": len(found)})
    return curves
