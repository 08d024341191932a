# Every target installs what it needs into .venv first, in the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: demo test check fix bench samples zoo clean

demo: $(INSTALLED)  ## train ten networks on handwritten digits, pack, prove, evaluate, time
	@$(RUN) sh samples/digits/demo.sh

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

fix: $(INSTALLED)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(INSTALLED)  ## the numbers of docs/bench.md: a minute each, on a machine that does nothing else
	@$(RUN) sh samples/tutorial/bench.sh

samples: demo
	@$(RUN) sh samples/tutorial/run.sh

zoo: $(INSTALLED)  ## write docs/coverage.md: timm, torchvision and transformers, a network a family; takes hours
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[zoo]"
	$(BIN)/python -m tests.zoo.run

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	rm -rf samples/*/ckpts samples/*/*.onnx samples/*/*.onnx.data samples/*/*.ts samples/*/*.pt2 samples/*/*.whl
	find ensexport tests samples -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
