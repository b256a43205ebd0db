"""``sgtm COMMAND ...``: finds the command and its options; the work is done in the rooms."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sgtm.config import Category, ConfigError, PrepareConfig, RunConfig, WikipediaConfig, load, nearest

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
    """Train one model: `sgtm train CONFIG.yaml [--section.key value ...] [--run-dir DIR] [--resume]`."""
    path = Path(arguments[0]) if arguments and not arguments[0].startswith("-") else None
    default = TrainCommand(RunConfig() if path is None else load(path))
    rest = arguments if path is None else arguments[1:]
    command = tyro.cli(TrainCommand, prog="sgtm train CONFIG.yaml", default=default, args=rest)
    if path is None:
        raise ConfigError("give the run's configuration first: sgtm train CONFIG.yaml (examples in configs/)")
    folder = command.run_dir or Path("runs") / f"{path.stem}-{command.run.method}-seed{command.run.seed}"
    from sgtm.train.run import train as run_training
    from sgtm.train.summary import print_losses

    run = run_training(command.run, folder, command.resume)
    print_losses({command.run.method: run.losses})
    print(f"written to {folder}")


def evaluate(arguments: Arguments) -> None:
    """Losses of a finished run on its test split, for the intact, ablated and calibrated model."""

    def command(
        run: tyro.conf.Positional[Path],
        without: str = "",
        matrix: bool = False,
        rows: int | None = None,
        batch_size: int = 64,
    ) -> None:
        """Losses of a finished run on its test split.

        Args:
            run: the run's folder.
            without: domains that the ablated model is without, with commas between; all by default.
            matrix: instead, the loss of every category without each of the domains, and without all (not calibrated).
            rows: test rows of each category; all by default.
            batch_size: rows of one forward pass.
        """
        from sgtm.train.run import ablation_matrix_of_run, evaluate_run
        from sgtm.train.summary import print_losses, print_matrix

        if matrix and without:
            raise ConfigError("--matrix shows every domain; leave out --without")
        if matrix:
            print_matrix(ablation_matrix_of_run(run, rows, batch_size))
        else:
            print_losses({run.name: evaluate_run(run, rows, batch_size, _words(without))})

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
            steps: optimizer steps of each method; by default those of configs/demo/demo.yaml.
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


def data_tinystories(arguments: Arguments) -> None:
    """Prepare texts in two columns, one language each."""
    command = tyro.cli(TinyStoriesCommand, prog="sgtm data tinystories", args=arguments)
    from sgtm.data.tinystories import source
    from sgtm.data.tokenize import prepare

    columns: dict[str, Category] = {command.retain_column: "retain", command.forget_column: "forget"}
    test = None if command.test_source is None else source(command.test_source, command.split, columns)
    origin = {key: value for key, value in asdict(command).items() if key != "prepare"}
    training = source(command.source, command.split, columns)
    print(f"written to {prepare(training, command.prepare, origin, test)}")


@dataclass(frozen=True)
class TextsCommand:
    """Prepare texts of any categories, one a row, with columns text, category and, if any, label, spans, group."""

    prepare: Annotated[PrepareConfig, tyro.conf.arg(name="")]
    source: str = tyro.MISSING
    """Local parquet, json, jsonl or arrow file, a folder of them, or a name on the Hub."""
    split: str = "train"
    """The split to read where a data set has several."""
    test_source: str | None = None
    """Where the test split comes from, if the source has one of its own."""


def data_texts(arguments: Arguments) -> None:
    """Prepare texts of several domains, with labels of documents or of spans."""
    command = tyro.cli(TextsCommand, prog="sgtm data texts", args=arguments)
    from sgtm.data.texts import texts
    from sgtm.data.tokenize import prepare

    training, labelled = texts(command.source, command.split)
    test = None if command.test_source is None else texts(command.test_source, command.split)[0]
    origin = {key: value for key, value in asdict(command).items() if key != "prepare"}
    print(f"written to {prepare(training, command.prepare, origin, test, labelled)}")


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
        retain: Literal["retain", "adjacent"] = "retain",
    ) -> None:
        """Forget loss against retain loss of runs.

        Args:
            runs: folders of runs.
            out: the picture to write (png, pdf, svg).
            variant: which model's losses.
            retain: the category on the x axis.
        """
        from sgtm.plot.records import read_run
        from sgtm.plot.tradeoff import tradeoff

        tradeoff([read_run(run) for run in runs], out, variant, retain)
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
    from sgtm.data.wikipedia import prepare_wikipedia

    print(f"written to {prepare_wikipedia(command.prepare, command.wikipedia)}")


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


COMMANDS: dict[str, Callable[[Arguments], None]] = {
    "demo": demo,
    "data synthetic": data_synthetic,
    "data tinystories": data_tinystories,
    "data texts": data_texts,
    "data wikipedia": data_wikipedia,
    "data inspect": data_inspect,
    "families": families,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "plot tradeoff": plot_tradeoff,
    "env": env,
}


def main(arguments: Arguments | None = None) -> None:
    """Run ``sgtm`` with ``arguments`` (the command line by default); errors are one line and exit with 1."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    for length in (2, 1):
        command = COMMANDS.get(" ".join(words[:length]))
        if command is not None:
            break
    else:
        sys.exit(_unknown(" ".join(w for w in words[:2] if not w.startswith("-"))))
    try:
        command(words[length:])
    except ConfigError as error:
        sys.exit(f"sgtm: error: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"sgtm: error: {error}; `pip install 'sgtm[all]'` installs what the commands need")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {(c.__doc__ or '').splitlines()[0]}" for name, c in COMMANDS.items()]
    return "\n".join(
        (
            "usage: sgtm COMMAND ... (sgtm COMMAND --help shows its options)",
            "",
            "Train a language model so that a chosen capability can be taken out again.",
            "",
            *lines,
        )
    )


def _unknown(words: str) -> str:
    return f"sgtm: error: no command {words!r}{nearest(words, COMMANDS)} (commands: {', '.join(COMMANDS)})"


if __name__ == "__main__":
    main()
