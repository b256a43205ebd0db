# make demo and make test are all that a newcomer needs; both set up .venv first.
# SGTM_PYTHON=/path/to/python uses an environment that you have, as it is.
.PHONY: setup demo test test-all test-gpu check bench docs clean

VENV := .venv
# Pinned: where a CPU build is on offer, an unpinned torch would pull gigabytes of CUDA instead.
TORCH ?= torch==2.13.0
EXTRAS ?= data,plot,dev

ifdef SGTM_PYTHON
PY := $(SGTM_PYTHON)
STAMP :=
else
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
endif

setup: $(STAMP)

$(VENV)/.installed: pyproject.toml
	@test -x $(VENV)/bin/python || for python in python3.13 python3.12 python3.11 python3; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$python"; $$python -m venv $(VENV) && break; fi; done
	@test -x $(VENV)/bin/python || { echo "Python 3.11 or newer is needed, with its venv module"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip
	$(PY) -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $@

demo: setup
	$(PY) -m sgtm.cli demo

test: setup
	$(PY) -m pytest -q -n auto -m "not slow" src

test-all: setup
	$(PY) -m pytest -q -n auto src

# On a machine with a GPU: what only one computes, and the laws on it.
test-gpu: setup
	$(PY) -m pytest -q -n 8 src/sgtm/model/tests/test_cuda.py src/sgtm/train/tests/test_cuda.py
	SGTM_TEST_DEVICE=cuda $(PY) -m pytest -q -n auto src/sgtm/model/tests/test_laws.py

check: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: setup
	$(PY) benchmarks/step.py
	$(PY) benchmarks/evaluate.py
	$(PY) benchmarks/data.py
	$(PY) benchmarks/scaling.py

docs: setup
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS),docs]"
	$(PY) -m sphinx -q -W -b html docs docs/_build/html
	@echo "written to docs/_build/html/index.html"

# Not runs/, which may be days of training.
clean:
	rm -rf $(VENV) docs/_build
