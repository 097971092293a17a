# Two commands for a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/demo

# Every process of Ray imports PyTorch; without cached bytecode, which this variable prevents, that takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-faults test-cluster test-gpu check docs wheel-test bench bench-gpu setup clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   set up, run the main job on real pictures, write pictures and a page to $(OUT)"
	@echo "make test   set up, run the tests (twelve minutes on two cores)"
	@echo "make test-faults   set up, run the long tests (kills, storage errors, a whole search, audit and tour), and the parity tests with other kernels"
	@echo "make test-cluster  set up, run the tests of several nodes and of submitted jobs"
	@echo "make test-gpu      set up, run the tests of what can only fail on a GPU (skipped where there is none)"
	@echo "make check  set up, run linters, the type checker and the import contracts"
	@echo "make docs   set up, build the site into out/site/ (needs no network); every link is checked"
	@echo "make wheel-test    set up, build the wheel and try it in an empty environment of each installed Python"
	@echo "make bench  set up, run the benchmarks (two hours; wrk for serving), write benchmarks/results/"
	@echo "make bench-gpu   measure training, prediction and serving on a GPU (eight minutes); needs PyTorch, timm and Ray, but no setup:"
	@echo "                 make bench-gpu PYTHON=python3.12 PACKAGES='FOLDER ...' with packages unpacked into folders"

setup: $(VENV)/.installed

# uv needs a tenth of pip's time. If it cannot reach an index (pip may be configured for another), pip installs.
$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock || { \
	  echo "uv could not install the packages; using pip, which takes some minutes"; $(BIN)/python -m pip install --quiet -r requirements.lock; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/striate demo $(OUT)

test: setup
	# Tests that only compute run in one process per core. Tests with Ray wait half of the time on any number of cores:
	# tests/ray shares one Ray in one process, and the files of tests/e2e run one after another in a second process.
	$(BIN)/python -m pytest --numprocesses auto tests/unit tests/k8s tests/e2e/test_every_model.py
	$(BIN)/python -m pytest --numprocesses 2 tests/ray tests/e2e --ignore tests/e2e/test_every_model.py

# Tests that compare evaluation, batch prediction, HTTP and the Open Inference Protocol with the bundle itself.
PARITY := tests/ray/test_parity.py tests/unit/library/bundle/test_bundle.py tests/unit/serve/replica/test_engine.py tests/unit/library/runtimes
SERVED_PARITY := $(addprefix tests/e2e/test_serve_command.py::test_,models_answer_as_their_bundles_do \
  over_http_the_network_sees_the_bundles_own_pixels tritons_client_gets_the_bundles_own_pixels_and_answers)

# Whole jobs whose workers, drivers and storage fail repeatedly, and others that take minutes.
test-faults: setup
	$(BIN)/python -m pytest -m faults tests/ray tests/e2e tests/unit/library/evaluation/inside tests/unit/jobs/inspection
	# Simulates other processors: PyTorch's kernels for an old one, and for one without AVX-512. ONNX Runtime has no such
	# setting, and torch.compile's cache does not distinguish them.
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest -k "not onnx and not compile" $(PARITY) $(SERVED_PARITY)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -k "not onnx and not compile" $(PARITY)

# Clusters of several nodes and a head with jobs on this machine; takes some minutes.
test-cluster: setup
	$(BIN)/python -m pytest -m cluster tests/e2e

# Streams, pinned memory, mixed precision, compiled steps, memory that runs out, and whole commands on a GPU. Each
# test's body can be tried out without one: python -m pytest -m gpu tests/gpu --device cpu
test-gpu: setup
	$(BIN)/python -m pytest -m gpu -rs tests/gpu

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project pyproject.toml
	$(BIN)/lint-imports
	$(BIN)/python .ci/house

# The guides, the catalogues of steps and models, the API of library/ and the decisions, in out/site/index.html.
docs: setup
	$(BIN)/mkdocs build --strict

# Tests `pip install striate`, the base installation without extras.
wheel-test: setup
	.ci/wheel_test

bench: setup
	# Daft pins an older pyarrow, so it gets its own environment.
	test -x out/daft/bin/python || $(PYTHON) -m venv out/daft
	out/daft/bin/python -m pip install --quiet --disable-pip-version-check daft
	# So do the other servers, which find this environment's PyTorch after their own packages.
	test -x out/peers/bin/python || $(PYTHON) -m venv out/peers
	out/peers/bin/python -m pip install --quiet --disable-pip-version-check litserve bentoml
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  "$$(out/peers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/zz-striate.pth"
	$(BIN)/python benchmarks/filter/filter_throughput.py
	$(BIN)/python benchmarks/train/train_throughput.py
	$(BIN)/python benchmarks/train/cached_features.py
	$(BIN)/python benchmarks/serve/predict_throughput.py
	$(BIN)/python benchmarks/serve/serve_throughput.py
	$(BIN)/python benchmarks/scale/scale.py
	$(BIN)/python benchmarks/filter/decode_worst_case.py

# On a bare machine: nothing is installed, and no network is needed. PACKAGES are folders of unpacked packages.
bench-gpu:
	$(PYTHON) -m benchmarks.gpu.gpu_suite $(if $(PACKAGES),--packages $(PACKAGES))

clean:
	rm -rf $(VENV) out .pytest_cache .ruff_cache
