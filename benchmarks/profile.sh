#!/usr/bin/env bash
# Profiles a few training steps with Nsight Systems, then prints where their time went.
#     benchmarks/profile.sh [arguments of python -m mcd.train]
# OUT names the report (default: profile), STEPS the window (default: 20:25), PYTHON the interpreter.
set -euo pipefail

out=${OUT:-profile}
command -v nsys >/dev/null || {
    echo "nsys is not on PATH; without it, python -m mcd.train --profile START:STOP writes a trace of torch.profiler" >&2
    exit 1
}
rm -f "$out.nsys-rep" # an old one would pass for the new
# Collection begins and ends with the window; then training is stopped, and it would go on from there.
# With --cuda-graph-trace=node each kernel of a CUDA graph is seen, not the graph alone.
nsys profile --output "$out" --force-overwrite=true --trace=cuda,nvtx,osrt --sample=none --cpuctxsw=none \
    --capture-range=cudaProfilerApi --capture-range-end=stop-shutdown --cuda-graph-trace=node \
    "${PYTHON:-.venv/bin/python}" -m mcd.train --profile "${STEPS:-20:25}" "$@" || [[ -f $out.nsys-rep ]]
nsys stats --report nvtx_gpu_proj_sum --report nvtx_sum --report cuda_gpu_kern_sum "$out.nsys-rep"
