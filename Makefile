# Every target sets up .venv by itself, once. PYTHON chooses the interpreter; MCD_CUDA (see setup.py) what is built.
PYTHON ?= python3
BIN := .venv/bin
export MCD_CUDA ?= auto

NATIVE := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

.PHONY: train test lint check bench sanitize clean
.DELETE_ON_ERROR:

train: .venv/built
	$(BIN)/python -m mcd.train $(ARGS)

test: .venv/built
	$(BIN)/pytest $(ARGS)

lint: .venv/built
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The slower gates.
check: .venv/built sanitize
	$(BIN)/python tests/gates/cuda_code.py

bench: .venv/built
	$(BIN)/python benchmarks/report.py $(ARGS)

# The native CPU code under the address and undefined-behaviour sanitizers. Both libraries are loaded first: without
# libstdc++ the sanitizer does not see C++ exceptions, and aborts at the first.
sanitize: .venv/built
	MCD_CUDA=0 MCD_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=build/sanitize/lib \
	$(BIN)/pytest tests/ops -m 'not compiles' $(ARGS)

clean:
	rm -rf build dist *.egg-info mcd/_C.*.so .venv/built .venv/required

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv

# A machine with a GPU but no CUDA toolkit gets the compiler from PyPI.
NO_TOOLKIT := nvidia-smi && ! command -v nvcc && ! test -x "$${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"

.venv/required: requirements.txt requirements-cuda.txt | .venv/bin/python
	$(BIN)/pip install --quiet -r requirements.txt
	if [ $(MCD_CUDA) = pypi ] || { [ $(MCD_CUDA) = auto ] && $(NO_TOOLKIT); } >/dev/null 2>&1; then \
		$(BIN)/pip install --quiet -r requirements-cuda.txt; fi
	touch $@

.venv/built: .venv/required $(NATIVE)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'import mcd; [print(f"mcd on {device}:", mcd.available_backends(device)) for device in ("cpu", "cuda")]'
	touch $@
