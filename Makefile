# Each target sets up .venv by itself, once. ARGS are passed on: make test ARGS='-k warp', make train ARGS='--set seed=1'.
# PYTHON names the interpreter of .venv; MCD_CUDA and other variables that setup.py reads say what is built.
SUITABLE := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell $(name) $(SUITABLE) && echo $(name))))
BIN := .venv/bin
export MCD_CUDA ?= auto

SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')
BUILT := .venv/built-$(MCD_CUDA)

.PHONY: help train test lint format check fuzz kinds chaos mutants sanitize e2e bench bench-full peers wheels wheels-dist \
	docs gallery demo-study clip clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 18

train: $(BUILT)  ## render synthetic streets, train every stage, evaluate, report
	$(BIN)/python -m mcd.train $(ARGS)

# Triton's interpreter is chosen when triton is imported, hence by a process. It computes with NumPy, which warns of
# infinity and NaN. Status 5: ARGS leaves it no test.
test: $(BUILT)  ## prove the build
	$(BIN)/pytest -m 'not slow' $(ARGS)
	TRITON_INTERPRET=1 $(BIN)/pytest -m 'triton and not slow' -W ignore::RuntimeWarning $(ARGS) || [ $$? -eq 5 ]

lint: .venv/required  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/required  ## mend what can be mended of the style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

check: $(BUILT) sanitize  ## the slower gates: sanitizers, slow tests, what the compilers made of csrc/ and kernels/
	$(BIN)/python tests/gates/native_code.py
	$(BIN)/python tests/gates/triton_code.py
	$(BIN)/python -m benchmarks.model --check
	$(BIN)/pytest -m 'slow and not forks' $(ARGS)
	$(BIN)/pytest -m 'slow and forks' $(ARGS) || [ $$? -eq 5 ]
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds 60

# ARGS='--seconds 1800 --first 100000': longer, with other seeds. What goes wrong is kept in build/fuzz/.
fuzz: $(BUILT)  ## damaged files and odd words through every door
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds 300 $(ARGS)

# ARGS='--only weights "a video"' are some of them; --apart starts Python anew for each.
kinds: $(BUILT)  ## every kind of odd input that users report, through the command line: a table
	PYTHONPATH=tests $(BIN)/python -m fuzz.table --markdown $(ARGS)

# Full and read-only disks need root, for mounts.
chaos: $(BUILT)  ## kill -9, full disks and SIGTERM at random moments of a small run and of every export
	PYTHONPATH=tests $(BIN)/python tests/gates/chaos.py $(ARGS)

# ARGS='--sample 300 --seed 1 --rooms stages' draws others.
mutants: $(BUILT)  ## small wrong changes, one at a time: which do the tests notice?
	$(BIN)/pip install --quiet cosmic-ray==8.7.0 pytest-cov==7.1.0
	PYTHONPATH=tests $(BIN)/python tests/gates/mutants.py $(ARGS)

# Both libraries are loaded first: without libstdc++ the sanitizer does not see C++ exceptions, and aborts at the first.
# How exact float32 is belongs to the optimised build: this one rounds elsewhere.
sanitize: $(BUILT)  ## operator tests, native CPU code under the address and undefined-behaviour sanitizers
	MCD_CUDA=0 MCD_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=build/sanitize/lib \
	$(BIN)/pytest tests/ops -m 'not compiles and not slow' -k 'not as_exact_as_the_reference and not takes_little_more' $(ARGS)

e2e: $(BUILT)  ## every stage of the published system, few steps each, on a small data set; killed, resumed, evaluated
	$(BIN)/pytest tests/e2e $(ARGS)

# Two allocator settings, one process each: glibc reads them when it starts. The tuned one keeps freed memory mapped, in
# huge pages, which favours PyTorch; bars are judged by it.
TUNED := glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736
BENCH := $(BIN)/python -m pytest benchmarks

bench: $(BUILT)  ## operators, training step, data: into benchmarks/results/ and docs/benchmarks.md
	mkdir -p build
	GLIBC_TUNABLES=$(TUNED) $(BENCH) --benchmark-json=build/bench-tuned.json $(ARGS)
	$(BENCH) --backends-only --seconds=1 -k 'operator and 12x192x512' --benchmark-json=build/bench-default.json $(ARGS)
	$(BIN)/python -m benchmarks.report build/bench-tuned.json build/bench-default.json

bench-full:  ## the same with every size at batch 12, everything compiled, more rounds
	$(MAKE) bench ARGS='--full $(ARGS)'

peers: $(BUILT)  ## what benchmarks and tests compare with beside PyTorch: kornia, torch-scatter
	$(BIN)/pip install --quiet kornia==0.9.0
	$(BIN)/pip install --quiet --no-build-isolation torch-scatter==2.1.2

# For the Python of that machine, which need not be this one; pip takes a platform tag literally, so several are named.
wheels: .venv/bin/python  ## what benchmarks/gpu.sh wants on a machine without a network, into wheels/
	rm -rf wheels
	$(BIN)/pip download --quiet --dest wheels --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
		$(foreach tag,2_28 2_27 2_24 2_17 2_12 2_5,--platform manylinux_$(tag)_x86_64) --platform manylinux2014_x86_64 \
		--platform manylinux1_x86_64 --requirement benchmarks/wheels.txt

# MCD_CUDA=0 leaves the CUDA wheels out; ARGS='--no-try' builds only, ARGS='--torch 2.10.0 2.11.0' tries with both.
wheels-dist: .venv/required  ## wheels for every CPython here, each tried beside torch alone, and the sdist, into dist/
	$(BIN)/python tests/gates/wheels.py $(ARGS)
	$(BIN)/python setup.py --quiet sdist

# RUN=runs/mine draws another run.
gallery: RUN ?= runs/synthetic
gallery: $(BUILT)  ## the pictures of docs/gallery.md, of the run of `make train`, which is trained if it is not yet
	[ -f $(RUN)/final/done.json ] || $(BIN)/python -m mcd.train
	$(BIN)/python -m mcd.report $(RUN) --view docs/gallery/view.png --panel docs/gallery/depth.png \
		--changes docs/gallery/changes.png

docs: $(BUILT)  ## the documentation site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

demo-study: $(BUILT)  ## the synthetic demonstration with three seeds and its control, into docs/results.md
	$(BIN)/python -m benchmarks.demo_study $(ARGS)

clip: $(BUILT)  ## the shipped start, adapted to a piece of real driving in minutes; report and docs/clip.png
	$(BIN)/python -m benchmarks.clip $(ARGS)

clean:  ## remove what was built; .venv's packages, data/ and runs/ stay
	rm -rf build dist *.egg-info mcd/_C.*.so .venv/built-*

.venv/bin/python:
	@$(PYTHON) $(SUITABLE) || { echo "Python 3.11, 3.12 or 3.13 is needed, and is not among python3, python3.13," \
		"python3.12 and python3.11: make PYTHON=/path/to/python"; exit 1; } >&2
	$(PYTHON) -m venv .venv || { echo "without venv and pip (Debian, Ubuntu: apt install python3-venv)"; exit 1; } >&2

.venv/required: requirements.txt | .venv/bin/python
	@echo "installing requirements.txt: some GB the first time"
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

# A machine with a GPU in which setup.py finds no CUDA toolkit, or one without headers, gets PyPI's.
NEEDS_TOOLKIT = [ $(MCD_CUDA) = pypi ] || { [ $(MCD_CUDA) = auto ] && nvidia-smi && \
	! MCD_CUDA=1 $(BIN)/python setup.py build_ext --dry-run; } >/dev/null 2>&1

$(BUILT): .venv/required requirements-cuda.txt pyproject.toml setup.py $(SOURCES)
	if $(NEEDS_TOOLKIT); then $(BIN)/pip install --quiet -r requirements-cuda.txt; fi
	$(BIN)/pip install --quiet --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'import mcd; [print(f"native operators on {device}:", mcd.available_backends(device)["native"] or "ready") \
		for device in ("cpu", "cuda")]'
	@rm -f .venv/built-*
	touch $@
