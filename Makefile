# The two commands: `make demo` draws with the bundled model, `make test` runs every check.
#
# Variables, e.g. `make demo TORCH=torch==2.13.0 PYTHON=python3.12`:
#   PYTHON    the interpreter .venv is made of, 3.11 or later
#   TORCH     a pip requirement for PyTorch, to keep a version or a build of your own; empty: the newest tested one
#   PIP_ARGS  further arguments of pip install, e.g. an index of CPU wheels (the tests need torchvision of the same build, the demo does not)
#   JOBS      tests run at the same time, one thread each
PYTHON ?= python3
TORCH ?=
PIP_ARGS ?=
JOBS ?= 2

VENV := .venv
PIP = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS) $(if $(TORCH),'$(TORCH)')

# No network, no telemetry, no windows: for what make runs, not for the library.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export GRADIO_ANALYTICS_ENABLED := False
export MPLBACKEND := Agg
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test clean

demo: $(VENV)/installed-core
	@$(VENV)/bin/lw demo
	@echo 'where lw is $(VENV)/bin/lw, or just lw after: source $(VENV)/bin/activate'

test: $(VENV)/installed-dev
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS)

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, $(PYTHON) is older or missing: give another one, e.g. make demo PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# Stamps lie inside .venv, so they go when it goes. Everything includes the core, so a demo after the tests installs nothing.
$(VENV)/installed-core: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing latentworks into $(VENV): PyTorch is large, so this takes minutes, once"
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing latentworks with every extra into $(VENV): minutes, once"
	@$(PIP) --editable '.[dev]'
	@$(VENV)/bin/python -c 'import torchvision' 2>/dev/null || \
		{ echo "torchvision does not work with this PyTorch, one of them is a CPU build: take both from one index by PIP_ARGS"; exit 1; }
	@touch $@ $(VENV)/installed-core
