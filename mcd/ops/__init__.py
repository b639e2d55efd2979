"""The operators. Each is a function with a `backend` argument; `OPERATORS` has what they are made of."""
# Temporary while the modules are being written; the final list of imports follows.
import importlib

from mcd.ops.registry import OPERATORS, Operator, Sample, backend_summary

for _stem in ("backward_warp", "photometric_error", "view_synthesis_loss", "forward_warp", "instance_stats",
              "align_scale", "scale_invariant_loss", "fuse_depth", "smoothness_loss", "motion_sparsity"):
    try:
        globals()[_stem] = getattr(importlib.import_module(f"mcd.ops.{_stem}"), _stem)
    except ModuleNotFoundError as _error:
        if "mcd" not in str(_error):
            raise
