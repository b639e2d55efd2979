"""Self-supervised monocular depth from video in which things move, its inner loops written as kernels."""

from mcd.backend import BackendUnavailable, available_backends, set_backend, use_backend

try:  # temporary
    from mcd.instances import Instances
except ModuleNotFoundError:
    pass

__all__ = ["BackendUnavailable", "Instances", "available_backends", "set_backend", "use_backend"]
