"""The pieces of a self-contained HTML page: text, tables and figures that cannot run, load or leak anything.

    from sgtm.plot.chart import Line, line_chart
    from sgtm.plot.page import missing, page, pairs, section, table

    html = page(
        "A run",
        "sgtm, 60 steps",
        [
            section("Losses", line_chart("Retain loss", [Line("intact", [(20, 4.9), (60, 4.4)])], "step", "nats")),
            section("Environment", pairs({"python": "3.11", "cores": 2})),
            section("Matrix", table(["without", "retain"], [["nothing", "4.38"], ["forget", "4.40"]])),
            section("Leakage", missing("No leakage was measured", "sgtm leakage RUN")),
        ],
    )
    write(path, html)  # sgtm.config.write

Every piece is ``Html``; whatever else is given to a piece is text and is escaped by ``tag``, so what a configuration, a
data set or a model says can never become markup. The page forbids scripts and all loading (its content security
policy), needs no file beside it, follows the reader's light or dark scheme, and shows nothing that looks like an access
token. Figures take their colours from ``COLORS`` of ``sgtm.plot.tradeoff`` and ``PALETTE`` of ``sgtm.plot.chart``.
"""

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any

from rich.table import Table
from rich.text import Text

from sgtm.config import SECRET
from sgtm.plot.colors import stylesheet

HIDDEN = "[hidden]"
_SECRET_NAME = re.compile(
    r"(?i)(^|[._-])(api_?key|secret|password|passwd|credentials?|((hub|access|auth|hf)_?)?token)$"
)
_VOID = frozenset({"meta", "br", "line", "path", "rect", "circle"})
_ids = count(1)


class Html(str):
    """Markup; plain ``str`` is text."""

    __slots__ = ()


def escape(value: object) -> Html:
    """``value`` as text of a page or of an attribute; what is ``Html`` already stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def tag(name: str, /, *content: object, **attributes: object) -> Html:
    """An element. ``class_`` is class and ``aria_label`` aria-label; an attribute that is None is left out."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    words = "".join(f' {key}="{escape(value)}"' for key, value in named.items())
    if name in _VOID and not content:
        return Html(f"<{name}{words}/>")
    return Html(f"<{name}{words}>{join(content)}</{name}>")


def join(pieces: Iterable[object]) -> Html:
    """Pieces one after the other."""
    return Html("".join(map(escape, pieces)))


def new_id(prefix: str) -> str:
    """An id that nothing else on the page has."""
    return f"{prefix}-{next(_ids)}"


def section(title: str, *content: object, intro: str = "") -> Html:
    """A part of the page, to which its contents link."""
    anchor = _anchor(title)
    lead = [tag("p", intro, class_="lead")] if intro else []
    return tag("section", tag("h2", title, id=anchor), *lead, *content, aria_labelledby=anchor)


def paragraph(*content: object) -> Html:
    return tag("p", *content)


def preformatted(text: object) -> Html:
    """Text whose lines and spaces mean something."""
    return tag("pre", text, tabindex=0)


def code(text: object) -> Html:
    return tag("code", text)


def missing(what: str, command: str) -> Html:
    """One line in place of what nobody measured, and the command that measures it."""
    return tag("p", f"{what}. To have it: ", code(command), class_="missing")


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "", text_columns: int | None = 1
) -> Html:
    """A table that scrolls by itself where it is wider than the screen; each row's first cell names the row.

    Args:
        text_columns: so many columns, from the left, are text; the others are numbers, flush right. None: all are text.
    """
    last = len(header) if text_columns is None else text_columns
    kinds = [None if i < last else "number" for i in range(len(header))]
    head = tag("tr", *(tag("th", h, scope="col", class_=k) for h, k in zip(header, kinds, strict=True)))
    body = (_row(row, kinds) for row in rows)
    parts = [tag("caption", caption)] if caption else []
    whole = tag("table", *parts, tag("thead", head), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption or "table")


def _row(row: Sequence[object], kinds: Sequence[str | None]) -> Html:
    first, *rest = zip(row, kinds, strict=True)
    return tag(
        "tr", tag("th", first[0], scope="row", class_=first[1]), *(tag("td", cell, class_=kind) for cell, kind in rest)
    )


def rich_table(shown: Table) -> Html:
    """The same table as for the terminal; columns that are flush right there are numbers."""
    columns = shown.columns
    rows = zip(*([_plain(cell) for cell in column.cells] for column in columns), strict=True)
    words = next((i for i, column in enumerate(columns) if column.justify == "right"), len(columns))
    caption = " ".join(_plain(text) for text in (shown.title, shown.caption) if text)
    return table([_plain(column.header) for column in columns], list(rows), caption, words)


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def pairs(values: Mapping[str, object]) -> Html:
    """Names and what they are, two columns; on a narrow screen one."""
    return tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in values.items()), class_="pairs")


def tiles(values: Mapping[str, object]) -> Html:
    """The few numbers that matter most, large."""
    return tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in values.items()), class_="tiles")


def details(summary: str, *content: object) -> Html:
    """What is shown when it is asked for."""
    return tag("details", tag("summary", summary), *content)


def grid(*pieces: object) -> Html:
    """Figures side by side where there is room."""
    return tag("div", *pieces, class_="grid")


def without_secrets(values: Any) -> Any:
    """``values`` of a configuration, nested as it is, with what its keys call a secret hidden."""
    if isinstance(values, Mapping):
        return {
            key: HIDDEN
            if value and isinstance(value, str) and _SECRET_NAME.search(str(key))
            else without_secrets(value)
            for key, value in values.items()
        }
    return [without_secrets(value) for value in values] if isinstance(values, list | tuple) else values


def page(title: str, subtitle: str, sections: Sequence[Html], contents: bool = True) -> str:
    """The whole document.

    Args:
        contents: begin with links to the sections.
    """
    styles = style()
    names = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', "".join(sections)) if contents else []
    links = tag("nav", *(tag("a", Html(text), href=f"#{anchor}") for anchor, text in names), aria_label="contents")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(styles)}"/>'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        _scrubbed(tag("title", title)),
        Html(f"<style>{styles}</style>"),
    )
    top = tag("header", tag("h1", title), tag("p", subtitle, class_="subtitle"), *([links] if names else []))
    body = tag("body", top, tag("main", *sections))
    return f"<!DOCTYPE html>\n{tag('html', head, _scrubbed(body), lang='en')}\n"


@cache
def style() -> str:
    """The page's one style sheet."""
    return (files("sgtm.plot") / "page.css").read_text(encoding="utf-8") + stylesheet()


def _scrubbed(markup: Html) -> Html:
    """Without anything that has the form of an access token."""
    return Html(SECRET.sub(HIDDEN, markup))


def _policy(styles: str) -> str:
    """Nothing is loaded, nothing runs, nothing is sent; the one style sheet is known by its hash."""
    digest = base64.b64encode(hashlib.sha256(styles.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
