"""From a reference pixel to where it lies in the source image; the mathematics of csrc/common/camera.h on small tiles.

    q = depth · (A p) + b        p = (x, y, 1),  A = K R K⁻¹,  b = K t
    u = q_xy / (q_z + 1e-5)

Where the camera turns and moves little, A is close to 1 and u to (x, y). So A - 1 is kept too, and u is found as the
pixel plus its step, whose rounding error is as small as the step.

3×3 matrices are 4×4 tiles whose last row and column are zero, in float64: their rounding never shows in a pixel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mcd.kernels.common import divide

CAMERA = 24  # numbers of a camera: A, b, K, the diagonal of A - 1
_CAMERA = tl.constexpr(CAMERA)
SUMS = 32  # numbers that a program leaves for the camera's gradient, at most
_SUMS = tl.constexpr(SUMS)


@triton.jit
def tile_axes():
    axis = tl.arange(0, 4)
    return axis[:, None], axis[None, :]


@triton.jit
def load_tile(matrix, by_row: tl.constexpr, by_column: tl.constexpr):
    i, j = tile_axes()
    return tl.load(matrix + i * by_row + j * by_column, mask=(i < 3) & (j < 3), other=0.0).to(tl.float64)


@triton.jit
def load_column(vector, step: tl.constexpr):
    """Three numbers as a row of a tile, [1, 4]."""
    _, j = tile_axes()
    return tl.load(vector + j * step, mask=j < 3, other=0.0).to(tl.float64)


@triton.jit
def store_tile(matrix, value):
    i, j = tile_axes()
    tl.store(matrix + i * 3 + j, value.to(matrix.dtype.element_ty), mask=(i < 3) & (j < 3))


@triton.jit
def matmul(a, b):
    return tl.sum(a[:, :, None] * b[None, :, :], 1)


@triton.jit
def inverse(matrix):
    """The tile of the inverse of a 3×3 matrix in memory: cofactors over the determinant."""
    i, j = tile_axes()
    i1, i2, j1, j2 = (i + 1) % 3, (i + 2) % 3, (j + 1) % 3, (j + 2) % 3
    a = tl.load(matrix + j1 * 3 + i1).to(tl.float64)
    b = tl.load(matrix + j2 * 3 + i2).to(tl.float64)
    c = tl.load(matrix + j1 * 3 + i2).to(tl.float64)
    d = tl.load(matrix + j2 * 3 + i1).to(tl.float64)
    adjugate = tl.where((i < 3) & (j < 3), a * b - c * d, 0.0)
    first_row = tl.load(matrix + i + 0 * j, mask=(i < 3) & (j == 0), other=0.0).to(tl.float64)
    return adjugate / tl.sum(tl.sum(first_row * adjugate, 1), 0)


@triton.jit
def store_camera(camera, K, rotation, translation, inverse_K):
    """`translation` is a row [1, 4]."""
    dtype: tl.constexpr = camera.dtype.element_ty
    A = matmul(K, matmul(rotation, inverse_K))
    store_tile(camera, A)
    component = tl.arange(0, 4)
    tl.store(camera + 9 + component, tl.sum(K * translation, 1).to(dtype), mask=component < 3)
    store_tile(camera + 12, K)
    i, j = tile_axes()
    tl.store(camera + 21 + i + 0 * j, (A - 1).to(dtype), mask=(i < 3) & (i == j))


@triton.jit
def sum_of_programs(sums, first, count, at, taken):
    """A tile of the sums that programs [first, first + count) left, added in their order; 0 where not `taken`. They
    are read 32 at a time: one after the other, each would wait for memory."""
    program = tl.arange(0, 32)[:, None, None]
    total = tl.zeros([32, 4, 4], tl.float64)
    done = 0
    while done < count:
        found = sums + (first + done + program) * _SUMS + at[None, :, :]
        total += tl.load(found, mask=taken[None, :, :] & (done + program < count), other=0.0).to(tl.float64)
        done += 32
    return tl.sum(total, 0)


@triton.jit
def find_cameras(K, T_src_ref, cameras):
    """One program for each sample."""
    b = tl.program_id(0).to(tl.int64)
    K += b * 9
    T_src_ref += b * 16
    rotation, translation = load_tile(T_src_ref, 4, 1), load_column(T_src_ref + 3, 4)
    store_camera(cameras + b * _CAMERA, load_tile(K, 3, 1), rotation, translation, inverse(K))


@triton.jit
def apply_row(row, x, y, z):
    """The product of three numbers in memory with a vector."""
    return tl.load(row) * x + tl.load(row + 1) * y + tl.load(row + 2) * z


@triton.jit
def apply_column(column, x, y, z):
    """The product of a column of a 3×3 matrix in memory with a vector."""
    return tl.load(column) * x + tl.load(column + 3) * y + tl.load(column + 6) * z


@triton.jit
def ray_component(row, x, y):
    return tl.load(row) * x + (tl.load(row + 1) * y + tl.load(row + 2))


@triton.jit
def camera_grad(K, rotation, translation, inverse_K, grad_A, grad_b, grad_motion_K):
    """Gradients to rotation, translation [4] and K, from sums over pixels: grad_A = Σ grad_q (depth p)ᵀ,
    grad_b [4] = Σ grad_q, grad_motion_K = Σ grad_q mᵀ of a 3-D motion m."""
    left = matmul(tl.trans(K), grad_A)
    grad_rotation = matmul(left, tl.trans(inverse_K))
    grad_translation = tl.sum(K * grad_b[:, None], 0)
    # The adjoint of inversion is -K⁻ᵀ … K⁻ᵀ.
    grad_inverse = matmul(tl.trans(rotation), left)
    through_inverse = matmul(matmul(tl.trans(inverse_K), grad_inverse), tl.trans(inverse_K))
    direct = matmul(grad_A, tl.trans(matmul(rotation, inverse_K)))
    return grad_rotation, grad_translation, direct - through_inverse + grad_b[:, None] * translation + grad_motion_K


@triton.jit
def project(camera, x, y, depth, shift_x, shift_y, shift_z, EPSILON: tl.constexpr):
    """ray = A p, u (not clamped), q_z and 1 / (q_z + 1e-5); `shift` is the motion in the units of q."""
    ray_x, ray_y, ray_z = ray_component(camera, x, y), ray_component(camera + 3, x, y), ray_component(camera + 6, x, y)
    b_x, b_y, b_z = tl.load(camera + 9) + shift_x, tl.load(camera + 10) + shift_y, tl.load(camera + 11) + shift_z
    q_z = depth * ray_z + b_z
    divisor = q_z + EPSILON
    scale = divide(tl.full(divisor.shape, 1.0, divisor.dtype), divisor)
    turn_x = tl.load(camera + 21) * x + (tl.load(camera + 1) * y + tl.load(camera + 2))
    turn_y = tl.load(camera + 3) * x + (tl.load(camera + 22) * y + tl.load(camera + 5))
    turn_z = tl.load(camera + 6) * x + (tl.load(camera + 7) * y + tl.load(camera + 23))
    u_x = x + (depth * (turn_x - x * turn_z) + (b_x - x * (b_z + EPSILON))) * scale
    u_y = y + (depth * (turn_y - y * turn_z) + (b_y - y * (b_z + EPSILON))) * scale
    return ray_x, ray_y, ray_z, u_x, u_y, q_z, scale
