"""The shell of every page: one file with its style, scripts and data in it, under a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from eigenscope.files import replacing


def fill(template: str, *, script: str, data: Any, style: str = "", **context: Any) -> str:
    """The page as text: everything in ``context`` is escaped, scripts run by their hashes, nothing may be fetched.

    Args:
        template: name of an HTML file in ``page/``.
        script: the page's own, after Plotly's.
        data: what the script draws, as plain values without NaN or infinities.
        style: added to ``page.css``.
        context: what the template shows.
    """
    scripts = [as_hashed(get_plotlyjs()), as_hashed(script)]
    environment = Environment(
        loader=FunctionLoader(part), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(
        style=Markup(part("page.css") + style),
        plotly=Markup(scripts[0]),
        script=Markup(scripts[1]),
        policy="; ".join((
            "default-src 'none'", "style-src 'unsafe-inline'", "img-src data: blob:", "base-uri 'none'",
            "form-action 'none'", f"script-src {' '.join(map(_hash, scripts))}",
        )),
        data=Markup(as_json(data)),
        **context,
    )  # fmt: skip


def write(page: str, path: str | Path) -> None:
    """Write a page in one step, never half.

    Raises:
        OSError: the file cannot be written; an older one of that name is then untouched.
    """
    with replacing(path) as beside:
        beside.write_bytes(page.encode("utf-8"))


def part(name: str) -> str:
    """A file of the folder ``page``."""
    return resources.files("eigenscope.report").joinpath("page", name).read_text("utf-8")


def as_hashed(script: str) -> str:
    """A script as the browser will hash it: with line ends as HTML reads them."""
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"


def plain(value: Any) -> Any:
    """The same without numbers that JSON does not have: null in their place."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def as_json(data: Any) -> str:
    """JSON that cannot end the element it stands in, nor open a comment there."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
