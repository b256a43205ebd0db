"""Every notebook runs from its first cell to its last on small records, and draws its figures."""

import json
import re
import shlex
from dataclasses import replace
from itertools import product
from pathlib import Path

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from sgtm.cli import COMMANDS
from sgtm.config import LabelConfig, PrepareConfig, RunConfig, WikipediaConfig, dump
from sgtm.data.wikipedia import prepare_wikipedia
from sgtm.plot.tests.leakage_records import write_leakage_records
from sgtm.plot.tests.test_gradient_norms import write_gradients
from sgtm.plot.tests.test_relearning import write_relearning

ROOT = Path(__file__).parents[3]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
STEPS = 20
# Of the methods, at the end: (retain, forget) loss.
METHODS = {"sgtm": (3.4, 6.3), "filter": (3.1, 4.2), "gradient_routing": (3.7, 5.5)}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "notebooks").as_posix())
def notebook(request):
    return request.param


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of finished runs: three methods, two undiscovered shares, two seeds; gradients and leakage too."""
    folder = tmp_path_factory.mktemp("runs")
    for (method, losses), share, seed in product(METHODS.items(), (0.0, 0.1), (0, 1)):
        run = folder / f"{method}-u{share}-seed{seed}"
        if method == "sgtm" and share and seed == 0:
            write_gradients(run)
        write_run(run, method, losses, share, seed)
    return write_leakage_records(folder)


@pytest.fixture(scope="module")
def wiki(tmp_path_factory):
    """Runs and relearnings of Wikipedia, and prepared data with topics."""
    folder = tmp_path_factory.mktemp("wiki")
    for method, losses in {
        "sgtm": (3.4, 4.6),
        "none": (3.4, 3.9),
        "filter": (3.4, 4.3),
        "strict_filter": (3.3, 4.7),
    }.items():
        for seed in (0, 1):
            write_run(folder / "runs" / f"{method}-seed{seed}", method, losses, 0.0, seed, {"adjacent": 3.9})
    for name, reached in {"sgtm-seed0": 15.0, "rmu-seed0": 5.0, "weak-seed0": None}.items():
        write_relearning(folder / "relearning" / name, {1e-3: [5, 4.4, 3.8]}, reached=reached)
    topics = {"STEM.Biology": 12, "STEM.Chemistry": 9, "Culture.Media.Films": 30, "STEM.STEM*": 12}
    pages = [(str(100 + i), topic) for i, topic in enumerate(t for t, n in topics.items() for _ in range(n))]
    (folder / "topics.csv").write_text("".join(f"Q{page},{page},T,enwiki,{topic},0.9\n" for page, topic in pages))
    texts = [f"Article {page} is about {topic}. " * 4 for page, topic in pages]
    pq.write_table(pa.table({"id": [page for page, _ in pages], "text": texts}), folder / "articles.parquet")
    config = PrepareConfig(folder / "data", "train:300", 32, pack=True, test_fraction=0.2)
    prepare_wikipedia(
        config, WikipediaConfig(folder / "topics.csv", str(folder / "articles.parquet"), adjacent="STEM.Chemistry")
    )
    return {"SGTM_WIKI_RUNS": "runs", "SGTM_RELEARNING": "relearning", "SGTM_WIKI_DATA": "data"}, folder


def write_run(
    folder: Path,
    method: str,
    losses: tuple[float, float],
    share: float,
    seed: int,
    more: dict[str, float] | None = None,
) -> None:
    """What `sgtm train` leaves of a run for figures; ``more`` categories have their losses by name."""
    folder.mkdir(exist_ok=True, parents=True)
    config = RunConfig(method=method, labels=LabelConfig(undiscovered=share), seed=seed)
    dump(replace(config, train=replace(config.train, steps=STEPS, warmup_steps=1)), folder / "config.yaml")
    records = [
        {
            "step": step,
            "tokens": 1000 * step,
            "flops": 6_000_000 * step,
            "split": "test",
            "category": category,
            "variant": variant,
            "loss": loss + (STEPS - step) / STEPS - share * (category == "forget") + seed / 100,
            "num_tokens": 500,
        }
        for step in (STEPS // 2, STEPS)
        for category, loss in (dict(zip(("retain", "forget"), losses, strict=True)) | (more or {})).items()
        for variant in ("intact", "ablated", "calibrated")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_a_notebook_runs_and_draws(notebook, runs, wiki, monkeypatch):
    monkeypatch.setenv("SGTM_RUNS", str(runs))
    names, folder = wiki
    for variable, name in names.items():
        monkeypatch.setenv(variable, str(folder / name))
    content = nbformat.read(notebook, as_version=4)
    NotebookClient(content, timeout=60, resources={"metadata": {"path": str(notebook.parent)}}).execute()
    pictures = [
        output["data"]["image/png"]
        for cell in content.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    shown = sum("Image(" in cell.source.splitlines()[-1] for cell in content.cells if cell.cell_type == "code")
    assert len(pictures) == shown >= 1
    assert all(len(picture) > 10_000 for picture in pictures)


def test_a_notebook_is_committed_without_outputs_and_defines_nothing(notebook):
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), "clear all outputs before committing"
            assert not re.search(r"^\s*(def|class) ", cell.source, flags=re.M), "functions belong in sgtm.plot"


def test_the_commands_that_a_notebook_tells_exist(notebook):
    text = "\n".join(c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "markdown")
    told = re.findall(r"^ *sgtm ([^#\n]*)", text.replace("\\\n", " "), flags=re.M)
    assert told
    for line in told:
        words = shlex.split(line)
        assert " ".join(words[:2]) in COMMANDS or words[0] in COMMANDS, line
    for path in re.findall(r"\bconfigs/[\w./-]+\.yaml", text):
        assert (ROOT / path).is_file(), path
