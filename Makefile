# make demo       draw the embedded data set, convert, train SimCLR without and with EquiMod, evaluate, compare both
# make docs       build the pages of docs/ into docs/_build
# make gpu-check  pack what a GPU machine without a network needs into gpu-check/, and say what to run there
# make test       ruff, the type checker, the tests; `make test EXTRAS=dev,dali,ffcv,imagenet,kornia,timm,onnx,neighbours,robustness` with every loader
# make test-fast  the same with tests/unit/ alone, whose tests start no process
# make test-all   the same with the tests marked `ci` as well: what CI runs
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
PACK ?= gpu-check
EXTRAS ?= dev
FOLDERS := $(patsubst %/__init__.py,%,$(wildcard */__init__.py))

.PHONY: demo docs test test-fast test-all lint typecheck gpu-check
.DELETE_ON_ERROR:

# `python -m venv` leaves the folder behind when it fails, hence the stamp as target.
.venv/installed: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]'
	touch $@

# Images and records are made once; both runs are made anew each time. On the CPU, so that they are the same anywhere.
SPLITS := train test
DEMO_TRAIN = $(BIN)/equimod train --method simclr --dataset shapes --data $(DEMO)/records/train --val $(DEMO)/records/test \
    --system.device cpu --overwrite
demo: $(SPLITS:%=$(DEMO)/records/%/manifest.json) $(SPLITS:%=$(DEMO)/records/%-factors.csv)
	$(DEMO_TRAIN) --output $(DEMO)/simclr
	$(DEMO_TRAIN) --equimod --output $(DEMO)/simclr-equimod
	$(BIN)/equimod evaluate $(DEMO)/simclr --linear-cached --knn --factors
	$(BIN)/equimod evaluate $(DEMO)/simclr-equimod --linear-cached --knn --equivariance --factors --figures
	$(BIN)/equimod compare $(DEMO)/simclr $(DEMO)/simclr-equimod --output $(DEMO)/comparison.png
	@echo "Look at $(DEMO)/comparison.png, and at $(DEMO)/simclr-equimod/figures/views.png; docs/quickstart.md says more."

$(DEMO)/images/train: | .venv/installed
	$(BIN)/python tools/draw_shapes.py $@ --split train --samples 10000

$(DEMO)/images/test: | .venv/installed
	$(BIN)/python tools/draw_shapes.py $@ --split test --samples 2000

$(DEMO)/records/%/manifest.json: | $(DEMO)/images/%
	$(BIN)/python tools/convert_imagenet.py $(DEMO)/images/$* $(DEMO)/records/$* --format dali

$(DEMO)/records/%-factors.csv: | $(DEMO)/images/%
	mkdir -p $(@D)
	cp $(DEMO)/images/$*/factors.csv $@

.SECONDARY:

docs: .venv/installed
	$(BIN)/python -c 'import furo, myst_parser, sphinx' 2>/dev/null || $(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build

gpu-check: | .venv/installed
	$(BIN)/python tools/pack_gpu_check.py $(PACK)
	@echo "There: sh $(PACK)/run.sh --output gpu.json; back here, store gpu.json and gpu.png in benchmarks/results/."

test-fast: TESTS := tests/unit -m 'not ci'
test: TESTS := -m 'not ci'
test-all: TESTS :=
test test-fast test-all: lint typecheck
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal $(TESTS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows no mapping of package_dir, nor the import hook of an editable install: it needs a folder `equimod`.
typecheck: .venv/installed
	mkdir -p .typecheck/equimod
	for folder in $(FOLDERS); do ln -sfn ../../$$folder .typecheck/equimod/$$folder; done
	$(BIN)/mypy
