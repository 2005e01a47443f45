# SPDX-License-Identifier: Apache-2.0
"""Pages that people read in a browser: one file each, without scripts, and without anything from elsewhere.

Everything that comes from outside (answers, reviews, names) goes through ``text``; the page's own policy forbids
scripts and every address besides.
"""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from paddlemix.utils.files import atomic_write
from paddlemix.utils.shown import escaped

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#22262e;background:#fbfaf7;max-width:1100px;margin:2em auto;padding:0 1em}
h1{font-size:1.4em}h2{font-size:1.05em;margin:.2em 0}table{border-collapse:collapse;margin:1em 0}
td,th{border:1px solid #dfe2e6;padding:.3em .6em;text-align:left;vertical-align:top}
.card{background:#fff;border:1px solid #dfe2e6;border-radius:7px;padding:1em;margin:1em 0}
.two{display:flex;gap:1em;flex-wrap:wrap}.two>div{flex:1 1 20em;min-width:0}
.text{white-space:pre-wrap;overflow-wrap:anywhere}.faint{color:#6d7480}.good{color:#1f8f4d}.bad{color:#c8322f}
img{max-width:20em;max-height:20em;display:block;margin:.5em 0}summary{cursor:pointer;color:#6d7480}
"""
SIDE = 320
"""Longest side of an image in a page, in pixels."""


def text(value: object) -> str:
    """A text from outside as text of a page: marks and quotes as entities, what turns or hides text as its escape."""
    return html.escape(escaped(str(value)), quote=True)


def picture(image: Image.Image) -> str:
    """An image as a small JPEG inside the page."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts from outside."""
    lines = [f"<tr>{''.join(f'<th>{text(cell)}</th>' for cell in header)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write a page of ``parts``, which are HTML, under a title, which is a text."""
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><h1>{text(title)}</h1>"
    )
    page = "\n".join([head, *parts, "</body></html>"]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, page.encode("utf-8", "backslashreplace"))
