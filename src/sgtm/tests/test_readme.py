"""What README.md shows works."""

import re
import shlex

import pytest

from sgtm.cli import COMMANDS


@pytest.fixture
def blocks(request) -> list[tuple[str, str]]:
    """(language, text) of every code block."""
    text = (request.config.rootpath / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```(\w*)\n(.*?)```", text, flags=re.S)


def test_the_code_runs(blocks, capsys, tmp_path, monkeypatch):
    """All but the first lines, which show the idea, one after the other."""
    monkeypatch.chdir(tmp_path)
    _idea, *code = [text for language, text in blocks if language == "python"]
    names = {}
    for text in code:
        exec(compile(text, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "tensor" in shown
    assert "biology removed" in shown


def test_commands_exist(blocks):
    text = "\n".join(text for language, text in blocks if language == "bash")
    used = re.findall(r"^sgtm ([^#\n]*)", text, flags=re.M)
    assert len(used) >= 5
    for line in used:
        words = shlex.split(line)
        assert " ".join(words[:2]) in COMMANDS or words[0] in COMMANDS, line


def test_paths_exist(request):
    root = request.config.rootpath
    text = (root / "README.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"\b(?:configs|docs|src|benchmarks)/[\w./-]+\.(?:yaml|md|py|png)", text)):
        assert (root / path).exists(), path


def test_configurations_that_scripts_name_exist(request):
    root = request.config.rootpath
    named = [
        path
        for script in (root / "scripts").rglob("*.sh")
        for path in re.findall(r"\bconfigs/[\w./-]+\.yaml", script.read_text(encoding="utf-8"))
    ]
    assert named
    for path in named:
        assert (root / path).exists(), path
