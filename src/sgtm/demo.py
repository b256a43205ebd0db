"""``sgtm demo``: the method, end to end, on an embedded corpus."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console

from sgtm.config import Category, ConfigError, LabelConfig, PrepareConfig, RunConfig, load
from sgtm.data.tinystories import synthetic_source
from sgtm.data.tokenize import prepare
from sgtm.data.tokenizer import END_OF_TEXT
from sgtm.evaluate.generate import continue_text
from sgtm.evaluate.loss import Loss, Variant
from sgtm.model.export import export
from sgtm.plot.records import read_run
from sgtm.plot.tradeoff import tradeoff
from sgtm.train.run import Run, train
from sgtm.train.summary import VARIANTS, print_losses

_STORIES = 8000
_METHODS = {  # name: (method, share of forget documents left unlabeled; None = as configured)
    "none": ("none", None),
    "filter_perfect": ("filter", 0.0),
    "filter": ("filter", None),
    "gradient_routing": ("gradient_routing", None),
    "sgtm": ("sgtm", None),
}
_RESULTS = "results.json"
_MARK = "demo.txt"
Losses = dict[tuple[Category, Variant], Loss]


def run_demo(out: Path, seed: int = 0, steps: int | None = None) -> None:
    """Train five methods from one seed, and write results.json, tradeoff.png and sgtm/export/ to ``out``.

    Raises:
        ConfigError: ``out`` holds something else than an earlier demo.
    """
    console = Console()
    start = time.monotonic()
    _clear(out)
    config = _config(out, seed, steps)
    prepare(synthetic_source(_STORIES, seed), _prepare_config(config), {"source": "sgtm data synthetic"})
    losses: dict[str, Losses] = {}
    for name, run in _runs(config, out, console):
        losses[name] = run.losses
    _write_results(out, losses, time.monotonic() - start)
    tradeoff([read_run(out / name) for name in losses], out / "tradeoff.png")
    print_losses(losses)
    console.print(_verdict(losses), soft_wrap=True)
    _speak(run, console)
    console.print(str(export(run.model, _masking(run), out / "sgtm" / "export", run.data.tokenizer)), soft_wrap=True)
    console.print(f"{out / _RESULTS}, {out / 'tradeoff.png'}; {time.monotonic() - start:.0f} s in all")


def _runs(config: RunConfig, out: Path, console: Console) -> Iterator[tuple[str, Run]]:
    for i, (name, (method, undiscovered)) in enumerate(_METHODS.items(), 1):
        console.rule(f"{i}/{len(_METHODS)} {name}", align="left")
        labels = config.labels if undiscovered is None else LabelConfig(undiscovered=undiscovered)
        yield name, train(replace(config, method=method, labels=labels), out / name)


def _config(out: Path, seed: int, steps: int | None) -> RunConfig:
    with as_file(files("sgtm") / "configs" / "demo.yaml") as path:
        config = replace(load(path), seed=seed)
    steps = steps or config.train.steps
    training = replace(config.train, steps=steps, warmup_steps=min(config.train.warmup_steps, steps - 1))
    return replace(config, data=replace(config.data, path=str(out / "data")), train=training)


def _prepare_config(config: RunConfig) -> PrepareConfig:
    context = config.model.config["max_position_embeddings"]
    return PrepareConfig(Path(config.data.path), "train:1024", context, pack=True, test_fraction=0.05, seed=config.seed)


def _clear(out: Path) -> None:
    """Remove an earlier demo; nothing else."""
    if out.exists() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise ConfigError(f"{out} is not empty and holds no demo; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / _MARK).write_text("`sgtm demo` wrote this folder, and a later one will replace it.\n", encoding="utf-8")


def _write_results(out: Path, losses: dict[str, Losses], seconds: float) -> None:
    methods = {
        name: {category: {v: of_method[category, v].mean for v in VARIANTS} for category in ("retain", "forget")}
        for name, of_method in losses.items()
    }
    results = {"methods": methods, "seconds": round(seconds, 1)}
    (out / _RESULTS).write_text(json.dumps(results, indent=1), encoding="utf-8")


def _verdict(losses: dict[str, Losses]) -> str:
    def calibrated(name: str, category: Category) -> float:
        return losses[name][category, "calibrated"].mean

    low, high = calibrated("filter", "forget"), calibrated("filter_perfect", "forget")
    share = (calibrated("sgtm", "forget") - low) / (high - low)
    cost = calibrated("sgtm", "retain") - calibrated("none", "retain")
    return (
        f"With 10 % of the Spanish unlabeled, SGTM closes {share:.0%} of the gap between filtering those labels and "
        f"filtering perfectly; its English loss is {cost:+.3f} nats per token from that of no filter."
    )


def _masking(run: Run) -> Any:
    assert run.sgtm is not None
    return run.sgtm


def _speak(run: Run, console: Console) -> None:
    """Continue a test story in each language, before and after removal."""
    tokenizer = run.data.tokenizer
    languages: dict[str, Category] = {"English": "retain", "Spanish": "forget"}
    for language, category in languages.items():
        story = str(tokenizer.decode(run.data.test.of(category).data[0]["input_ids"])).split(END_OF_TEXT)[-2:][0]
        prompt = " ".join(story.split()[:8])
        console.print(f"\n{language}: [bold]{prompt}[/bold] ...", highlight=False)
        before = continue_text(run.model, tokenizer, prompt)
        after = continue_text(run.model, tokenizer, prompt, run.sgtm, run.bias)
        console.print(f"  before: {before}\n  after:  {after}", highlight=False, markup=False)
