# make demo      one complete run on a small model, into out/demo
# make test      the test suite
# make slow      tests that take minutes each: killed runs, full disks, the code in the documentation, the examples
# make clients   tests against other runtimes (tflite-micro, Vela, Ray, LiteRT.js, Kotlin ...), which it installs into .venv
# make lint      ruff and mypy
# make docs      the documentation site, into out/site; it needs no network once its packages are installed
# make smallest  a test of four small architectures of keras.applications, end to end; minutes
# make families  fifteen architectures of keras.applications, end to end, compared with stock tfmot; hours
# make bench     side-by-side timings

# PYTHON=/path/to/python3.x chooses the Python of .venv; by default it is the newest one here that tfq supports.
PYTHON ?=
BIN := .venv/bin
# Container images often set this. Then every process compiles tfq again, and every pytest worker all tests.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# One thread for each worker: more would wait for each other, because there is a worker for each core.
ONE_THREAD := TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1

.PHONY: demo test slow clients lint docs bench families smallest arm clean

demo: .venv/.installed
	@$(BIN)/python -m tfq.backends.qemu.sysroot || echo "ARM emulation is not available here: the report says 'not run' for it" >&2
	@$(BIN)/python -m tfq.backends.gpu.vulkan > /dev/null || echo "SwiftShader is not available here: the report has no GPU" >&2
	@$(BIN)/tfq run --config=pipelines/configs/demo.json

test: .venv/.installed
	@$(ONE_THREAD) $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

# By default, pytest-xdist starts the files with the fewest tests last. Here these take longest.
slow: .venv/.installed
	@$(ONE_THREAD) $(BIN)/python -m pytest -m slow --numprocesses=2 --dist=loadfile --no-loadscope-reorder \
		tests/integration/test_workflows_killed.py $$(grep -rlE --include='test_*.py' 'mark\.slow' tests | sort)

clients: .venv/.clients
	@$(BIN)/python -m pytest -m clients tests/clients

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.docs
	@$(BIN)/python docs/generate.py --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml
	@echo "out/site/index.html"

bench: .venv/.installed
	@$(BIN)/python benchmarks/start_up.py
	@$(BIN)/python benchmarks/conversion.py
	@$(BIN)/python benchmarks/throughput.py

families: .venv/.installed
	@$(BIN)/python benchmarks/families.py --out=out/families

smallest: .venv/.installed
	@$(ONE_THREAD) $(BIN)/python -m pytest -m families tests/integration/test_families.py

arm: .venv/.installed
	@$(BIN)/python -m tfq.backends.qemu.sysroot

.venv/.installed: pyproject.toml constraints.txt
	@.ci/create_venv.sh "$(PYTHON)"
	@echo "installing into .venv (TensorFlow and the rest of constraints.txt: some minutes the first time)"
	@$(PIP_INSTALL) --config-settings editable_mode=compat --editable '.[digits,litert,report,dev]'
	@touch $@

.venv/.clients: .venv/.installed .venv/.mediapipe .venv/.node
	@$(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=compat --editable '.[micro,npu,ray,clients]'
	@touch $@

.venv/.node: .venv/.installed tests/clients/package.json
	@mkdir -p .venv/node
	@cp tests/clients/package.json .venv/node/
	@cd .venv/node && npm install --silent --no-audit --no-fund --no-package-lock
	@touch $@

# MediaPipe needs absl-py 2, and tfmot absl-py 1: an environment of its own, without constraints.txt.
.venv/.mediapipe: .venv/.installed tests/clients/mediapipe.txt
	@$(BIN)/python -m venv .venv/mediapipe
	@.venv/mediapipe/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/clients/mediapipe.txt
	@touch $@

.venv/.docs: .venv/.installed
	@$(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=compat --editable '.[docs]'
	@touch $@

clean:
	rm -rf .venv out build ./*.egg-info
