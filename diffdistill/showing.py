"""What a notebook shows of an object: tables and pictures as HTML without colours, for light and dark pages."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image


def table(rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Rows of cells; the first of each is its name.

    >>> table([("seed", 0)])
    '<table><tr><th style="text-align:left">seed</th><td>0</td></tr></table>'
    """
    top = "".join(f"<th>{escape(word)}</th>" for word in head)
    lines = [f"<tr>{top}</tr>"] if head else []
    for name, *cells in rows:
        inside = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
        lines.append(f'<tr><th style="text-align:left">{escape(str(name))}</th>{inside}</tr>')
    return f"<table>{''.join(lines)}</table>"


def facts(title: str, values: Mapping[str, Any]) -> str:
    """A title over a table of what is known; None is left out."""
    return f"<b>{escape(title)}</b>{table([(key, value) for key, value in values.items() if value is not None])}"


def picture(image: "Image.Image", caption: str) -> str:
    """A PNG within the page, no wider than it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure style="margin:0"><img alt="{escape(caption)}" style="max-width:100%;image-rendering:pixelated" '
        f'src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def in_words(name: str, values: Mapping[str, Any]) -> str:
    """`Name(key value, ...)` on one line, for a terminal.

    >>> in_words("Samples", {"": "4 images", "seed": 0, "prompt": None})
    'Samples(4 images, seed 0)'
    """
    return f"{name}({', '.join(f'{key} {value}'.strip() for key, value in values.items() if value is not None)})"
