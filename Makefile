# Every target installs what it needs into .venv first, in the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: demo test check fix bench bench-gpu bench-scale samples zoo clean

demo: $(INSTALLED)  ## train ten networks on handwritten digits, pack, prove, evaluate, time
	@$(RUN) sh samples/digits/demo.sh

test: $(INSTALLED)  ## one process a core, each with one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

fix: $(INSTALLED)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(INSTALLED)  ## write docs/benchmarks.md: the standard set, on a machine that does nothing else; takes hours
	$(BIN)/python samples/benchmarks/run.py

bench-gpu: $(INSTALLED)  ## its part on CUDA, half an hour; where the layers were timed first, a table for the packer too
	@$(RUN) sh samples/benchmarks/gpu.sh

bench-scale: $(INSTALLED)  ## write docs/scale.md: time and memory of packing up to 30 GB; alone, with 40 GB of disk
	$(BIN)/python samples/scale/measure.py

samples: demo
	@$(RUN) sh samples/tutorial/run.sh

zoo: $(INSTALLED)  ## write docs/coverage.md: timm, torchvision and transformers, a network a family; takes hours
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[zoo]"
	$(BIN)/python -m tests.zoo.run

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	rm -rf samples/*/ckpts samples/*/*.onnx samples/*/*.onnx.data samples/*/*.ts samples/*/*.pt2 samples/*/*.safetensors samples/*/*.whl
	rm -rf samples/digits/*.npz samples/digits/*.svg samples/ci/out samples/benchmarks/benchmarks* samples/scale/scale.* samples/scale/work
	rm -rf samples/*/pkg samples/mlflow/store samples/ray_scoring/table samples/ray_scoring/scored samples/signing/keys samples/signing/*.sig
	find ensexport tests samples -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
