"""Pieces of pages: text stays text, nothing is loaded, nothing leaks."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from sgtm.plot.page import (
    HIDDEN,
    Html,
    escape,
    missing,
    page,
    pairs,
    rich_table,
    section,
    style,
    table,
    tag,
    without_secrets,
)
from sgtm.plot.tests.report_records import HOSTILE, TOKEN


class Reader(HTMLParser):
    """Tags, attributes and text of a document, as a browser takes them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@given(st.text())
def test_text_is_never_markup(text):
    read = Reader(page("t", "s", [section("a", tag("p", text, title=text))], contents=False))
    plain = Reader(page("t", "s", [section("a", tag("p", "x", title="x"))], contents=False))
    assert read.tags == plain.tags
    assert len(read.attributes) == len(plain.attributes)


@pytest.mark.parametrize(
    "piece",
    [
        lambda text: section(text, text, intro=text),
        lambda text: table([text, text], [[text, text]], text),
        lambda text: pairs({text: text}),
        lambda text: missing(text, text),
        lambda text: tag("p", text, id=text, aria_label=text),
    ],
)
def test_no_piece_lets_markup_in(piece):
    read = Reader(page(HOSTILE, HOSTILE, [piece(HOSTILE)]))
    assert not {"script", "img"} & set(read.tags)
    assert HOSTILE in read.text or HOSTILE in [value for _, value in read.attributes]


def test_markup_that_we_made_stays():
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert escape(Html("<b>")) == "<b>"
    assert tag("circle", r=3, class_="mark", fill=None) == '<circle r="3" class="mark"/>'


def test_the_policy_forbids_all_but_the_one_style_sheet():
    text = page("t", "s", [])
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    assert text.count("<style>") == 1
    assert f"<style>{style()}</style>" in text
    assert "</" not in style()


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "sk-ant-" + "Ab3" * 12,
        "ghp_" + "Ab3" * 12,
        "AKIAIOSFODNN7EXAMPLE",
        "user:hunter2@",
        "token=abcdef123456",
    ],
)
def test_nothing_that_looks_like_a_token_is_shown(secret):
    where = f"s3://{secret}host" if secret.endswith("@") else f"https://host/x?{secret}"
    shown = page(where, where, [section("a", tag("p", where, title=where))])
    assert secret.rstrip("@").removeprefix("token=") not in shown
    assert HIDDEN in shown


def test_what_is_no_secret_is_shown():
    words = "tokens=2048 tokenizer=train:1024 sha256:df3f74992ea8409bd8a2d2d51df332a6f94930b4932d4fb5c4b30362d21abcca"
    assert words in page("t", "s", [tag("p", words)])


def test_values_that_their_keys_call_secret_are_hidden():
    config = {
        "train": {"arguments": {"hub_token": "abc", "report_to": "wandb"}},
        "api_key": "x",
        "list": [{"password": "p"}],
    }
    assert without_secrets(config) == {
        "train": {"arguments": {"hub_token": HIDDEN, "report_to": "wandb"}},
        "api_key": HIDDEN,
        "list": [{"password": HIDDEN}],
    }
    kept = {"calibrate.tokens": 2048, "data": {"tokenizer": "gpt2"}, "hub_token": None, "max_tokens": "5"}
    assert without_secrets(kept) == kept


def test_a_table_of_the_terminal_is_the_same_on_the_page():
    shown = Table(title="losses")
    shown.add_column("run")
    shown.add_column(Text("loss"), justify="right")
    shown.add_row(Text("[bold]a"), "4.1")
    html = rich_table(shown)
    assert "[bold]a" in html
    assert '<td class="number">4.1</td>' in html
    assert '<th scope="row">' in html
    assert "losses" in html
