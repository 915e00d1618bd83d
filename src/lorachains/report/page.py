"""All tables and figures as one HTML file that needs nothing else: no script, no font, no network."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from lorachains.report.figures import INK
from lorachains.report.tables import Table

LONG = 40
"""Characters from which a cell's text is broken over lines."""


def page(title: str, tables: Sequence[Table], figures: Mapping[str, tuple[str, bytes]]) -> str:
    """The page.

    Args:
        figures: by name, each with its title and its SVG.
    """
    links = {table.name: table.title for table in tables} | ({"figures": "Figures"} if figures else {})
    contents = "\n".join(f'<li><a href="#{escape(name)}">{escape(text)}</a></li>' for name, text in links.items())
    body = "\n".join(map(_section, tables))
    if figures:
        drawn = "\n".join(_figure(name, *figure) for name, figure in figures.items())
        body += f'\n<section id="figures"><h2>Figures</h2>\n<div class="figures">\n{drawn}\n</div></section>'
    template = files("lorachains.report").joinpath("page.html").read_text(encoding="utf-8")
    parts = {"title": escape(title), "contents": contents, "body": body}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _section(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = "\n".join(f"<tr>{_row(row)}</tr>" for row in table.rows)
    notes = "".join(f'\n<p class="note">{escape(note)}</p>' for note in table.notes)
    return (
        f'<section id="{escape(table.name)}">\n<h2>{escape(table.title)}</h2>\n'
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(table.title)}">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>{notes}\n</section>"
    )


def _row(texts: Sequence[str]) -> str:
    first, *others = texts
    cells = ((' class="long"' if len(text) > LONG else "", escape(text)) for text in others)
    return f'<th scope="row">{escape(first)}</th>' + "".join(f"<td{kind}>{text}</td>" for kind, text in cells)


def _figure(name: str, title: str, svg: bytes) -> str:
    """The drawing in the page's own text colour, with names that no other drawing on the page has."""
    text = svg.decode("utf-8").replace(INK, "currentColor")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[1]}{name}-", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return f"<figure>\n{text.strip()}\n</figure>"
