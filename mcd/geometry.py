"""Camera geometry in plain PyTorch: points and pixels, rigid motion, Euler angles, intrinsics, depth from a sigmoid.

Camera axes: x right, y down, z forward. Pixel centres lie at integer coordinates. `K` [...,3,3] is in pixels of the
image at hand. A rigid motion `T_a_b` [...,4,4] maps points of frame b into frame a: X_a = T_a_b X_b. Everything is
differentiable and takes any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcd.ops.camera import pixel_grid, points_of

MIN_DEPTH, MAX_DEPTH = 0.1, 100.0
"""What depth nets can say, in their own unit."""


def backproject(depth: Tensor, K: Tensor) -> Tensor:
    """The point that each pixel sees: depth · K⁻¹ · (x, y, 1)ᵀ.

    Args:
        depth: [B,1,H,W] along the z axis, in any unit of length.
        K: [B,3,3] intrinsics in pixels of H×W, any invertible matrix; [1,3,3] or [3,3] is that of all samples.

    Returns:
        [B,3,H,W] in the camera's axes, in the unit of `depth`.

    Hartley and Zisserman, "Multiple View Geometry in Computer Vision", 2nd edition, section 6.1.
    """
    height, width = depth.shape[-2:]
    return points_of(depth.flatten(2), K, pixel_grid(height, width, like=depth)).unflatten(2, (height, width))


def project(points: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Where the camera sees points: (x, y) = q_xy / q_z with q = K · points, and q_z, which is their depth.

    Args:
        points: [B,3,H,W] in the camera's axes, in any unit of length.
        K: [B,3,3] intrinsics in pixels, whose last row is (0, 0, 1); [1,3,3] or [3,3] is that of all samples.

    Returns:
        Pixel coordinates [B,2,H,W] and depth [B,1,H,W] in the unit of `points`. Coordinates of points with depth <= 0,
        which no camera sees, are what the division gives.

    The inverse of `backproject`; section 6.1 of the same book.
    """
    q = (K @ points.flatten(2)).unflatten(2, points.shape[-2:])
    return q[:, :2] / q[:, 2:], q[:, 2:]


def sigmoid_to_depth(sigmoid: Tensor, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH) -> Tensor:
    """Depth in [min_depth, max_depth] whose inverse is linear in `sigmoid`, which lies in [0, 1]."""
    return 1 / (1 / max_depth + (1 / min_depth - 1 / max_depth) * sigmoid)


def euler_to_matrix(angles: Tensor) -> Tensor:
    """Rotation [...,3,3] = Rx(a₁) · Ry(a₂) · Rz(a₃) of `angles` [...,3] in radians (intrinsic x-y'-z'')."""
    (c1, c2, c3), (s1, s2, s3) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    entries = (
        *(c2 * c3, -c2 * s3, s2),
        *(c1 * s3 + s1 * s2 * c3, c1 * c3 - s1 * s2 * s3, -s1 * c2),
        *(s1 * s3 - c1 * s2 * c3, s1 * c3 + c1 * s2 * s3, c1 * c2),
    )
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """[R | t] as a matrix [...,4,4], from `rotation` [...,3,3] and `translation` [...,3]."""
    top = torch.cat((rotation, translation.unsqueeze(-1)), dim=-1)
    bottom = torch.eye(4, dtype=top.dtype, device=top.device)[3:].expand(*top.shape[:-2], 1, 4)
    return torch.cat((top, bottom), dim=-2)


def pose_matrix(angles: Tensor, translation: Tensor) -> Tensor:
    """Rigid motion [...,4,4] from Euler angles [...,3] (radians) and translation [...,3]."""
    return rigid(euler_to_matrix(angles), translation)


def flip_rigid(T: Tensor) -> Tensor:
    """Motions [...,4,4] of a world mirrored left-right, the x axis of the camera mirrored with it."""
    mirror = torch.tensor([-1.0, 1, 1, 1], dtype=T.dtype, device=T.device)
    return mirror[:, None] * T * mirror


def invert_rigid(T: Tensor) -> Tensor:
    """T_b_a [...,4,4] from a rigid T_a_b: [Rᵀ | -Rᵀt]."""
    inverse = T[..., :3, :3].transpose(-1, -2)
    return rigid(inverse, -(inverse @ T[..., :3, 3:]).squeeze(-1))


def scale_intrinsics(K: Tensor, sx: float, sy: float, *, half_pixel: bool = True) -> Tensor:
    """`K` for the image resized by the factors (sx, sy) = new size / old size.

    Resizing aligns the areas of pixels, so a point at x moves to (x + 1/2)·sx - 1/2. `half_pixel=False` gives the
    common approximation x·sx, which is half a pixel off at sx → 0.
    """
    shift = 0.5 if half_pixel else 0.0
    resize = K.new_tensor([[sx, 0, shift * sx - shift], [0, sy, shift * sy - shift], [0, 0, 1]])
    return resize @ K


def flip_intrinsics(K: Tensor, width: int) -> Tensor:
    """`K` for the image of this width mirrored left-right, the x axis of the camera mirrored with it."""
    mirror = K.new_tensor([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]])
    return mirror @ K @ torch.diag(K.new_tensor([-1, 1, 1]))
