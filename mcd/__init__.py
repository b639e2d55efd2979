"""Self-supervised monocular depth from video in which things move, its inner loops written as kernels.

`mcd.ops` has the operators as functions, `mcd.losses` and `mcd.modules` have them as `torch.nn` modules whose options
are bound:

* losses: `ViewSynthesisLoss`, `PhotometricError`, `SmoothnessLoss`, `MotionSparsity`, `ScaleInvariantLoss`
* modules: `BackwardWarp`, `ForwardWarp`, `InstanceStatistics`, `AlignScale`, `FuseDepth`

`mcd.geometry` is the camera geometry around them. `Instances` holds object masks; `use_backend`, `set_backend` and
`available_backends` choose who computes.

`load` gives a trained depth net as a function of images; it needs the extra `train`.
"""

from __future__ import annotations

__version__ = "0.2.0"

from pathlib import Path
from typing import TYPE_CHECKING

from mcd import geometry, losses, modules, ops
from mcd.extras import extra
from mcd.ops.backend import BackendUnavailable, available_backends, set_backend, use_backend
from mcd.ops.instances import Instances

if TYPE_CHECKING:
    import torch

    from mcd.inference.model import DepthModel

__all__ = [
    "BackendUnavailable",
    "Instances",
    "available_backends",
    "geometry",
    "load",
    "losses",
    "modules",
    "ops",
    "set_backend",
    "use_backend",
]


def load(
    place: Path | str = "start",
    *,
    device: torch.device | str = "auto",
    stage: str | None = None,
    size: tuple[int, int] | None = None,
    metres: float | None = None,
    camera_height: float | None = None,
    fov: float | None = None,
) -> DepthModel:
    """A trained depth net as a function of images: ``mcd.load("start")("street.jpg").depth`` is a tensor [H, W].

    Args:
        place: a run folder, a stage folder, a weights file, or ``start``, the net that comes with mcd; ``mcd models``
            lists them.
        device: "auto" (CUDA where it is there), "cpu", "cuda:1", …
        stage: of a run folder: whose net; None takes final, else scene.
        size: height and width at which the net sees images, multiples of 32; None: as it was trained.
        metres: metres per unit of the net's depth, where that is known.
        camera_height: of the camera above the road, in metres: depth is put into metres by the road that images show,
            over the last ones, which should be of one camera.
        fov: of that camera, horizontal, in degrees; None: of the camera that the net was trained on.

    Raises:
        MissingPackage: the extra ``train`` is not installed.
        CheckpointError: nothing is there, it is broken, or it holds no depth net.
        LoadError: the device, the size or the scale is impossible.
    """
    with extra("train", "mcd.load"):
        from mcd.inference.model import load_model
    return load_model(place, device=device, stage=stage, size=size, metres=metres, camera_height=camera_height, fov=fov)
