"""Self-supervised monocular depth from video in which things move, its inner loops written as kernels.

`mcd.ops` has the operators as functions, `mcd.losses` and `mcd.modules` have them as `torch.nn` modules whose options
are bound:

* losses: `ViewSynthesisLoss`, `PhotometricError`, `SmoothnessLoss`, `MotionSparsity`, `ScaleInvariantLoss`
* modules: `BackwardWarp`, `ForwardWarp`, `InstanceStatistics`, `AlignScale`, `FuseDepth`

`mcd.geometry` is the camera geometry around them. `Instances` holds object masks; `use_backend`, `set_backend` and
`available_backends` choose who computes.
"""

__version__ = "0.2.0"

from mcd import geometry, losses, modules, ops
from mcd.ops.backend import BackendUnavailable, available_backends, set_backend, use_backend
from mcd.ops.instances import Instances

__all__ = [
    "BackendUnavailable",
    "Instances",
    "available_backends",
    "geometry",
    "losses",
    "modules",
    "ops",
    "set_backend",
    "use_backend",
]
