# make setup | demo | test | lint | bench. Needs python3 (3.10 or newer) and make; uses uv where there is one.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)

.PHONY: setup demo test lint format bench docs

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt requirements-dev.txt requirements-export.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than Python 3.10; try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
ifeq ($(UV),uv)
	test -x $(RUN) || uv venv --seed --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV)
	uv pip install --compile-bytecode --python $(RUN) -r requirements-dev.txt
else
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -r requirements-dev.txt
endif
	@touch $@

demo: setup
	@folder=runs/demo-$$(date +%Y%m%d-%H%M%S) && \
	$(RUN) train.py configs/demo.yaml run.dir=$$folder && \
	$(RUN) evaluate.py $$folder --output $$folder/val.json && \
	echo "look: $(VENV)/bin/tensorboard --logdir runs   (then open http://localhost:6006)"

test: setup
	$(RUN) -m pytest -n auto --dist loadgroup

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Speed, memory and reliability as in docs/benchmarks.md; about an hour on two cores.
bench: setup
	$(RUN) -m benchmarks.losses
	$(RUN) -m benchmarks.losses --loss alrp --loop-limit 0
	$(RUN) -m benchmarks.losses --loss rank_sort --loop-limit 0
	$(RUN) -m benchmarks.matcher
	$(RUN) -m benchmarks.accumulation
	$(RUN) -m benchmarks.training
	$(RUN) -m benchmarks.evaluation
	$(RUN) -m benchmarks.faults
	$(RUN) -m benchmarks.data
	$(RUN) -m benchmarks.million_boxes

docs: setup
	$(RUN) -m detector.config.reference
	$(RUN) -m docs.draw_ap_loss
