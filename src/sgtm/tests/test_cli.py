"""The commands, as they are typed."""

import json
import resource
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml

import sgtm
from sgtm.cli import COMMANDS, main
from sgtm.plot.tests.report_records import write_run
from sgtm.train.tests.test_run import TINY


def output_of(capsys, *words: str) -> str:
    main(list(words))
    return capsys.readouterr().out


def refusal_of(*words: str) -> str:
    with pytest.raises(SystemExit) as refused:
        main(list(words))
    return str(refused.value)


def test_the_overview_names_every_command(capsys):
    shown = output_of(capsys, "--help")
    assert all(f"  {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert "usage: sgtm" in capsys.readouterr().out


def test_version(capsys):
    assert output_of(capsys, "--version").strip() == version("sgtm")


def test_help_is_quick():
    """Under half a second of the processor; the clock on the wall also counts what else the machine does."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", "from sgtm.cli import main; main(['--help'])"], check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_data_train_evaluate_export_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--stories", "60", "--tokenizer", "train:300", "--context", "16"]
    output_of(capsys, "data", "synthetic", "--out", "data", *small)
    values = {**TINY, "data": {"path": "data"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    shown = output_of(capsys, "train", "tiny.yaml", "--train.steps", "4", "--method", "sgtm", "--seed", "3")
    assert "written to runs/tiny-sgtm-seed3" in shown
    assert "calibrated" in shown
    resolved = yaml.safe_load((tmp_path / "runs/tiny-sgtm-seed3/config.yaml").read_text())
    assert (resolved["train"]["steps"], resolved["seed"], resolved["train"]["learning_rate"]) == (4, 3, 0.01)
    assert "Partition" in (tmp_path / "runs/tiny-sgtm-seed3/report.html").read_text()
    assert "ablated" in output_of(capsys, "evaluate", "runs/tiny-sgtm-seed3", "--rows", "5")
    assert "differ" in output_of(capsys, "export", "runs/tiny-sgtm-seed3", "--out", "exported")
    assert json.loads((tmp_path / "exported/config.json").read_text())["model_type"] == "gpt_neo"
    output_of(capsys, "plot", "tradeoff", "runs/tiny-sgtm-seed3", "--out", "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_report_and_compare(tmp_path, capsys):
    one, other = (write_run(tmp_path / "runs" / f"sgtm-seed{i}", i, i / 4) for i in (0, 1))
    assert "written to" in output_of(capsys, "report", str(one))
    assert "<!DOCTYPE html>" in (one / "report.html").read_text()
    output_of(capsys, "report", str(one.parent), "--out", str(tmp_path / "sweep.html"))
    assert "2 runs" in (tmp_path / "sweep.html").read_text()
    shown = output_of(capsys, "compare", str(one), str(other), "--out", str(tmp_path / "compared.html"))
    assert "7.750 (+0.250)" in shown
    assert "7.750 (+0.250)" in (tmp_path / "compared.html").read_text()


def test_a_report_that_fails_does_not_fail_the_run(prepared, tmp_path, capsys, monkeypatch):
    def fail(folder):
        raise OSError("no ink")

    monkeypatch.setattr("sgtm.plot.report.write_report", fail)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": {"path": str(prepared)}}))
    shown = output_of(capsys, "train", str(tmp_path / "tiny.yaml"), "--run-dir", str(tmp_path / "run"))
    assert f"no report: no ink; `sgtm report {tmp_path / 'run'}` writes it" in shown
    assert "written to" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "nowhere"], "neither a run"),
        (["compare", "nowhere"], "two different runs"),
        (["trian"], "did you mean 'train'"),
        (["data", "texst"], "did you mean 'data texts'? (commands: data synthetic,"),
        (["--verson"], "no command '--verson'"),
        (["train"], "give the run's configuration first"),
        (["train", "none.yaml"], "none.yaml is no file"),
        (["evaluate", "nowhere"], "holds no finished run"),
        (["export", "nowhere", "--out", "x"], "holds no finished run"),
        (["plot", "tradeoff", "nowhere"], "has no metrics.jsonl"),
        (["data", "tinystories", "--out", "x", "--source", "./none.parquet"], "does not exist"),
        (["data", "synthetic", "--out", "x", "--stories", "1"], "at least two"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal_of(*words)
    assert said.startswith("sgtm: error: ")
    assert message in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal_of("data", "synthetic", "--stories", "20", "--out", str(tmp_path / "file" / "out"))
    assert message.startswith("sgtm: error:")
    assert "Not a directory" in message
    assert "\n" not in message


def test_warnings_are_one_line(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "A cat."}\n')
    (tmp_path / "texts" / "b.txt").write_text("A dog.")
    words = ["data", "texts", "--source", "texts", "--tokenizer", "train:300", "--out", "out"]
    ended = subprocess.run([sys.executable, "-m", "sgtm.cli", *words], cwd=tmp_path, capture_output=True, text=True)
    assert "sgtm: warning: texts: only .jsonl is read, not 1 .txt\n" in ended.stderr
    assert "UserWarning" not in ended.stderr


def test_help_whose_reader_has_gone_ends_without_a_word():
    words = [sys.executable, "-m", "sgtm.cli", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == -signal.SIGPIPE


def test_an_unknown_option_names_the_nearest(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("seed: 1")
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "c.yaml"), "--train.lerning-rate", "1"])
    assert "--train.learning-rate" in capsys.readouterr().err


def test_the_public_names():
    assert len(sgtm.__all__) <= 8
    for name in sgtm.__all__:
        assert getattr(sgtm, name).__doc__ or name == "STRATEGIES"
    assert set(sgtm.__all__) == set(dir(sgtm))
    with pytest.raises(AttributeError, match="it has"):
        sgtm.nothing  # noqa: B018


def test_importing_sgtm_costs_nothing():
    code = "import sys, sgtm; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("words", [["data"], ["data", "-h"], ["data", "--help"]])
def test_a_group_of_commands_lists_them(words, capsys):
    main(words)
    shown = capsys.readouterr().out
    assert "data synthetic" in shown
    assert "data inspect" in shown
    assert not any(line.startswith("  train ") for line in shown.splitlines())
