"""HTML pages of one file each: no network, no server, no script of others; light and dark, on screen and on
paper.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def page(template: str, **values: Any) -> str:
    """A template of templates/, which extends page.html, with these values; a missing one is an error."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def picture(content: bytes, kind: str = "png") -> str:
    """The address of a picture that lies within the page itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
