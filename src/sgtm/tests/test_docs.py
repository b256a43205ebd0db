"""What the documentation shows works: files are written, its commands and its code run, one after the other."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgtm.cli import main
from sgtm.config import build, read_yaml
from sgtm.data.synthetic import stories
from sgtm.train.sweep import SweepConfig

HOW_TO = ("model", "training", "data", "labels", "domains", "many_runs", "removal", "audit", "tasks")
PAGES = ("tutorial", *(f"howto/{name}" for name in HOW_TO))
SLOW = ("howto/many_runs", "howto/audit")
_STEPS = ["--train.steps", "4", "--train.warmup-steps", "1", "--train.batch-size", "8", "--evaluate.rows", "4"]
# The same commands with less to do: options that come last win.
SMALLER = {
    "data synthetic": ["--stories", "300"],
    "train": [*_STEPS, "--calibrate.steps", "2", "--train.save-every", "2"],
    "sweep": [*_STEPS, "--calibrate.steps", "2", "--data.path", "data", "--seeds", "0"],
    "rmu": ["--steps", "2", "--layer", "1"],
    "audit": [
        *("--attacks", "quantize", "elicit", "relearn", "--evaluate.rows", "4", "--elicit.steps", "2"),
        *("--relearn.steps", "2", "--relearn.warmup-steps", "1", "--relearn.learning-rates", "1e-2"),
    ],
    "leakage": ["--bootstrap", "10"],
    "gradients": ["--examples", "4", "--rows", "8"],
}
README_MORE = {
    "sgtm data texts": "--tokenizer train:300",  # the default is fetched
    "sgtm data tinystories": "--test-fraction 0.2",  # of few texts, enough to ask about
}
NEEDS = {"howto/labels": "sklearn", "howto/audit": "peft", "howto/tasks": "lm_eval"}


@pytest.fixture
def root(request) -> Path:
    return request.config.rootpath


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every code block."""
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


class ParsedError(Exception):
    """The options of a run are right; it is not made."""


def run_command(line: str) -> None:
    words = shlex.split(line)
    assert words.pop(0) == "sgtm", f"{line}: only sgtm's commands are tested here"
    name = next((n for n in SMALLER if words[: len(n.split())] == n.split()), None)
    more = [] if name is None or "--status" in words else SMALLER[name]
    if "--dry-run" in words and name == "sweep":
        more = ["--data.path", "data"]
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            main(words)
        if name == "train":  # --help hides what is wrong with the other options
            with patch("sgtm.train.run.train", side_effect=ParsedError), pytest.raises(ParsedError):
                main([word for word in words if word != "--help"])
    else:
        main([*words, *more])


@pytest.fixture
def workplace(root, tmp_path, monkeypatch) -> Path:
    """An empty folder with what a checkout has, and a small data set under the name that pages use."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "scripts"):
        (tmp_path / name).symlink_to(root / name)
    return tmp_path


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in PAGES])
def test_pages_run(page, root, workplace, capsys):
    if page in NEEDS and importlib.util.find_spec(NEEDS[page]) is None:
        pytest.skip(f"docs/{page}.md needs {NEEDS[page]}")
    if page == "howto/many_runs":
        main(["data", "synthetic", "--stories", "300", "--out", "data"])
    names: dict = {"__name__": page}
    for language, text in blocks(root / "docs" / f"{page}.md"):
        if language == "python":
            exec(compile(text, f"docs/{page}.md", "exec"), names)
        elif language == "bash":
            for line in text.strip().splitlines():
                run_command(line)
        elif language == "yaml" and (name := re.match(r"# (\w+\.yaml)\n", text)):
            (workplace / name[1]).write_text(text)
    assert capsys.readouterr().out


def test_every_page_with_code_is_run(root):
    pages = {p.relative_to(root / "docs").with_suffix("").as_posix() for p in (root / "docs").rglob("*.md")}
    coded = {p for p in pages if any(n in ("python", "bash") for n, _ in blocks(root / "docs" / f"{p}.md"))}
    assert {p for p in coded if not p.startswith(("reference/", "decisions/", "log", "_build"))} == set(PAGES)


def test_labels_in_examples_are_valid(root):
    """Each line of the yaml block on labels is one that a run takes."""
    from sgtm.config import RunConfig

    lines = [
        line
        for language, text in blocks(root / "docs" / "howto" / "labels.md")
        if language == "yaml"
        for line in text.splitlines()
    ]
    assert len(lines) == 4
    for line in lines:
        import yaml

        assert build(RunConfig, yaml.safe_load(line), line).labels.is_noisy


def test_the_sweep_of_the_page_is_one(root, tmp_path):
    ((_, text),) = [b for b in blocks(root / "docs" / "howto" / "many_runs.md") if b[0] == "yaml"]
    (tmp_path / "sweep.yaml").write_text(text)
    assert build(SweepConfig, read_yaml(tmp_path / "sweep.yaml"), "sweep").seeds == [0, 1, 2]


def test_paths_exist(root):
    for page in (root / "docs").rglob("*.md"):
        if "_build" not in page.parts and page.name != "commands.md":
            text = page.read_text(encoding="utf-8")
            for path in re.findall(r"\b(?:configs|scripts|notebooks|examples|benchmarks)/[\w./-]+\.\w+", text):
                assert (root / path).exists(), f"{page.name}: {path}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(root, tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(root / "docs"), str(tmp_path / "html")]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "html").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert not loaded, f"{page.name} loads {loaded} from the network"


@pytest.fixture
def readme_files(workplace) -> None:
    """What the README's commands read, and the run that they take for granted."""
    pairs = list(stories(4000, 0))
    pq.write_table(pa.table(dict(zip(("text", "text_es"), zip(*pairs, strict=True), strict=True))), "stories.parquet")
    rows = [{"text": t, "category": c} for pair in pairs[:600] for c, t in zip(("retain", "forget"), pair, strict=True)]
    pq.write_table(pa.table({"text": [row["text"] for row in rows]}), "docs.parquet")
    for name, some in (("docs.jsonl", rows), ("examples.jsonl", rows[-300:])):
        Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some), encoding="utf-8")
    run_command("sgtm data synthetic --out data")
    run_command("sgtm data synthetic --domains spanish,rot13,mirrored --out data/datasets/three")
    run_command("sgtm train configs/domains/three.yaml --run-dir runs/c")


@pytest.mark.slow
@pytest.mark.usefixtures("readme_files")
def test_the_readmes_commands_run(root, capsys):
    """One after the other, with less to do, and a tokenizer that is not fetched."""
    for needed in ("sklearn", "peft", "lm_eval"):
        pytest.importorskip(needed, reason=f"the README's commands need {needed}")
    lines = [line for language, text in blocks(root / "README.md") if language == "bash" for line in text.splitlines()]
    commands = [line.partition(" #")[0] for line in lines if line.startswith("sgtm ")]
    assert len(commands) > 15
    for line in commands:
        more = next((more for start, more in README_MORE.items() if line.startswith(start)), "")
        run_command(f"{line} {more}")
        if line.startswith("sgtm data tinystories"):
            for run in ("none --method none", "filter --method filter", "b --seed 1"):
                train = "sgtm train configs/tinystories/cpu.yaml --data.path data/datasets/stories"
                run_command(f"{train} --run-dir runs/{run}")
    assert "Traceback" not in capsys.readouterr().err
