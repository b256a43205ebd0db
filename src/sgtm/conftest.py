"""Small prepared data for all rooms' tests."""

import os
from pathlib import Path

import pytest

# These models are so small that threads only wait for each other: many times slower where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tiny configurations make transformers wonder.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from sgtm.config import DataConfig, PrepareConfig


@pytest.fixture(scope="session")
def sentences() -> list[tuple[str, str]]:
    """Parallel (English, Spanish) lines of many lengths, all different."""
    things = ["cat", "dog", "bird", "tree", "house", "river", "stone", "star"]
    cosas = ["gato", "perro", "pájaro", "árbol", "casa", "río", "piedra", "estrella"]
    return [
        (
            f"The {things[i % 8]} saw {i} {things[i * 3 % 8]}s" + " and ran" * (i % 5) + ".",
            f"Él {cosas[i % 8]} vio {i} {cosas[i * 3 % 8]}s" + " y corrió" * (i % 5) + ".",
        )
        for i in range(600)
    ]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    """A folder of packed rows of 16 tokens, retain (English) and forget (Spanish)."""
    from sgtm.data.tokenize import Document, prepare

    def documents():
        for english, spanish in sentences:
            yield Document(english, "retain", english)
            yield Document(english, "forget", spanish)

    out = tmp_path_factory.mktemp("prepared") / "data"
    return prepare(documents, PrepareConfig(out, "train:300", 16, pack=True, test_fraction=0.1), {"source": "test"})


@pytest.fixture(scope="session")
def data(prepared: Path):
    from sgtm.data.mixture import PreparedData

    return PreparedData.load(DataConfig(str(prepared)))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real data, which is no part of the project: SGTM_TEST_DATA, by default ../shared/data."""
    path = Path(os.environ.get("SGTM_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no test data at {path} (SGTM_TEST_DATA names its folder)")
    return path
