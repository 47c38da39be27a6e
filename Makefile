# `make demo` and `make test` set up what they need. `make help` lists the rest.
PYTHON ?= python3.11
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.qmri-setup
BUNDLES := $(notdir $(patsubst %/,%,$(wildcard bundles/*/)))
BUNDLE ?= $(BUNDLES)
# Scripts that know which bundles are ready are told of one only where it was asked for.
ONE = $(if $(filter-out file,$(origin BUNDLE)),--bundle $(BUNDLE))

# uv does not read pip's configuration. A CPU wheel of torch that pip's find-links offers spares several GB of CUDA;
# where there is none, uv asks the machine which build of torch suits it.
ifndef UV_FIND_LINKS
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
endif
endif
ifndef UV_FIND_LINKS
export UV_TORCH_BACKEND ?= auto
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-dist test-numpy1 test-mlflow test-batch test-exports test-nodes test-federated test-label label lint benchmark export docs test-docs documents dist check clean

help: ## list the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: $(STAMP) ## virtual environment with all that the repository needs, once

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there: install Python 3.11, or name where it is: make PYTHON=/path/python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) uv
	$(BIN)/uv pip install --python $(BIN)/python -c $(CONSTRAINTS) -e ".[dev]"
	@touch $@

demo: $(STAMP) ## every bundle that is ready, or BUNDLE=name, on simulated scans of real anatomy
	$(BIN)/python scripts/demo.py $(ONE)

# One thread a process: small convolutions on two busy cores are many times slower with two.
test: $(STAMP) ## the tests, in parallel
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadgroup $(ARGS)

# numpy 1.26 is what MONAI Label runs with.
test-numpy1: build/constraints-numpy1.txt ## the tests on numpy 1.26, in .venv-numpy1
	$(MAKE) test VENV=.venv-numpy1 CONSTRAINTS=$<

build/constraints-numpy1.txt: constraints.txt constraints-numpy1.txt
	@mkdir -p $(@D)
	@awk -F== 'NR == FNR { pin[$$1] = $$0; next } { print ($$1 in pin) ? pin[$$1] : $$0 }' constraints-numpy1.txt constraints.txt > $@

test-dist: $(STAMP) ## each zip in a new environment with nothing but what its metadata.json lists
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -m dist tests/bundles/test_dist.py $(ARGS)

test-mlflow: $(STAMP) ## trainings and models with a real MLflow server, over sqlite and PostgreSQL (if it is installed)
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e ".[postgres]"
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -m mlflow $(ARGS)

test-batch: $(STAMP) ## fifty subjects of rim_relaxometry, twelve of the others, through batch.json, killed and started again
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -m batch $(ARGS)

test-exports: $(STAMP) ## ONNX of the networks whose exporter takes a minute, and by MONAI
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -m exports $(ARGS)

test-nodes: $(STAMP) ## a training on two nodes, as torchrun runs it on two machines
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -m nodes $(ARGS)

test-federated: $(STAMP) ## federated training of two sites in NVFlare's simulator
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e ".[federated]"
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -m federated tests/scripts/test_federated.py $(ARGS)

test-label: $(STAMP) ## every bundle in a real MONAI Label server, in .venv-label
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -s -m label tests/scripts/test_monai_label.py $(ARGS)

label: $(STAMP) ## MONAI Label server with all bundles on STUDIES=folder, at http://127.0.0.1:8000
	@test -d "$(STUDIES)" || { echo "name a folder of NIfTI images: make label STUDIES=..."; exit 1; }
	$(MAKE) dist
	$(BIN)/python scripts/monai_label.py setup
	$(BIN)/python scripts/monai_label.py app dist/*.zip
	$(BIN)/python scripts/monai_label.py start "$(STUDIES)" $(ARGS)

lint: $(STAMP) ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(STAMP) ## speed of physics, classical methods and networks of every bundle, or of BUNDLE=name
	$(BIN)/python scripts/benchmark.py $(ONE) $(ARGS)

# The tables say which commit they are of: run it where all is committed.
export: $(STAMP) ## TorchScript and ONNX of every bundle, or of BUNDLE=name, in build/exports, and the tables in docs/results
	@for bundle in $(BUNDLE); do OMP_NUM_THREADS=1 $(BIN)/python -m monai.bundle run \
		--config_file bundles/$$bundle/configs/export.json --bundle_root bundles/$$bundle \
		--output_dir build/exports/$$bundle --table bundles/$$bundle/docs/results/exports || exit 1; done

documents: $(STAMP) ## picture of the README, model cards and metadata, from the results there are
	$(BIN)/python scripts/demo.py --output build/demo --picture docs/overview.png
	$(BIN)/python scripts/write_docs.py

docs: $(STAMP) ## the documentation site, build/site/index.html; warnings are errors
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -d build/site-cache docs/site build/site
	$(BIN)/python scripts/check_site.py build/site
	@echo "build/site/index.html"

test-docs: $(STAMP) ## the documentation site is built, its links checked, its walk-through walked
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -m docs tests/scripts/test_docs_site.py $(ARGS)

check: $(STAMP) ## check every bundle, or BUNDLE=name
	@for bundle in $(BUNDLE); do OMP_NUM_THREADS=1 $(BIN)/python scripts/check_bundle.py bundles/$$bundle || exit 1; done

dist: $(STAMP) ## dist/NAME_vX.Y.Z.zip of every bundle, or of BUNDLE=name, with model_info.json; SOURCE=address of the release
	OMP_NUM_THREADS=1 $(BIN)/python scripts/pack_bundle.py $(BUNDLE) $(if $(SOURCE),--source $(SOURCE))

clean: ## remove what make, tests and linters leave, not the virtual environment
	rm -rf build dist docs/site/bundles docs/site/reference docs/site/gallery *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find physics shared_transforms bundles scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
