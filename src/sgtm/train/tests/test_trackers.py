"""Loggers see what metrics.jsonl holds, under its names; one that fails goes silent; secrets are written nowhere."""

from pathlib import Path

import pytest
import yaml
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from sgtm.cli import main
from sgtm.config import ConfigError, RunConfig, build, redacted
from sgtm.records import read_records
from sgtm.train.run import train
from sgtm.train.tests.test_run import TINY, config_of

HF, ANTHROPIC, WANDB = "hf_" + "Abc123" * 5, "sk-ant-" + "x1y2z3" * 5, "0123456789abcdef" * 2
URL = f"https://me:{WANDB}@hub.test/data"


class StandIn(TrainerCallback):
    """A logger that keeps what it is told, and fails from the second log on if so asked."""

    told: list[tuple[int, dict[str, float]]]
    fails = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.fails and self.told:
            raise OSError(f"no network to {URL}")
        self.told.append((state.global_step, integration_utils.rewrite_logs(dict(logs))))


@pytest.fixture
def logger(monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.disable_tqdm", True, raising=False)
    StandIn.told, StandIn.fails = [], False
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", StandIn)
    return StandIn


def test_loggers_see_the_losses_under_the_names_of_the_records(prepared, tmp_path, logger):
    config = config_of(prepared, train__arguments={"report_to": "wandb"}, evaluate__every=2, train__log_every=2)
    train(config, tmp_path / "run")
    records = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["split"] == "test"]
    expected = {(r["step"], f"test/{r['category']}/{r['variant']}", r["loss"]) for r in records}
    told = {(step, name, value) for step, logs in logger.told for name, value in logs.items() if name[:5] == "test/"}
    assert told == expected
    assert {name for _, name, _ in told} > {"test/forget/ablated", "test/retain/intact", "test/forget/calibrated"}
    trained = [r["step"] for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["split"] == "train"]
    assert trained == [step for step, logs in logger.told if "train/loss" in logs] != []


def test_a_logger_that_fails_does_not_end_the_run(prepared, tmp_path, logger, capsys):
    logger.fails = True
    run = train(config_of(prepared, train__arguments={"report_to": ["wandb"]}, evaluate__every=2), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("StandIn has failed and is left out: no network") == 1
    assert WANDB not in said
    assert len(logger.told) == 1
    assert run.losses


def test_a_logger_that_is_not_installed_is_named_before_anything_is_written(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_clearml_available", lambda: False)
    with pytest.raises(ConfigError, match=r"report_to=.*clearml.*leave it out"):
        train(config_of(prepared, train__arguments={"report_to": "clearml"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard(prepared, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    train(config_of(prepared, train__arguments={"report_to": "tensorboard"}), tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert {"test/forget/ablated", "test/retain/calibrated", "train/loss"} <= set(board.Tags()["scalars"])
    last = {(r["category"], r["variant"]): r for r in read_records(tmp_path / "run" / "metrics.jsonl")}
    (event,) = board.Scalars("test/forget/ablated")
    assert (event.step, event.value) == pytest.approx(
        (last["forget", "ablated"]["step"], last["forget", "ablated"]["loss"])
    )


# ---- Secrets


def everything_in(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_tokens_of_the_environment_are_written_nowhere(prepared, tmp_path, monkeypatch, capfd):
    for name, value in (("HF_TOKEN", HF), ("ANTHROPIC_API_KEY", ANTHROPIC), ("WANDB_API_KEY", WANDB)):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**TINY, "data": {"path": str(prepared)}}))
    main(["train", "run.yaml", "--run-dir", "run", "--train.steps", "4", "--train.save-every", "2"])
    main(["export", "run", "--out", "out"])
    main(["env"])
    shown = "".join(capfd.readouterr())
    for secret in (HF, ANTHROPIC, WANDB):
        assert secret not in shown
        assert secret.encode() not in everything_in(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"data": {"path": URL}},
        {"data": {"parts": {"retain": URL}}},
        {"model": {"from_pretrained": URL}},
        {"model": {"config": {"name": HF}}},
        {"train": {"arguments": {"hub_token": HF}}},
        {"train": {"arguments": {"report_to": "none", "run_name": f"a {ANTHROPIC}"}}},
    ],
)
def test_a_configuration_with_a_secret_is_refused_without_showing_it(values):
    with pytest.raises(ConfigError, match="holds a password or a token") as refused:
        build(RunConfig, values, "x.yaml")
    assert not any(secret in str(refused.value) for secret in (HF, ANTHROPIC, WANDB))


def test_errors_do_not_show_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    for words in (
        ["data", "texts", "--source", URL, "--out", str(tmp_path / "x")],
        ["evaluate", f"{tmp_path}/{WANDB}"],
    ):
        with pytest.raises(SystemExit) as refused:
            main(words)
        assert str(refused.value).startswith("sgtm: error: ")
        assert WANDB not in str(refused.value)
    assert redacted(f"see {URL} and {HF}") == "see https://***@hub.test/data and ***"
    assert (
        redacted("https://hub.test:443/a and hf_transfer, sk-learn")
        == "https://hub.test:443/a and hf_transfer, sk-learn"
    )


def test_the_source_of_data_bears_no_secret(tmp_path):
    from sgtm.config import PrepareConfig
    from sgtm.data.tokenize import prepare

    with pytest.raises(ConfigError, match="the source holds a password"):
        prepare(lambda: iter(()), PrepareConfig(tmp_path / "out", "train:300"), {"source": URL})
    assert not list(tmp_path.iterdir())
