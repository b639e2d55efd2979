"""Self-supervised monocular depth from video in which things move, its inner loops written as kernels."""

__version__ = "0.2.0"

from mcd import ops
from mcd.ops.backend import BackendUnavailable, available_backends, set_backend, use_backend
from mcd.ops.instances import Instances

__all__ = ["BackendUnavailable", "Instances", "available_backends", "ops", "set_backend", "use_backend"]
