#!/usr/bin/env bash
# Everything that needs a GPU, in five minutes, on a machine that may have no network:
#     benchmarks/gpu.sh OUT
# Builds mcd, compares every operator with the reference, runs the tests on CUDA beside three tools of compute-sanitizer,
# the benchmarks of the operators and of the training step, and Nsight Compute on five kernels. Writes OUT/results.json and
# OUT/logs.tar.gz, what each part said, and prints a short table last. A part that fails spoils no other.
#
# Needs torch, triton, numpy, pytest, pybind11 and nvcc. What else is wanted comes from wheels/ (`make wheels`, on a
# machine with a network) or is reported as absent. PYTHON names the interpreter, TORCH_CUDA_ARCH_LIST the GPU (9.0),
# MINUTES the time there is, MCD_COMMIT the commit where there is no repository. DEVICE=cpu tries the script itself, at
# tiny sizes, with the module that is installed.
set -uo pipefail

if (($# != 1)); then
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
results=$out/results.json
work=$(mktemp -d)
logs=$work/logs
parts=$logs/parts.tsv
mkdir "$logs"
trap 'tar -C "$work" -czf "$out/logs.tar.gz" logs; rm -rf "$work"' EXIT
rm -f "$results"
limit=$((SECONDS + ${MINUTES:-5} * 60 - 10))

left() { echo $((limit - SECONDS)); }

note() {
    printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$parts"
    echo "$1: $2, $3 s"
}

# part NAME SECONDS COMMAND...: at most so long and never beyond the end; its output goes to a log of its name.
part() {
    local name=$1 most=$2 begin=$SECONDS status outcome
    shift 2
    ((most <= $(left))) || most=$(left)
    if ((most < 5)); then
        note "$name" "no time left" 0
        return 1
    fi
    timeout --kill-after=5 "$most" "$@" >"$logs/$name.log" 2>&1
    status=$?
    case $status in
        0) outcome=ok ;;
        124 | 137) outcome="stopped after $most s" ;;
        *) outcome="failed ($status)" ;;
    esac
    note "$name" "$outcome" $((SECONDS - begin))
    return $status
}

measure() { # measure PART NAME SECONDS [OPTION...]
    local what=$1 name=$2 most=$3
    shift 3
    [[ $device == cuda ]] || set -- --quick "$@"
    part "$name" "$most" "$python" -m benchmarks.gpu "$what" "$results" --device "$device" "$@"
}

# tool NAME SECONDS COMMAND...: a part that runs under a program of the toolkit.
tool() {
    if command -v "$3" >/dev/null; then
        part "$@"
    else
        note "$1" "absent: no $3" 0
    fi
}

# The folder we are in has mcd without its compiled module: Python must not look here first.
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PATH=$work/site/bin:$PATH # ninja
export PYTHONPATH=$work/lib:$PWD:$PWD/tests:$work/site
[[ $device == cuda ]] || export PYTHONPATH=$PWD:$PWD/tests:$work/site

install_wheels() {
    if compgen -G "wheels/*.whl" >/dev/null; then
        part wheels 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" wheels/*.whl
    else
        note wheels "absent: no wheels/*.whl" 0
    fi
}

# What building needs may come from the wheels, else both go side by side.
if [[ $device == cuda ]] && "$python" -c 'import pybind11, setuptools' 2>/dev/null; then
    install_wheels &
else
    install_wheels
fi

if [[ $device == cuda ]]; then
    { nvidia-smi; nvcc --version; "$python" -m pip list; } >"$logs/machine.log" 2>&1
    # setup.py calls ninja as a Python module; the program does as well.
    if ! "$python" -c 'import ninja' 2>/dev/null && command -v ninja >/dev/null; then
        mkdir -p "$work/lib"
        echo 'import os, sys; os.execvp("ninja", ["ninja", *sys.argv[1:]])' >"$work/lib/ninja.py"
    fi
    part build 120 env MCD_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-9.0}" \
        "$python" setup.py --quiet build --build-base "$work/build" --build-lib "$work/lib" ||
        { mkdir -p "$work/lib" && cp -r mcd "$work/lib" && cp -r kernels "$work/lib/mcd"; } # reference and Triton
    wait
fi

measure smoke smoke 30

if [[ $device == cuda ]]; then
    # Options of pyproject.toml name plugins that may be missing here. The files that have tests of a GPU, and no others:
    # to collect all takes longer than to run these.
    part tests 70 "$python" -m pytest -m cuda -q -p no:cacheprovider -o "addopts=--import-mode=importlib" \
        --continue-on-collection-errors tests/ops/test_on_cuda.py tests/test_backend.py tests/data/test_loader.py &
    # Nothing is timed yet, so these share the GPU. Under Triton they would spend their time on compiling.
    for check in memcheck racecheck initcheck; do
        tool "$check" 70 compute-sanitizer --tool "$check" --error-exitcode 9 --print-limit 20 \
            env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$python" -m benchmarks.gpu small "$results" --backends native &
    done
    wait
else
    measure small small 60
fi

# A kernel that crashes takes its process along; the next one goes on behind it.
begin=$SECONDS
for attempt in 1 2 3; do
    seconds=$((95 - (SECONDS - begin)))
    ((seconds > 15)) || break
    measure operators "operators-$attempt" "$seconds" --seconds $((seconds - 10)) && break
done
measure step step 50
if [[ $device == cuda ]]; then
    tool ncu 45 ncu --set full --kernel-name-base function --launch-count 5 \
        --kernel-name 'regex:^(fwd_rows|fwd_tiles|bwd_tiles|loss_tiles|loss_of_samples)$' \
        "$python" -m benchmarks.gpu kernels "$results"
fi

echo
"$python" -m benchmarks.gpu table "$results" --parts "$parts"
