"""The operators. Each is a function with a `backend` argument; `OPERATORS` has what they are made of."""

from mcd.ops.align_scale import AlignScaleResult, align_scale
from mcd.ops.backward_warp import BackwardWarpResult, backward_warp
from mcd.ops.forward_warp import ForwardWarpResult, forward_warp
from mcd.ops.fuse_depth import FuseDepthResult, fuse_depth
from mcd.ops.instance_stats import InstanceStats, instance_stats
from mcd.ops.motion_sparsity import motion_sparsity
from mcd.ops.photometric_error import PhotometricErrorResult, photometric_error
from mcd.ops.registry import OPERATORS, Operator, Sample, backend_summary
from mcd.ops.scale_invariant_loss import ScaleInvariantLossResult, scale_invariant_loss
from mcd.ops.smoothness_loss import smoothness_loss
from mcd.ops.view_synthesis_loss import ViewSynthesisLossResult, view_synthesis_loss

__all__ = [
    "OPERATORS",
    "AlignScaleResult",
    "BackwardWarpResult",
    "ForwardWarpResult",
    "FuseDepthResult",
    "InstanceStats",
    "Operator",
    "PhotometricErrorResult",
    "Sample",
    "ScaleInvariantLossResult",
    "ViewSynthesisLossResult",
    "align_scale",
    "backend_summary",
    "backward_warp",
    "forward_warp",
    "fuse_depth",
    "instance_stats",
    "motion_sparsity",
    "photometric_error",
    "scale_invariant_loss",
    "smoothness_loss",
    "view_synthesis_loss",
]
