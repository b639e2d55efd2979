"""Camera geometry in plain PyTorch: rigid motion, Euler angles, intrinsics, depth and its inverse.

Camera axes: x right, y down, z forward. Pixel centres lie at integer coordinates. `K` [...,3,3] is in pixels of the
image at hand. A rigid motion `T_a_b` [...,4,4] maps points of frame b into frame a: X_a = T_a_b X_b. Everything is
differentiable and takes any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_DEPTH, MAX_DEPTH = 0.1, 100.0
"""What depth nets can say, in their own unit."""


def sigmoid_to_depth(sigmoid: Tensor, min_depth: float = MIN_DEPTH, max_depth: float = MAX_DEPTH) -> Tensor:
    """Depth in [min_depth, max_depth] whose inverse is linear in `sigmoid`, which lies in [0, 1]."""
    return 1 / (1 / max_depth + (1 / min_depth - 1 / max_depth) * sigmoid)


def disp_to_depth(disp: Tensor) -> Tensor:
    """1 / disp; the unit is that of the inverse."""
    return disp.reciprocal()


def depth_to_disp(depth: Tensor) -> Tensor:
    """1 / depth; the unit is that of the inverse."""
    return depth.reciprocal()


def euler_to_matrix(angles: Tensor) -> Tensor:
    """Rotation [...,3,3] = Rx(a₁) · Ry(a₂) · Rz(a₃) of `angles` [...,3] in radians (intrinsic x-y'-z'')."""
    (c1, c2, c3), (s1, s2, s3) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = (
        (c2 * c3, -c2 * s3, s2),
        (c1 * s3 + s1 * s2 * c3, c1 * c3 - s1 * s2 * s3, -s1 * c2),
        (s1 * s3 - c1 * s2 * c3, s1 * c3 + c1 * s2 * s3, c1 * c2),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_euler(rotation: Tensor) -> Tensor:
    """The angles [...,3] of `euler_to_matrix`, a₂ in [-π/2, π/2]; at |a₂| = π/2 only a₁ ± a₃ is defined."""
    a1 = torch.atan2(-rotation[..., 1, 2], rotation[..., 2, 2])
    a2 = torch.asin(rotation[..., 0, 2].clamp(-1, 1))
    a3 = torch.atan2(-rotation[..., 0, 1], rotation[..., 0, 0])
    return torch.stack((a1, a2, a3), dim=-1)


def rigid(rotation: Tensor, translation: Tensor) -> Tensor:
    """[R | t] as a matrix [...,4,4], from `rotation` [...,3,3] and `translation` [...,3]."""
    top = torch.cat((rotation, translation.unsqueeze(-1)), dim=-1)
    bottom = torch.eye(4, dtype=top.dtype, device=top.device)[3:].expand(*top.shape[:-2], 1, 4)
    return torch.cat((top, bottom), dim=-2)


def pose_matrix(angles: Tensor, translation: Tensor) -> Tensor:
    """Rigid motion [...,4,4] from Euler angles [...,3] (radians) and translation [...,3]."""
    return rigid(euler_to_matrix(angles), translation)


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


def crop_intrinsics(K: Tensor, left: float, top: float) -> Tensor:
    """`K` for the image without its first `left` columns and `top` rows."""
    return K.new_tensor([[1, 0, -left], [0, 1, -top], [0, 0, 1]]) @ K


def flip_intrinsics(K: Tensor, width: int) -> Tensor:
    """`K` for the image of this width mirrored left-right, the x axis of the camera mirrored with it."""
    mirror = K.new_tensor([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1]])
    return mirror @ K @ torch.diag(K.new_tensor([-1, 1, 1]))
