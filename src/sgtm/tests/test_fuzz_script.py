"""``scripts/fuzz.py``, whose fuzzer no test needs: its targets take some inputs."""

import runpy
import sys
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import pytest

from sgtm.config import ConfigError

CONTENTS = [b"", b"\xff\0", b"seed: 1\n", b'{"step": 1}\n', b"Q2,2,b, c,enwiki,STEM,0.1\n", b"the cat,  sat\n\n12"]


@pytest.mark.parametrize("name", ["config", "records", "seal", "topics", "ids", "spans"])
def test_a_target_takes_what_it_is_given(name, request, monkeypatch):
    monkeypatch.setitem(sys.modules, "atheris", SimpleNamespace(instrument_imports=lambda include: nullcontext()))
    targets = runpy.run_path(str(request.config.rootpath / "scripts" / "fuzz.py"))["TARGETS"]
    assert name in targets
    for content in CONTENTS:
        with suppress(ConfigError):
            targets[name](content)
