# make serve   install if need be, then serve on http://127.0.0.1:8787 (ARGS="--model ..." for more)
# make test    run the tests (ARGS="-k name" for some of them; BASELOAD_LONG=1 for the long ones too)
# make check   lint, format, types, layout
# make native  compile the C++ again after a change
# make bench   measure a running server (ARGS="--url ... --model ...")

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The checkout must not stand on sys.path: transformers would import our kernels/ as its optional package of that name.
export PYTHONSAFEPATH = 1

.PHONY: serve test check bench clean

serve: $(VENV)/.installed .dev/baseload
	$(BIN)/baseload serve $(ARGS)

test: $(VENV)/.installed-dev .dev/baseload
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev .dev/baseload
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest tests/project/test_layout.py

bench: $(VENV)/.installed .dev/baseload
	$(BIN)/baseload bench serving $(ARGS)

clean:
	rm -rf $(VENV) .dev build *.egg-info

# A CPU needs no torch. Where it is wanted it comes first and by itself, so that no other package's wishes choose a larger build.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
GPU = $(shell command -v nvidia-smi)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Baseload needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(GPU),$(PIP) torch)
	$(PIP) -e $(if $(GPU),'.[gpu]',.)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) torch
	$(PIP) -e '.[dev]'
	touch $@

# The native library, when its sources have changed: `make native`.
.PHONY: native
native: $(VENV)/.installed-dev .dev/baseload
	$(BIN)/python -m baseload.kernels.cpu.compile

# Pyright cannot see the package through an editable install; this link shows it to pyright.
.dev/baseload:
	mkdir -p .dev
	ln -sfn .. $@
