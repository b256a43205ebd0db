"""What is uploaded to the Hub, and what its model card says."""

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError

from sgtm.cli import main
from sgtm.train.run import train
from sgtm.train.tests.test_run import config_of


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments.disable_tqdm", True, raising=False)


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the Hub: repository -> whether it is private, and file name -> bytes."""
    found: dict = {}

    def create(self, repository, *, private, exist_ok):
        if repository.count("/") != 1:
            raise HFValidationError("not a repository's name")
        assert exist_ok
        found[repository] = (private, {})
        return f"https://hub.test/{repository}"

    def upload(self, *, repo_id, folder_path, commit_message):
        files = [p for p in folder_path.rglob("*") if p.is_file()]
        found[repo_id][1].update({p.relative_to(folder_path).as_posix(): p.read_bytes() for p in files})

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    return found


def test_a_run_an_export_and_a_module(prepared, tmp_path, hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run = train(config_of(prepared), tmp_path / "run")
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    main(["export", str(tmp_path / "run"), "--module", "forget", "--out", str(tmp_path / "forget.safetensors")])
    main(["push", str(tmp_path / "run"), "me/run"])
    main(["push", str(tmp_path / "out"), "me/out", "--private"])
    main(["push", str(tmp_path / "forget.safetensors"), "me/module"])
    assert "uploaded to https://hub.test/me/module" in capsys.readouterr().out
    assert [private for private, _ in hub.values()] == [False, True, False]
    files = {name: uploaded for name, (_, uploaded) in hub.items()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "config.yaml", "metrics.jsonl"} <= files[
        "me/run"
    ].keys()
    assert not any("checkpoint" in name for name in files["me/run"])
    card = files["me/run"]["README.md"].decode()
    assert "Nothing is removed from this model" in card
    assert f"{run.losses['forget', 'calibrated'].mean:.3f}" in card
    assert "without forget" in files["me/out"]["README.md"].decode()
    assert "The units of forget" in files["me/module"]["README.md"].decode()
    assert all(b"hf_secret" not in content for uploaded in files.values() for content in uploaded.values())


def test_a_method_without_forget_units_says_so(prepared, tmp_path, hub):
    train(config_of(prepared, method="filter"), tmp_path / "run")
    main(["push", str(tmp_path / "run"), "me/run"])
    assert "no forget units (method `filter`)" in hub["me/run"][1]["README.md"].decode()


def test_mistakes_are_one_line(tmp_path, hub):
    with pytest.raises(SystemExit, match="no finished run, no checkpoint and no module"):
        main(["push", str(tmp_path), "me/run"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"the Hub refuses .* give OWNER/NAME"):
        main(["push", str(tmp_path), "nobody"])
    (tmp_path / "x.safetensors").write_text("no")
    with pytest.raises(SystemExit, match="is no safetensors file"):
        main(["push", str(tmp_path / "x.safetensors"), "me/run"])
    assert not hub
