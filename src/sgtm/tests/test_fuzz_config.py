"""Configurations that nobody should write: each is built, and can be written and read again, or refused."""

from dataclasses import asdict

import pytest
import yaml
from hypothesis import strategies as st

from sgtm.config import ConfigError, RunConfig, build, dotted_keys, dump, load, read_json, read_yaml, with_settings
from sgtm.tests.fuzzing import amount, fuzz, near, plain_values, taken_or_refused, with_another
from sgtm.train.sweep import points_of, read_sweep

RUN = {
    "data": {"path": "data", "parts": {"retain": "en", "forget": "es"}},
    "model": {"config": {"model_type": "gpt_neo", "hidden_size": 32, "attention_types": [[["global"], 2]]}},
    "method": "sgtm",
    "partition": {"domains": {"biology": {"heads": 1, "neurons": 8}}, "layers": [0, 1], "joint": ["norms"]},
    "labels": {"tpr": 0.9, "fpr": 0.1, "depends_on": "length", "strength": 2.0},
    "train": {"steps": 10, "warmup_steps": 1, "learning_rate": "5e-4", "arguments": {"report_to": "none"}},
    "evaluate": {"rows": 5},
    "seed": 3,
}
SWEEP = {
    "base": "run.yaml",
    "out": "runs",
    "seeds": [0, 1],
    "settings": {"labels.tpr": 0.5},
    "grid": {"train.steps": [5, 10], "model.config.hidden_size": [16]},
    "runs": {"a": {"method": "none"}, "b": {"method": "sgtm", "train.forget_lr_scale": 0.5}},
}


def write_again(folder, config: RunConfig) -> None:
    dump(config, folder / "again.yaml")
    assert repr(load(folder / "again.yaml")) == repr(config)


@amount(150, 5000)
def test_files_near_to_a_configuration(examples, tmp_path):
    def check(content: bytes) -> None:
        (tmp_path / "run.yaml").write_bytes(content)
        config = taken_or_refused(lambda: load(tmp_path / "run.yaml"))
        if config is not None:
            write_again(tmp_path, config)

    fuzz(examples, check, near(yaml.safe_dump(RUN).encode()))


@amount(150, 5000)
def test_values_of_any_kind_at_any_place(examples, tmp_path):
    def check(values: object) -> None:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
        config = taken_or_refused(lambda: load(tmp_path / "run.yaml"))
        if config is not None:
            write_again(tmp_path, config)

    fuzz(examples, check, with_another(RUN, plain_values()))


@amount(60, 4000)
def test_settings_by_dotted_key(examples):
    keys = st.one_of(st.sampled_from(sorted(dotted_keys())), st.text(max_size=8), st.integers())
    values = asdict(build(RunConfig, RUN, "x"))

    def check(settings: dict[object, object]) -> None:
        taken_or_refused(lambda: build(RunConfig, with_settings(values, settings, "x"), "x"))

    fuzz(examples, check, st.dictionaries(keys, plain_values(), max_size=3))


@amount(40, 3000)
def test_sweeps(examples, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))

    def check(values: object) -> None:
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))

        def points() -> int:
            sweep = read_sweep(tmp_path / "sweep.yaml")
            found = points_of(sweep, sweep.common, tmp_path / "runs", sweep.config.seeds)
            assert len({point.folder for point in found}) == len(found)
            return len(found)

        taken_or_refused(points)

    fuzz(examples, check, with_another(SWEEP, plain_values()))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"seed: 1\nseed: 2", "'seed' stands twice"),
        (b"train: {steps: 5, steps: 6}", "'steps' stands twice"),
        (b"seed: \xff", "utf-8"),
        (b"[" * 5000, "nested too deeply"),
        (b"model: {config: &a {x: *a}}", "more than 50 within one another"),
        (
            b"a: &a [1]\n"
            + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(9)),
            "more than 200,000 values",
        ),
        (b"a: !!timestamp x", "a tag that does not fit"),
        (b"a: 2024-13-45", "month must be in"),
        (b'data: {path: "\\ud800"}', "no text"),
        (b"!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_what_yaml_alone_would_take_or_choke_on(content, reason, tmp_path):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as refused:
        read_yaml(tmp_path / "run.yaml")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not valid JSON"), (b'{"a": 1, "a": 2}', "'a' stands twice"), (b"[1]", "is not of type dict")],
)
def test_json_files(content, reason, tmp_path):
    (tmp_path / "about.json").write_bytes(content)
    with pytest.raises(ConfigError, match=f"{reason}.*; write it anew"):
        read_json(tmp_path / "about.json", "write it anew")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"learning_rate": float("nan")}}, "no finite number"),
        ({"train": {"beta2": 1.0}}, "less than 1"),
        ({"train": {"weight_decay": -0.1}}, "not be negative"),
        ({"seed": -1}, "use 0 to"),
        ({"evaluate": {"topics": 2**70}}, "64 bits"),
        ({"data": {"parts": {"retain": 5}}}, "parts: retain=5 must be of type str"),
        ({"partition": {"domains": {True: {"heads": 1}}}}, "must be of type str"),
        ({"partition": {"heads": -1}}, "not be negative"),
    ],
)
def test_numbers_and_names_that_no_run_can_have(values, message):
    with pytest.raises(ConfigError, match=message):
        build(RunConfig, values, "x.yaml")
