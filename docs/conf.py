"""How Sphinx builds these pages: `make docs`."""

from __future__ import annotations

import inspect
import re
from dataclasses import is_dataclass
from importlib.metadata import version as installed_version
from typing import Any

from sphinx.application import Sphinx

project = author = "equimod"
version = release = installed_version("equimod")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
smartquotes = False
html_theme = "furo"
html_title = "equimod"
html_copy_source = False
html_static_path = ["style"]
html_css_files = ["tables.css"]
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "Labels": "Labels"}

_CODE = re.compile(r"`+([^`]+)`+")
_FIELD = re.compile(r"^    (\w+): [^\n#]*  # (.+)$", re.MULTILINE)  # the line of a field, with a comment
_MARKUP = re.compile(r"([\\*|_])")


def as_restructured_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: make that code, and everything else no markup.

    Fields of a dataclass that have a comment behind them are listed with it.
    """
    if what == "class" and is_dataclass(obj):
        lines += [f"- `{field}`: {comment}" for field, comment in _FIELD.findall(inspect.getsource(obj))]
    parts = _CODE.split("\n".join(lines))
    parts[::2] = [_MARKUP.sub(r"\\\1", text) for text in parts[::2]]
    parts[1::2] = [f"``{code}``" for code in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", as_restructured_text)
