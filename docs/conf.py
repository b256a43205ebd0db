"""The documentation's site: ``make docs`` writes docs/_build/html, which needs no network to be read."""

import contextlib
import io
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

from sgtm.cli import COMMANDS, main

project, author = "sgtm", "The sgtm authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "sgtm"
html_theme_options = {"top_of_page_buttons": []}
html_show_copyright = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
html_math_renderer = "mathml"  # what browsers show by themselves: no script, no network

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}


def commands_page() -> str:
    """What every command says of itself."""
    parts = ["# Commands", "", "What `sgtm COMMAND --help` prints, of all commands.", ""]
    for name in COMMANDS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*name.split(), "--help"])
        parts += [f"## sgtm {name}", "", "```text", said.getvalue().rstrip(), "```", ""]
    return "\n".join(parts)


(Path(__file__).parent / "reference" / "commands.md").write_text(commands_page(), encoding="utf-8")
release = version = version_of("sgtm")


def inline_math(writer: Any, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
