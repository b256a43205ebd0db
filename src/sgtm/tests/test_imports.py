"""Imports between rooms run one way: config <- model, data <- evaluate <- train <- cli; plot reads files only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sgtm

ROOT = Path(sgtm.__file__).parent
MAY_IMPORT = {
    "plain": set(),
    "config": {"plain"},
    "environment": set(),
    "records": {"config", "plain"},
    "interval": set(),
    "model": {"config"},
    "data": {"plain", "config"},
    "plot": {"plain", "config", "records", "interval"},
    "evaluate": {"config", "model", "data"},
    "train": {"plain", "config", "environment", "records", "model", "data", "evaluate"},
}
ABOVE_ALL = {"__init__", "__main__", "cli", "demo"}
WITHOUT_TORCH = {"config", "plot", "records", "interval", "plain"}  # in functions too


def is_test(path: Path) -> bool:
    return "tests" in path.parts or path.name == "conftest.py"


def room_of(path: Path) -> str:
    """The first part below ``sgtm``: ``model`` for sgtm/model/masking.py, ``cli`` for sgtm/cli.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names of all modules that ``tree``, inside ``package``, imports anywhere (in functions too)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_imported(source: str, package: str) -> set[str]:
    names = (name.split(".") for name in imported(ast.parse(source), package))
    return {name[1] for name in names if name[0] == "sgtm" and len(name) > 1}


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if not is_test(path.relative_to(ROOT))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_rooms_import_one_way(path: Path) -> None:
    room = room_of(path)
    if room in ABOVE_ALL:
        return
    assert room in MAY_IMPORT, f"{room} is no room of the house; give it a place in MAY_IMPORT"
    package = ".".join(("sgtm", *path.relative_to(ROOT).parent.parts))
    wrong = rooms_imported(path.read_text(encoding="utf-8"), package) - MAY_IMPORT[room] - {room}
    assert not wrong, f"{name_of(path)} imports {sorted(wrong)}; {room} may import {sorted(MAY_IMPORT[room])}"


@pytest.mark.parametrize("path", [p for p in modules() if room_of(p) in WITHOUT_TORCH], ids=name_of)
def test_rooms_without_torch(path: Path) -> None:
    names = imported(ast.parse(path.read_text(encoding="utf-8")), "sgtm")
    assert not {name.partition(".")[0] for name in names} & {"torch", "transformers", "accelerate"}


def test_command_line_starts_without_torch() -> None:
    check = "import sys, sgtm.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_no_two_rooms_import_each_other() -> None:
    for room, others in MAY_IMPORT.items():
        assert room not in others
        assert not any(room in MAY_IMPORT[other] for other in others)


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("import sgtm.train.trainer", {"train"}),
        ("import torch, sgtm.data as d", {"data"}),
        ("from sgtm import model", {"model"}),
        ("from sgtm import SGTM", {"SGTM"}),
        ("from sgtm.model.masking import SGTM", {"model"}),
        ("from ..train import trainer", {"train"}),
        ("from .. import train", {"train"}),
        ("from .partition import Partition", {"model"}),
        ("def f():\n    from sgtm.evaluate import loss", {"evaluate"}),
        ("if TYPE_CHECKING:\n    import sgtm.data.labels", {"data"}),
        ("import torch\nfrom pathlib import Path", set()),
    ],
)
def test_imports_are_found_in_any_form(source: str, rooms: set[str]) -> None:
    assert rooms_imported(source, "sgtm.model") == rooms
