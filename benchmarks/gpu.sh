#!/usr/bin/env bash
# Everything that needs a GPU, in ten minutes, on a machine that may have no network:
#     benchmarks/gpu.sh OUT
# Builds mcd, runs the tests on CUDA, compute-sanitizer over every operator, the training step and the benchmarks. Writes
# OUT/results.json and a log of each part, and prints a short table last. A part that fails spoils no other.
#
# Needs torch, triton, numpy, pytest, pybind11 and nvcc. What else is wanted comes from wheels/ (`make wheels`, on a
# machine with a network) or is reported as absent. PYTHON names the interpreter, TORCH_CUDA_ARCH_LIST the GPU (9.0),
# MINUTES the time there is, MCD_COMMIT the commit where there is no repository. DEVICE=cpu tries the script itself, at
# tiny sizes, with the module that is installed.
set -uo pipefail

if (($# != 1)); then
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
results=$out/results.json
parts=$out/parts.tsv
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -f "$results" "$parts"
limit=$((SECONDS + ${MINUTES:-10} * 60 - 15))

left() { echo $((limit - SECONDS)); }

note() {
    printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$parts"
    echo "$1: $2, $3 s"
}

# part NAME SECONDS COMMAND...: at most so long and never beyond the end; its output goes to OUT/NAME.log.
part() {
    local name=$1 most=$2 begin=$SECONDS status outcome
    shift 2
    ((most <= $(left))) || most=$(left)
    if ((most < 5)); then
        note "$name" "no time left" 0
        return 1
    fi
    timeout --kill-after=5 "$most" "$@" >"$out/$name.log" 2>&1
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

# The folder we are in has mcd without its compiled module: Python must not look here first.
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export PATH=$work/site/bin:$PATH # ninja
export PYTHONPATH=$work/lib:$PWD:$PWD/tests:$work/site
[[ $device == cuda ]] || export PYTHONPATH=$PWD:$PWD/tests:$work/site

if compgen -G "wheels/*.whl" >/dev/null; then
    part wheels 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" wheels/*.whl
else
    note wheels "absent: no wheels/*.whl" 0
fi

# setup.py calls ninja as a Python module; the program does as well.
if ! "$python" -c 'import ninja' 2>/dev/null && command -v ninja >/dev/null; then
    mkdir -p "$work/site"
    echo 'import os, sys; os.execvp("ninja", ["ninja", *sys.argv[1:]])' >"$work/site/ninja.py"
fi

if [[ $device == cuda ]]; then
    { nvidia-smi; nvcc --version; "$python" -m pip list; } >"$out/machine.log" 2>&1
    part build 220 env MCD_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-9.0}" \
        "$python" setup.py --quiet build --build-base "$work/build" --build-lib "$work/lib" ||
        { mkdir -p "$work/lib" && cp -r mcd "$work/lib" && cp -r kernels "$work/lib/mcd"; } # reference and Triton

    # Options of pyproject.toml name plugins that may be missing here.
    pytest=("$python" -m pytest -m cuda -q -p no:cacheprovider -o "addopts=--import-mode=importlib"
        --continue-on-collection-errors)
    "$python" -c 'import xdist' 2>/dev/null && pytest+=(-n 6)
    # Nothing is timed yet, so these share the GPU.
    part tests 130 "${pytest[@]}" tests/ops &
    part other-tests 130 "${pytest[@]}" tests --ignore=tests/ops &
    for tool in memcheck racecheck; do
        if command -v compute-sanitizer >/dev/null; then
            part "$tool" 130 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
                --print-limit 20 "$python" -m benchmarks.gpu small "$results" &
        else
            note "$tool" "absent: no compute-sanitizer" 0
        fi
    done
    wait
else
    measure small small 130
fi

measure step step 90
# A kernel that crashes takes its process along; the next one goes on behind it.
for attempt in 1 2 3 4; do
    seconds=$(left)
    ((seconds > 30)) || break
    measure operators "operators-$attempt" "$seconds" --seconds $((seconds - 20)) && break
done

echo
"$python" -m benchmarks.gpu table "$results" --parts "$parts"
