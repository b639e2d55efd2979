// From a reference pixel to where it lies in the source image, and back with gradients.
//
//   q = K · (R · depth · K⁻¹ · p + t) = depth · (A p) + b        p = (x, y, 1),  A = K R K⁻¹,  b = K t
//   u = q_xy / (q_z + 1e-5)
//
// A motion is added to q: (m_x, m_y, 0) for a 2-D one, K m for a 3-D one.
#pragma once

#include "lanes.h"

namespace mcd::MCD_TARGET {

constexpr double kEpsilon = 1e-5;  // of the divisor
constexpr double kNearest = 1e-3;  // q_z beyond which a pixel is valid

template <typename T, typename V> MCD_HD void apply(const T* a, const V* v, V* out) {
  for (int i = 0; i < 3; ++i) out[i] = a[3 * i] * v[0] + a[3 * i + 1] * v[1] + a[3 * i + 2] * v[2];
}
template <typename T, typename V> MCD_HD void apply_transposed(const T* a, const V* v, V* out) {
  for (int i = 0; i < 3; ++i) out[i] = a[i] * v[0] + a[3 + i] * v[1] + a[6 + i] * v[2];
}
MCD_HD void matmul3(const double* a, const double* b, double* out) {
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) out[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
}
MCD_HD void transpose3(const double* a, double* out) {
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) out[3 * i + j] = a[3 * j + i];
}
MCD_HD void inverse3(const double* a, double* out) {
  const double c0 = a[4] * a[8] - a[5] * a[7], c1 = a[5] * a[6] - a[3] * a[8], c2 = a[3] * a[7] - a[4] * a[6];
  const double scale = 1 / (a[0] * c0 + a[1] * c1 + a[2] * c2);
  out[0] = c0 * scale, out[1] = (a[2] * a[7] - a[1] * a[8]) * scale, out[2] = (a[1] * a[5] - a[2] * a[4]) * scale;
  out[3] = c1 * scale, out[4] = (a[0] * a[8] - a[2] * a[6]) * scale, out[5] = (a[2] * a[3] - a[0] * a[5]) * scale;
  out[6] = c2 * scale, out[7] = (a[1] * a[6] - a[0] * a[7]) * scale, out[8] = (a[0] * a[4] - a[1] * a[3]) * scale;
}

// K, R, t of one sample in double: a dozen numbers, folded once a row, so their rounding never shows in a pixel.
struct Pose {
  double K[9], R[9], t[3];
};
template <typename T> MCD_HD Pose load_pose(const T* K, const T* T_src_ref) {
  Pose pose;
  for (int i = 0; i < 9; ++i) pose.K[i] = K[i], pose.R[i] = T_src_ref[i / 3 * 4 + i % 3];
  for (int i = 0; i < 3; ++i) pose.t[i] = T_src_ref[4 * i + 3];
  return pose;
}

template <typename T> struct Camera {
  T A[9], b[3], K[9];
};
template <typename T> MCD_HD Camera<T> make_camera(const T* K, const T* T_src_ref) {
  const Pose pose = load_pose(K, T_src_ref);
  double inverse[9], rotated[9], A[9];
  inverse3(pose.K, inverse);
  matmul3(pose.R, inverse, rotated);
  matmul3(pose.K, rotated, A);
  double b[3];
  apply(pose.K, pose.t, b);
  Camera<T> camera;
  for (int i = 0; i < 9; ++i) camera.A[i] = T(A[i]), camera.K[i] = T(pose.K[i]);
  for (int i = 0; i < 3; ++i) camera.b[i] = T(b[i]);
  return camera;
}

// Pixels on their way: ray = A p, u (not clamped), q_z, and 1 / (q_z + 1e-5).
template <typename V> struct Projection {
  V ray[3], u_x, u_y, q_z, scale;
};
// `shift` is the motion in the units of q, or zeros.
template <typename V>
MCD_HD Projection<V> project(const Camera<Scalar<V>>& camera, V x, Scalar<V> y, V depth, const V* shift) {
  Projection<V> p;
  for (int i = 0; i < 3; ++i) p.ray[i] = camera.A[3 * i] * x + (camera.A[3 * i + 1] * y + camera.A[3 * i + 2]);
  p.q_z = depth * p.ray[2] + (camera.b[2] + shift[2]);
  p.scale = reciprocal<V>(p.q_z + Scalar<V>(kEpsilon));
  p.u_x = (depth * p.ray[0] + (camera.b[0] + shift[0])) * p.scale;
  p.u_y = (depth * p.ray[1] + (camera.b[1] + shift[1])) * p.scale;
  return p;
}
// Gradient to q from one to u.
template <typename V> MCD_HD void project_grad(const Projection<V>& p, V grad_x, V grad_y, V* grad_q) {
  grad_q[0] = grad_x * p.scale;
  grad_q[1] = grad_y * p.scale;
  grad_q[2] = -(grad_q[0] * p.u_x + grad_q[1] * p.u_y);
}

// Gradients to K and T_src_ref of one sample, from sums over its pixels: grad_A = Σ grad_q (depth p)ᵀ, grad_b = Σ grad_q,
// grad_motion_K = Σ grad_q mᵀ (3-D motion m, else zeros).
template <typename T>
MCD_HD void camera_grad(
    const Pose& pose, const double* grad_A, const double* grad_b, const double* grad_motion_K, T* grad_K, T* grad_T) {
  double inverse[9], inverse_t[9], K_t[9], R_t[9], left[9], grad_R[9], grad_t[3];
  inverse3(pose.K, inverse);
  transpose3(inverse, inverse_t);
  transpose3(pose.K, K_t);
  transpose3(pose.R, R_t);
  matmul3(K_t, grad_A, left);
  matmul3(left, inverse_t, grad_R);  // Kᵀ grad_A K⁻ᵀ
  apply(K_t, grad_b, grad_t);
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) grad_T[4 * i + j] = T(grad_R[3 * i + j]);
    grad_T[4 * i + 3] = T(grad_t[i]);
  }
  for (int j = 0; j < 4; ++j) grad_T[12 + j] = 0;

  double grad_inverse[9], half[9], through_inverse[9], rotated[9], rotated_t[9], direct[9];
  matmul3(R_t, left, grad_inverse);
  matmul3(inverse_t, grad_inverse, half);
  matmul3(half, inverse_t, through_inverse);  // the adjoint of inversion is -K⁻ᵀ … K⁻ᵀ
  matmul3(pose.R, inverse, rotated);
  transpose3(rotated, rotated_t);
  matmul3(grad_A, rotated_t, direct);
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j)
      grad_K[3 * i + j] =
          T(direct[3 * i + j] - through_inverse[3 * i + j] + grad_b[i] * pose.t[j] + grad_motion_K[3 * i + j]);
}

}  // namespace mcd::MCD_TARGET
