"""``sgtm COMMAND ...``: finds the command and its options; the work is done in the rooms."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sgtm.config import (
    AttackConfig,
    AuditConfig,
    Category,
    ClassifyConfig,
    ConfigError,
    PrepareConfig,
    RelearnConfig,
    RunConfig,
    RunError,
    StoppedError,
    TasksConfig,
    TranslateConfig,
    UnlearnConfig,
    WikipediaConfig,
    build,
    load,
    nearest,
    read_yaml,
    redacted,
)

Arguments = list[str]


@dataclass(frozen=True)
class TrainCommand:
    """Train, evaluate and save one model."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    run_dir: Path | None = None
    """The run's folder; by default runs/CONFIG-METHOD-seedSEED."""
    resume: bool = False
    """Go on from the last checkpoint in the folder."""


def train(arguments: Arguments) -> None:
    """Train one model: `sgtm train CONFIG.yaml [RECIPE.yaml ...] [--section.key value ...] [--resume]`."""
    paths = list(map(Path, takewhile(lambda word: not word.startswith("-"), arguments)))
    default = TrainCommand(load(*paths) if paths else RunConfig())
    prog = "sgtm train CONFIG.yaml [RECIPE.yaml ...]"
    command = tyro.cli(TrainCommand, prog=prog, default=default, args=arguments[len(paths) :])
    if not paths:
        raise ConfigError("give the run's configuration first: sgtm train CONFIG.yaml (examples in configs/)")
    name = "-".join([*(path.stem for path in paths), command.run.method])
    folder = command.run_dir or Path("runs") / f"{name}-seed{command.run.seed}"
    from sgtm.train.run import train as run_training
    from sgtm.train.summary import print_losses

    run = run_training(command.run, folder, command.resume)
    print_losses({command.run.method: run.losses})
    _leave_report(folder)
    print(f"written to {folder}")


def _leave_report(folder: Path) -> None:
    """The page of a finished run. It is read from files that are all there, so nothing that goes wrong here matters."""
    if os.environ.get("RANK", "0") != "0":
        return
    from sgtm.plot.report import write_report

    try:
        write_report(folder)
    except Exception as error:
        print(f"no report: {error}; `sgtm report {folder}` writes it")


def evaluate(arguments: Arguments) -> None:
    """Losses of a finished run on its test split, for the intact, ablated and calibrated model."""

    def command(
        run: tyro.conf.Positional[Path],
        without: str = "",
        matrix: bool = False,
        generations: int = 0,
        rows: int | None = None,
        batch_size: int = 64,
        tasks: tuple[str, ...] = (),
        variants: tuple[Literal["intact", "ablated"], ...] = (),
        shots: int | None = None,
        out: Path | None = None,
    ) -> None:
        """Losses of a finished run on its test split; with --tasks, scores of any model on downstream tasks.

        Args:
            run: the run's folder; with --tasks also an export or a Hugging Face checkpoint.
            without: domains that the ablated model is without, with commas between; all by default.
            matrix: instead, the loss of every category without each of the domains, and without all (not calibrated).
            generations: also continue the beginnings of so many test texts of each category (generations.jsonl).
            rows: test rows of each category, or questions of each task; all by default.
            batch_size: rows of one forward pass.
            tasks: instead, scores on these: folders that `sgtm data tasks` wrote, or names of lm-evaluation-harness.
            variants: of --tasks: which models; by default all that there are.
            shots: of --tasks: examples before each question, where a task leaves their number open.
            out: of --tasks: a file to write as well, one record a line.
        """
        if matrix and (without or generations):
            raise ConfigError("--matrix shows every domain; leave out --without and --generations")
        if generations and (without or tasks):
            raise ConfigError(
                "--generations speaks without all domains, and of no task; leave out --without and --tasks"
            )
        if tasks:
            from sgtm.train.downstream import evaluate_tasks, print_scores, write_scores

            if out is not None and out.exists():
                raise ConfigError(f"{out} exists already; remove it or choose another --out")
            records = evaluate_tasks(run, tasks, variants, _words(without), matrix, rows, shots, batch_size)
            print_scores(records)
            if out is not None:
                write_scores(records, out)
                print(f"written to {out}")
            return
        if variants or shots is not None or out is not None:
            raise ConfigError("--variants, --shots and --out are about tasks; give --tasks too")
        from sgtm.train.run import ablation_matrix_of_run, evaluate_run
        from sgtm.train.summary import print_losses, print_matrix

        if matrix:
            print_matrix(ablation_matrix_of_run(run, rows, batch_size))
        else:
            print_losses({run.name: evaluate_run(run, rows, batch_size, _words(without), generations)})

    tyro.cli(command, prog="sgtm evaluate", args=arguments)


def export(arguments: Arguments) -> None:
    """Write a run's model without its forget units, as a checkpoint that loads without sgtm."""

    def command(
        run: tyro.conf.Positional[Path], out: Path, without: str = "", verify: bool = False, module: str | None = None
    ) -> None:
        """Write a run's model without its forget units, as a checkpoint that loads without sgtm.

        Args:
            run: the run's folder.
            out: folder to write (with --module: file); it must not exist yet.
            without: domains to remove, with commas between; all by default.
            verify: also look for every removed weight in the files, and load them where sgtm cannot be imported.
            module: instead, write the units of this domain alone; `sgtm.attach(model, FILE)` puts them back.
        """
        from sgtm.train.run import export_module_of_run, export_run

        if module is None:
            print(export_run(run, out, _words(without), verify))
            return
        if without or verify:
            raise ConfigError("--module writes one domain's units; leave out --without and --verify")
        print(f"written to {out}: {export_module_of_run(run, module, out):,} parameters of {module}")

    tyro.cli(command, prog="sgtm export", args=arguments)


def demo(arguments: Arguments) -> None:
    """Train five methods on an embedded corpus and compare them (CPU, a few minutes)."""

    def command(out: Path = Path("runs/demo"), seed: int = 0, steps: int | None = None) -> None:
        """Train five methods on an embedded bilingual corpus, remove Spanish, and compare.

        Args:
            out: folder of the demo; an earlier demo there is replaced.
            seed: of everything.
            steps: optimizer steps of each method; by default as many as configs/demo.yaml of the package says.
        """
        from sgtm.demo import run_demo

        run_demo(out, seed, steps)

    tyro.cli(command, prog="sgtm demo", args=arguments)


@dataclass(frozen=True)
class SyntheticCommand:
    """Write the embedded corpus: parallel English and Spanish children's stories from a grammar."""

    prepare: Annotated[PrepareConfig, tyro.conf.arg(name="")]
    stories: int = 20_000
    """Stories, each in both languages."""
    forget: Literal["es", "en"] = "es"
    """The language to be removed."""
    domains: str = ""
    """Instead, several domains with commas between, beside English: spanish, rot13, mirrored."""


def data_synthetic(arguments: Arguments) -> None:
    """Write the embedded bilingual corpus, prepared for training."""
    # The grammar's small vocabulary and short stories: no tokenizer to fetch, and rows that a CPU trains on quickly.
    own = PrepareConfig(tyro.MISSING, tokenizer="train:1024", context=64, pack=True, test_fraction=0.05)
    command = tyro.cli(SyntheticCommand, prog="sgtm data synthetic", default=SyntheticCommand(own), args=arguments)
    from sgtm.data.tinystories import synthetic_domains, synthetic_source
    from sgtm.data.tokenize import prepare

    domains, seed = _words(command.domains), command.prepare.seed
    source = synthetic_source(command.stories, seed, command.forget)
    if domains:
        source = synthetic_domains(command.stories, seed, domains)
    origin = {"source": "sgtm data synthetic", "stories": command.stories, "forget": domains or command.forget}
    print(f"written to {prepare(source, command.prepare, origin)}")


@dataclass(frozen=True)
class TinyStoriesCommand:
    """Prepare texts in two languages, one column each: a file, a folder, or a data set on the Hub."""

    prepare: Annotated[PrepareConfig, tyro.conf.arg(name="")]
    source: str = "ffuuugor/tinystories_spanish"
    """Local parquet, json, jsonl or arrow file, a folder of them, or a name on the Hub."""
    split: str = "train"
    """The split to read where a data set has several."""
    test_source: str | None = None
    """Where the test split comes from, if the source has one of its own."""
    retain_column: str = "text"
    """The texts that are kept."""
    forget_column: str = "text_es"
    """The texts that are to be removed."""
    mixed_share: float = 0.0
    """Share of the rows that are trained on as documents which begin in one language and go on in the other; what they
    are is forget. The test split stays unmixed."""
    label_tokens: bool = False
    """Also write the true label of every token (forget, or retain), to train on as it is."""


def data_tinystories(arguments: Arguments) -> None:
    """Prepare texts in two columns, one language each."""
    command = tyro.cli(TinyStoriesCommand, prog="sgtm data tinystories", args=arguments)
    from sgtm.data.tinystories import source
    from sgtm.data.tokenize import prepare

    columns: dict[str, Category] = {command.retain_column: "retain", command.forget_column: "forget"}
    labelled: Literal["tokens"] | None = "tokens" if command.label_tokens else None
    test = None
    if command.test_source is not None:
        test = source(command.test_source, command.split, columns, label_tokens=command.label_tokens)
    origin = {key: value for key, value in asdict(command).items() if key != "prepare"}
    seed = command.prepare.seed
    training = source(command.source, command.split, columns, command.mixed_share, command.label_tokens, seed)
    print(f"written to {prepare(training, command.prepare, origin, test, labelled)}")


@dataclass(frozen=True)
class TextsCommand:
    """Prepare texts of any categories, one a row, with columns text, category and, if any, label, spans, group.

    Without a column category, labels stand for it: losses are then those of documents that the labeller is sure of.
    """

    prepare: Annotated[PrepareConfig, tyro.conf.arg(name="")]
    source: str = tyro.MISSING
    """Local parquet, json, jsonl or arrow file, a folder of them, or a name on the Hub."""
    split: str = "train"
    """The split to read where a data set has several."""
    test_source: str | None = None
    """Where the test split comes from, if the source has one of its own."""
    text_column: str = "text"
    """The texts."""
    domains: str = ""
    """All domains, with commas between (forget, or names of your own): a category or label of another name is refused.
    By default any name is taken, and the labels are counted for you to see."""


def data_texts(arguments: Arguments) -> None:
    """Prepare texts of several domains, with labels of documents or of spans."""
    command = tyro.cli(TextsCommand, prog="sgtm data texts", args=arguments)
    from sgtm.data.texts import texts, truth_of
    from sgtm.data.tokenize import prepare, read_manifest

    how = command.split, command.text_column, _words(command.domains)
    training, labelled = texts(command.source, *how)
    test = None if command.test_source is None else texts(command.test_source, *how)[0]
    origin = {key: value for key, value in asdict(command).items() if key != "prepare"}
    origin["truth"] = truth_of(command.source, command.split)
    written = prepare(training, command.prepare, origin, test, labelled)
    if labelled is not None:
        from rich.console import Console

        from sgtm.data.inspect import labels_table

        Console().print(labels_table(read_manifest(written)))
    print(f"written to {written}")
    if origin["truth"] == "label":
        print("no column category: labels stand for it, so losses are of what was labelled, not of what texts are")


def families(arguments: Arguments) -> None:
    """The model families, what they can forget with, and why not."""

    def command() -> None:
        """Print the model families, what they can forget with, and why not."""
        from sgtm.model.families import table

        print(table())

    tyro.cli(command, prog="sgtm families", args=arguments)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def plot_tradeoff(arguments: Arguments) -> None:
    """Forget loss against retain loss of runs."""

    def command(
        runs: tyro.conf.Positional[list[Path]],
        out: Path = Path("tradeoff.png"),
        variant: Literal["calibrated", "ablated", "intact"] = "calibrated",
        retain: str = "retain",
        forget: str = "",
    ) -> None:
        """Forget loss against retain loss of runs.

        Args:
            runs: folders of runs, of sweeps, or a sweep's results.parquet.
            out: the picture to write (png, pdf, svg).
            variant: which model's losses.
            retain: the category on the x axis: retain, adjacent or, by topic, retain/Culture.
            forget: the domain on the y axis where there are several, or `mean` of all of them.
        """
        from sgtm.plot.records import read_runs
        from sgtm.plot.tradeoff import tradeoff

        tradeoff(read_runs(runs), out, variant, retain, forget)
        print(f"written to {out}")

    tyro.cli(command, prog="sgtm plot tradeoff", args=arguments)


def env(arguments: Arguments) -> None:
    """Print versions and hardware, for bug reports."""

    def command() -> None:
        """Print versions and hardware, for bug reports."""
        from sgtm.environment import environment

        for name, value in environment().items():
            print(f"{name:15} {value}")

    tyro.cli(command, prog="sgtm env", args=arguments)


def plot_gradient_norms(arguments: Arguments) -> None:
    """Which parameters single examples push, and in which direction."""

    def command(runs: tyro.conf.Positional[list[Path]], out: Path = Path("gradient_norms.png")) -> None:
        """Densities of relative gradient norms by category, and cosines over the checkpoints.

        Args:
            runs: folders of runs with a gradients.jsonl, or such files.
            out: the picture to write (png, pdf, svg).
        """
        from sgtm.plot.gradient_norms import gradient_norms, read_gradients

        gradient_norms([read_gradients(run) for run in runs], out)
        print(f"written to {out}")

    tyro.cli(command, prog="sgtm plot gradient-norms", args=arguments)


def gradients(arguments: Arguments) -> None:
    """Gradients of a run's test examples: how hard they push which parameters, and in which direction."""

    def command(
        run: tyro.conf.Positional[Path],
        examples: int = 256,
        rows: int = 1024,
        checkpoints: Literal["last", "all"] = "last",
        out: Path | None = None,
    ) -> None:
        """Relative gradient norms of a run's test examples, and cosines with the mean gradients of labelled rows.

        Args:
            run: the run's folder.
            examples: test rows of each category, each in a backward pass of its own.
            rows: training rows of each label, whose mean gradient is a direction.
            checkpoints: the run's last model, or every one that it kept (train.keep_checkpoints).
            out: the records to write; by default gradients.jsonl in the run's folder.
        """
        from sgtm.records import GRADIENTS
        from sgtm.train.gradients import gradients_of_run
        from sgtm.train.summary import print_gradients

        out = out or run / GRADIENTS
        print_gradients(gradients_of_run(run, out, examples, rows, checkpoints))
        print(f"written to {out}")

    tyro.cli(command, prog="sgtm gradients", args=arguments)


@dataclass(frozen=True)
class SweepCommand:
    """Train many runs: whatever is missing of them."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    out: Path | None = None
    """Folder of the runs' folders; by default the sweep file's."""
    seeds: tuple[int, ...] | None = None
    """By default the sweep file's."""
    status: bool = False
    """Show where the runs stand, collect their results, and run nothing."""
    dry_run: bool = False
    """Show what the runs would take in tokens and FLOPs, and run nothing."""
    tokens_per_second: float | None = None
    """With --dry-run: the speed of one run, for an estimate of the time."""
    jobs: int | None = None
    """Runs at a time; by default one on a CPU, one for each GPU (or each --processes-per-run of them) otherwise."""
    devices: str | None = None
    """The GPUs to use (0,1); all by default."""
    processes_per_run: int = 1
    """Processes of each run, under torchrun, on one GPU each."""
    slurm: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="KEY=VALUE...")] = None
    """Submit the runs to Slurm by submitit and return: timeout_min=600 gpus_per_node=1 cpus_per_task=8
    slurm_partition=NAME ... (what its AutoExecutor knows)."""


def sweep(arguments: Arguments) -> None:
    """Train many runs: `sgtm sweep SWEEP.yaml [RUN.yaml] [--section.key value ...] [--status] [--dry-run]`."""
    from sgtm.train.sweep import points_of, read_sweep

    files = list(map(Path, takewhile(lambda word: not word.startswith("-"), arguments)))
    plan = read_sweep(*files[:2]) if files else None
    default = SweepCommand(RunConfig() if plan is None else plan.common)
    command = tyro.cli(SweepCommand, prog="sgtm sweep SWEEP.yaml", default=default, args=arguments[len(files) :])
    if plan is None or len(files) > 2:
        raise ConfigError("give a sweep's file first (examples in configs/sweeps/), and at most one run's after it")
    out = command.out or Path(plan.config.out)
    seeds = plan.config.seeds if command.seeds is None else list(command.seeds)
    points = points_of(plan, command.run, out, seeds)
    if command.dry_run:
        from sgtm.train.estimate import print_costs

        print_costs(points, command.tokens_per_second)
    elif command.status:
        from sgtm.train.states import show

        show(points, out)
    else:
        from sgtm.train.launch import run_sweep

        run_sweep(points, out, command.devices, command.processes_per_run, command.jobs, command.slurm)


def plot_undiscovered(arguments: Arguments) -> None:
    """Forget and retain loss against the undiscovered share."""

    def command(
        runs: tyro.conf.Positional[list[Path]],
        out: Path = Path("undiscovered.png"),
        variant: Literal["calibrated", "ablated", "intact"] = "calibrated",
        forget: str = "",
    ) -> None:
        """Forget and retain loss against the undiscovered share: mean over seeds, with the 95 % t interval.

        Args:
            runs: folders of runs, of sweeps, or a sweep's results.parquet.
            out: the picture to write (png, pdf, svg).
            variant: which model's losses.
            forget: the domain on the left where there are several, or `mean` of all of them.
        """
        from sgtm.plot.records import read_runs
        from sgtm.plot.undiscovered import undiscovered

        undiscovered(read_runs(runs), out, variant, forget)
        print(f"written to {out}")

    tyro.cli(command, prog="sgtm plot undiscovered", args=arguments)


def plot_grid(arguments: Arguments) -> None:
    """Loss over true and false positive rates."""

    def command(
        runs: tyro.conf.Positional[list[Path]],
        out: Path = Path("grid.png"),
        method: str = "sgtm",
        against: str | None = None,
        category: str = "forget",
        variant: Literal["calibrated", "ablated", "intact"] = "calibrated",
    ) -> None:
        """Loss over true and false positive rates: a heat map, mean over seeds.

        Args:
            runs: folders of runs, of sweeps, or a sweep's results.parquet.
            out: the picture to write (png, pdf, svg).
            method: whose losses.
            against: instead, how far they are above those of this method.
            category: losses on this category.
            variant: which model's losses.
        """
        from sgtm.plot.grid import grid
        from sgtm.plot.records import read_runs

        grid(read_runs(runs), out, method, against, category, variant)
        print(f"written to {out}")

    tyro.cli(command, prog="sgtm plot grid", args=arguments)


@dataclass(frozen=True)
class TranslateCommand:
    """Translate a column of texts by Message Batches; what was killed or stopped goes on when it is run again."""

    translate: Annotated[TranslateConfig, tyro.conf.arg(name="")]
    source: str = "roneneldan/TinyStories"
    """Local parquet, json, jsonl or arrow file, a folder of them, or a name on the Hub."""
    split: str = "train"
    """The split to read where a data set has several."""
    dry_run: bool = False
    """Only say how many documents there are and what they would cost; nothing is sent or written."""


def data_translate(arguments: Arguments) -> None:
    """Translate a column of texts (Anthropic Message Batches), for `data tinystories`."""
    command = tyro.cli(TranslateCommand, prog="sgtm data translate", args=arguments)
    from sgtm.data.translate import plan, translate

    run = plan if command.dry_run else translate
    print(run(command.source, command.split, command.translate))


def leakage(arguments: Arguments) -> None:
    """Leakage of runs: the forget data they learned from, in tokens of ordinary models, which it trains or reuses."""

    def command(
        runs: tyro.conf.Positional[list[Path]],
        references: Path | None = None,
        shares: list[float] | None = None,
        interpolation: Literal["linear", "log"] = "linear",
        bootstrap: int = 1000,
        dry_run: bool = False,
        out: Path | None = None,
    ) -> None:
        """Leakage of runs: the forget data they learned from, in tokens of ordinary models, which it trains or reuses.

        Args:
            runs: folders of finished runs; those that differ by their seed alone are measured together.
            references: folder of the ordinary models; by default references/ beside the runs.
            shares: of the forget data that ordinary models see, one each; by default 0, 1/1024, 1/512, ..., 1.
            interpolation: of the loss between neighbours, in forget tokens or in their logarithm.
            bootstrap: draws of the seeds, for the 95 % interval.
            dry_run: say what would be trained, and stop.
            out: the records to write, for `sgtm plot leakage`; by default leakage.jsonl beside the runs.
        """
        from sgtm.records import LEAKAGE
        from sgtm.train.leakage import measure, write_records
        from sgtm.train.references import SHARES, beside, plan_references, train_missing
        from sgtm.train.summary import print_plan

        plan = plan_references(runs, references, SHARES if shares is None else shares)
        print_plan(plan)
        if dry_run:
            return
        train_missing(plan)
        records = measure(plan, interpolation, bootstrap)
        write_records(records, out := out or beside(runs) / LEAKAGE)
        _print_leakage(records)
        print(f"written to {out}")

    tyro.cli(command, prog="sgtm leakage", args=arguments)


def _print_leakage(records: list[dict[str, Any]]) -> None:
    from rich.console import Console

    from sgtm.plot.leakage import leakage_table

    Console(width=max(140, Console().width)).print(leakage_table(records))


def plot_leakage(arguments: Arguments) -> None:
    """Leakage against the undiscovered share, in tokens, and by model size."""

    def command(runs: tyro.conf.Positional[list[Path]], out: Path = Path("leakage.png")) -> None:
        """Leakage against the undiscovered share, in tokens, and by model size.

        Args:
            runs: what `sgtm leakage` measured: run folders, the folder that holds them, or leakage.jsonl files.
            out: the picture to write (png, pdf, svg).
        """
        from sgtm.plot.leakage import leakage, read_leakage

        leakage(read_leakage(runs), out)
        print(f"written to {out}")

    tyro.cli(command, prog="sgtm plot leakage", args=arguments)


@dataclass(frozen=True)
class LabelCommand:
    """Label texts with a classifier that learns from a few hundred examples; what it is not sure of stays unlabeled."""

    data: tyro.conf.Positional[str]
    """Local parquet, json, jsonl or arrow file, a folder of them, or a name on the Hub (streamed)."""
    classify: Annotated[ClassifyConfig, tyro.conf.arg(name="")]
    examples: str | None = None
    """File with the columns text and category (or label): what to learn from."""
    column: str | None = None
    """Instead of examples: a column of DATA that has labels in some rows."""
    split: str = "train"
    """The split to read where a data set has several."""
    resume: bool = False
    """Go on with an interrupted run."""


def label(arguments: Arguments) -> None:
    """Label texts by a classifier from a few hundred examples: forget, retain, or unsure."""
    command = tyro.cli(LabelCommand, prog="sgtm label", args=arguments)
    from sgtm.data.own_labels import label_texts, summary

    c = command
    print(summary(label_texts(c.data, c.classify, c.examples, c.column, c.split, c.resume)))
    print(f"written to {c.classify.out}")


def data_score(arguments: Arguments) -> None:
    """Scores of prepared documents that label errors can depend on: loss, topic, classifier."""

    def command(
        data: tyro.conf.Positional[Path],
        by: Literal["loss", "topic", "classifier"],
        model: str = "",
        topics: int = 10,
        examples: int = 300,
        features: str = "words",
        seed: int = 0,
    ) -> None:
        """Score the training documents of prepared data, for `--labels.depends-on` (`length` needs no scores).

        Args:
            data: folder that `sgtm data` wrote; scores are written beside the rows.
            by: loss of a small reference model; topic (k-means of their words); or a classifier.
            model: of loss: a run's folder or a checkpoint with the data's own tokenizer.
            topics: of topic: number of topics of each domain, and of all other documents.
            examples: of classifier: random documents that it learns from.
            features: of classifier: words, characters, or a Hugging Face encoder.
            seed: of topic and classifier.
        """
        from sgtm.data.scoring import score_by_classifier, score_by_topic

        if by == "loss":
            if not model:
                raise ConfigError("--by loss needs a reference model: --model RUN_OR_CHECKPOINT")
            from sgtm.evaluate.difficulty import score_by_loss

            print(f"written to {score_by_loss(data, model)}")
        elif by == "topic":
            print(f"written to {score_by_topic(data, topics, seed)}")
        else:
            print(f"written to {score_by_classifier(data, examples, features, seed)}")

    tyro.cli(command, prog="sgtm data score", args=arguments)


@dataclass(frozen=True)
class WikipediaCommand:
    """Prepare Wikipedia with topics: forget, adjacent and retain by what ORES says an article is about."""

    prepare: Annotated[PrepareConfig, tyro.conf.arg(name="")]
    wikipedia: Annotated[WikipediaConfig, tyro.conf.arg(name="")]


def data_wikipedia(arguments: Arguments) -> None:
    """Prepare Wikipedia, its articles sorted by ORES topics."""
    own = PrepareConfig(tyro.MISSING, context=1024, pack=True, test_fraction=0.1)
    default = WikipediaCommand(own, WikipediaConfig(tyro.MISSING))
    command = tyro.cli(WikipediaCommand, prog="sgtm data wikipedia", default=default, args=arguments)
    from sgtm.data.tokenizer import Opener

    with Opener(command.prepare.tokenizer, early=command.wikipedia.processes != 1) as opener:
        from sgtm.data.wikipedia import prepare_wikipedia  # takes a while, as opening does

        print(f"written to {prepare_wikipedia(command.prepare, command.wikipedia, opener)}")


def data_inspect(arguments: Arguments) -> None:
    """Show what a prepared data set holds."""

    def command(path: tyro.conf.Positional[Path], examples: int = 1, check: bool = True) -> None:
        """Show what a prepared data set holds: counts, lengths of rows, texts on both sides of the split, examples.

        Args:
            path: folder written by `sgtm data`.
            examples: rows to show of each category.
            check: compare all documents of both splits (reads every token).
        """
        from sgtm.data.inspect import inspect

        inspect(path, examples, check)

    tyro.cli(command, prog="sgtm data inspect", args=arguments)


@dataclass(frozen=True)
class TasksCommand:
    """Make multiple-choice tasks of the test split of prepared data, for `sgtm evaluate --tasks`."""

    data: tyro.conf.Positional[Path]
    """Folder that `sgtm data` wrote."""
    tasks: Annotated[TasksConfig, tyro.conf.arg(name="")]


def data_tasks(arguments: Arguments) -> None:
    """Make multiple-choice tasks of held-out text: cloze, minimal pairs, facts."""
    command = tyro.cli(TasksCommand, prog="sgtm data tasks", args=arguments)
    from sgtm.data.tasks import make_tasks

    for name, of_task in make_tasks(command.data, command.tasks)["tasks"].items():
        print(f"{name}: {of_task['questions']} questions about {of_task['documents']} documents")
    print(f"written to {command.tasks.out}")


def push(arguments: Arguments) -> None:
    """Upload a run's model, an export or a domain's units to the Hugging Face Hub, with a model card."""

    def command(path: tyro.conf.Positional[Path], repository: tyro.conf.Positional[str], private: bool = False) -> None:
        """Upload to the Hugging Face Hub; the token is that of HF_TOKEN or of `hf auth login`.

        Args:
            path: a run's folder (its intact model), an export or checkpoint, or a module (.safetensors).
            repository: OWNER/NAME; it is made if it does not exist.
            private: make it a private one.
        """
        from sgtm.train.push import push

        print(f"uploaded to {push(path, repository, private)}")

    tyro.cli(command, prog="sgtm push", args=arguments)


def penalty(arguments: Arguments) -> None:
    """The compute penalty of runs: of how much less compute an ordinary model would have their losses."""

    def command(
        runs: tyro.conf.Positional[list[Path]],
        ordinary: list[Path],
        variant: Literal["calibrated", "ablated", "intact"] = "calibrated",
        draws: int = 1000,
        out: Path | None = None,
    ) -> None:
        """Fit l = a C^-b to models without a filter, and tell losses in their compute.

        Args:
            runs: folders of runs or sweeps that are judged; those that differ by their seed alone together.
            ordinary: runs without a filter, of several sizes (and seeds).
            variant: which losses, of both.
            draws: of the seeds, for the 95 % intervals.
            out: a JSON file to write as well.
        """
        from rich.console import Console

        from sgtm.plot.penalty import categories_of, penalties, table, write_penalties
        from sgtm.plot.records import read_runs

        references, judged = read_runs(ordinary), read_runs(runs)
        laws, found = penalties(references, judged, categories_of([*references, *judged]), variant, draws)
        Console(width=max(120, Console().width)).print(table(laws, found))
        if out is not None:
            write_penalties(laws, found, out)
            print(f"written to {out}")

    tyro.cli(command, prog="sgtm penalty", args=arguments)


def plot_penalty(arguments: Arguments) -> None:
    """The laws of models without a filter, and where other runs stand."""

    def command(
        runs: tyro.conf.Positional[list[Path]],
        ordinary: list[Path],
        variant: Literal["calibrated", "ablated", "intact"] = "calibrated",
        out: Path = Path("penalty.png"),
    ) -> None:
        """Loss over compute: the law of models without a filter, and the runs that are judged by it.

        Args:
            runs: folders of runs or sweeps that are judged.
            ordinary: runs without a filter, of several sizes.
            variant: which losses, of both.
            out: the picture to write (png, pdf, svg).
        """
        from sgtm.plot.penalty import penalty
        from sgtm.plot.records import read_runs

        penalty(read_runs(ordinary), read_runs(runs), out, variant)
        print(f"written to {out}")

    tyro.cli(command, prog="sgtm plot penalty", args=arguments)


def plot_topics(arguments: Arguments) -> None:
    """How much text a prepared Wikipedia has of each topic, by category."""

    def command(data: tyro.conf.Positional[Path], out: Path = Path("topics.png"), number: int = 40) -> None:
        """Draw the tokens of the largest topics, and on which side of the removal they stand.

        Args:
            data: a folder that `sgtm data wikipedia` wrote.
            out: the picture to write (png, pdf, svg).
            number: topics to draw, at most; those that are removed or adjacent always.
        """
        from sgtm.plot.topics import topics

        topics(data, out, number)
        print(f"written to {out}")

    tyro.cli(command, prog="sgtm plot topics", args=arguments)


def report(arguments: Arguments) -> None:
    """One self-contained HTML page of a run, or of the runs of a sweep."""

    def command(folder: tyro.conf.Positional[Path], relearned: tuple[Path, ...] = (), out: Path | None = None) -> None:
        """Write one HTML page about a run or a sweep, from its records; it needs no network and no other file.

        Args:
            folder: a run's folder, or one that holds the folders of runs.
            relearned: folders of `sgtm relearn` on the run; those in its folder or beside it are found.
            out: the page to write; by default report.html in the folder.
        """
        from sgtm.plot.report import write_report

        print(f"written to {write_report(folder, out, relearned)}")

    tyro.cli(command, prog="sgtm report", args=arguments)


def compare(arguments: Arguments) -> None:
    """Runs side by side: settings that differ, losses and their differences, curves."""

    def command(runs: tyro.conf.Positional[list[Path]], out: Path | None = None) -> None:
        """Print what tells runs apart: settings, test losses and their differences, cost.

        Args:
            runs: folders of two runs or more, or of a sweep; differences are to the first.
            out: an HTML page to write as well, with the curves over one another.
        """
        from rich.console import Console

        from sgtm.config import write
        from sgtm.plot.compare import compare_page, costs_table, losses_table, read_compared, settings_table

        found = read_compared(runs)
        console = Console(width=max(100, Console().width))
        for table in (settings_table(found), losses_table(found), costs_table(found)):
            console.print(table)
        if out is not None:
            write(out, compare_page(found))
            print(f"written to {out}")

    tyro.cli(command, prog="sgtm compare", args=arguments)


@dataclass(frozen=True)
class UnlearnCommand:
    """Suppress a capability of a finished model; the method is named by --method."""

    model: tyro.conf.Positional[Path]
    """A run's folder, an export, or a Hugging Face checkpoint; taken with all its units."""
    unlearn: Annotated[UnlearnConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder to write: unlearn.yaml, metrics.jsonl, model/."""


def unlearn(arguments: Arguments) -> None:
    """Suppress a capability of a finished model: RMU, gradient ascent, MaxEnt, NPO, UNDO."""
    _unlearn(tyro.cli(UnlearnCommand, prog="sgtm unlearn", args=arguments))


def rmu(arguments: Arguments) -> None:
    """RMU: `sgtm unlearn --method rmu`."""
    _unlearn(tyro.cli(UnlearnCommand, prog="sgtm rmu", args=arguments))


def _unlearn(command: UnlearnCommand) -> None:
    from sgtm.train.summary import print_losses
    from sgtm.train.unlearn import unlearn as run_unlearning

    print_losses({command.unlearn.method: run_unlearning(command.model, command.unlearn, command.out)})
    print(f"written to {command.out}")


@dataclass(frozen=True)
class RelearnCommand:
    """Remove the forget units of a model and fine-tune it to have them back: how many steps and forget tokens it takes.

    Killed, it goes on with the curves that are missing when it is run again.
    """

    start: tyro.conf.Positional[Path]
    """A run's folder, an export, or a Hugging Face checkpoint."""
    relearn: Annotated[RelearnConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder to write: relearn.yaml, metrics.jsonl, summary.json."""


def relearn(arguments: Arguments) -> None:
    """Fine-tune a model to have back what was removed: steps and forget tokens, by learning rate."""
    command = tyro.cli(RelearnCommand, prog="sgtm relearn", args=arguments)
    from sgtm.train.relearn import relearn as run_relearning

    run_relearning(command.start, command.relearn, command.out)
    _print_relearning([command.out])
    print(f"written to {command.out}")


def _print_relearning(folders: list[Path]) -> None:
    from rich.console import Console

    from sgtm.plot.relearning import read_relearnings, relearning_table

    Console(width=max(140, Console().width)).print(relearning_table(read_relearnings(folders)))


def plot_relearning(arguments: Arguments) -> None:
    """Forget loss over steps and forget tokens of relearning."""

    def command(folders: tyro.conf.Positional[list[Path]], out: Path = Path("relearning.png")) -> None:
        """Forget loss over steps and forget tokens of relearning: each start's best learning rate, over seeds.

        Args:
            folders: what `sgtm relearn` wrote, or folders that hold such folders.
            out: the picture to write (png, pdf, svg).
        """
        from sgtm.plot.relearning import read_relearnings, relearning

        relearning(read_relearnings(folders), out)
        _print_relearning(folders)
        print(f"written to {out}")

    tyro.cli(command, prog="sgtm plot relearning", args=arguments)


@dataclass(frozen=True)
class AttackCommand:
    """Ask a model for what was removed, without training it: quantise, prune, give texts or prompts, probe."""

    start: tyro.conf.Positional[Path]
    """A run's folder, an export, or a Hugging Face checkpoint; forget units are removed first."""
    attack: Annotated[AttackConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder to write: attack.yaml, metrics.jsonl (losses) and probes.jsonl."""


def attack(arguments: Arguments) -> None:
    """Attacks without training: quantisation, pruning, examples in the context, prompts, linear probes."""
    command = tyro.cli(AttackCommand, prog="sgtm attack", args=arguments)
    from sgtm.train.attack import attack as run_attacks
    from sgtm.train.attack import print_attacks

    print_attacks(run_attacks(command.start, command.attack, command.out))
    print(f"written to {command.out}")


@dataclass(frozen=True)
class AuditCommand:
    """Run all attacks on a model without its forget units, and on others of the same data; write one page.

    Killed, it goes on with the attacks that are missing when it is run again.
    """

    runs: tyro.conf.Positional[list[Path]]
    """Runs of one method that differ by their seeds, or a sweep's folder, whose other methods are compared with."""
    audit: Annotated[AuditConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder to write: audit.yaml, a folder for each attack, audit.jsonl, audit.html."""
    against: list[str] = field(default_factory=list)
    """Models to compare with, NAME=PATH (none=RUN filter=RUN rmu=FOLDER), a name once for each seed; `none` never had
    anything removed."""
    method: str = ""
    """Which of the runs' methods is audited, where they have several."""


def audit(arguments: Arguments) -> None:
    """All attacks on a run and on models to compare with, as one page: what comes back, and at what cost."""
    settings = list(map(Path, takewhile(lambda word: word.endswith((".yaml", ".yml")), arguments)))
    if len(settings) > 1:
        raise ConfigError(f"{len(settings)} files of settings; give one, and RUNs after it")
    default = build(AuditConfig, read_yaml(settings[0]), str(settings[0])) if settings else AuditConfig()
    # tyro takes one default for everything: what must be given is marked.
    missing = AuditCommand(tyro.MISSING, default, tyro.MISSING)
    command = tyro.cli(
        AuditCommand, prog="sgtm audit [SETTINGS.yaml]", default=missing, args=arguments[len(settings) :]
    )
    from sgtm.train.audit import audit as run_audit
    from sgtm.train.compared import models_of

    run_audit(models_of(command.runs, command.against, command.method), command.audit, command.out)
    _write_audit(command.out)


def plot_audit(arguments: Arguments) -> None:
    """The page of an audit, from its records alone."""

    def command(folder: tyro.conf.Positional[Path]) -> None:
        """Write the page of an audit, finished or not, from its records alone.

        Args:
            folder: what `sgtm audit` wrote.
        """
        _write_audit(folder)

    tyro.cli(command, prog="sgtm plot audit", args=arguments)


def _write_audit(folder: Path) -> None:
    from sgtm.plot.audit import read_audit, verdict, write_page

    found = read_audit(folder)
    print("\n".join(verdict(found)))
    print(f"written to {write_page(found)}")


COMMANDS: dict[str, Callable[[Arguments], None]] = {
    "demo": demo,
    "data synthetic": data_synthetic,
    "data tinystories": data_tinystories,
    "data texts": data_texts,
    "data translate": data_translate,
    "data wikipedia": data_wikipedia,
    "data score": data_score,
    "data inspect": data_inspect,
    "data tasks": data_tasks,
    "label": label,
    "families": families,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "push": push,
    "sweep": sweep,
    "rmu": rmu,
    "unlearn": unlearn,
    "relearn": relearn,
    "attack": attack,
    "audit": audit,
    "gradients": gradients,
    "leakage": leakage,
    "penalty": penalty,
    "report": report,
    "compare": compare,
    "plot tradeoff": plot_tradeoff,
    "plot undiscovered": plot_undiscovered,
    "plot grid": plot_grid,
    "plot gradient-norms": plot_gradient_norms,
    "plot leakage": plot_leakage,
    "plot relearning": plot_relearning,
    "plot audit": plot_audit,
    "plot penalty": plot_penalty,
    "plot topics": plot_topics,
    "env": env,
}


def main(arguments: Arguments | None = None) -> None:
    """Run ``sgtm`` with ``arguments`` (the command line by default); errors are one line and exit with 1."""
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None:  # started, not called
        warnings.formatwarning = _of_one_line
        if hasattr(signal, "SIGPIPE") and (not words or {"-h", "--help"} & set(words)):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # help that is piped into `head` ends without a word
    if not words or words[0] in ("-h", "--help"):
        print(_overview(COMMANDS, "Train a language model so that a chosen capability can be taken out again."))
        return
    if words[0] == "--version":
        print(version("sgtm"))
        return
    for length in (2, 1):
        command = COMMANDS.get(" ".join(words[:length]))
        if command is not None:
            break
    else:
        group = {name: c for name, c in COMMANDS.items() if name.startswith(f"{words[0]} ")}
        if group and words[1:2] in ([], ["-h"], ["--help"]):
            print(_overview(group, f"sgtm {words[0]} ..."))
            return
        sys.exit(_unknown(" ".join(words[:2]), group) if group else _unknown(words[0], COMMANDS))
    try:
        command(words[length:])
    except StoppedError as stopped:
        _end_by(stopped.number, str(stopped))
    except KeyboardInterrupt as interrupt:
        if arguments is not None:  # called, not started
            raise
        _end_by(signal.SIGINT, str(interrupt) or "stopped by Ctrl-C")
    except (ConfigError, RunError, OSError) as error:
        sys.exit(f"sgtm: error: {redacted(error)}")
    except ModuleNotFoundError as error:
        sys.exit(f"sgtm: error: {error}; `pip install 'sgtm[all]'` installs what the commands need")


def _of_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"sgtm: warning: {message}\n" if category is UserWarning else f"{category.__name__}: {message}\n"


def _end_by(number: int, message: str) -> None:
    """Whoever waits for this process sees which signal ended it."""
    print(f"sgtm: {message}", file=sys.stderr)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _overview(commands: Mapping[str, Callable[[Arguments], None]], about: str) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {(c.__doc__ or '').splitlines()[0]}" for name, c in commands.items()]
    return "\n".join(("usage: sgtm COMMAND ... (sgtm COMMAND --help shows its options)", "", about, "", *lines))


def _unknown(words: str, commands: Iterable[str]) -> str:
    return f"sgtm: error: no command {words!r}{nearest(words, commands)} (commands: {', '.join(commands)})"


if __name__ == "__main__":
    main()
