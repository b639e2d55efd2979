// Forward warp: what its CPU loops and CUDA kernels share. The formula stands in mcd/ops/forward_warp.py.
#pragma once

#include "../common/bilinear.h"
#include "../common/camera.h"
#include "../common/dispatch.h"

namespace mcd::MCD_TARGET {

// a · b + c, rounded the same wherever it is compiled into: backward finds the rays again that forward has splatted.
template <typename V> MCD_HD V fused(V a, V b, V c) {
#ifdef __CUDA_ARCH__
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

// There and back: q = depth · (A p) + b + K m into the destination, and back with R' = Rᵀ, t' = -Rᵀ t.
template <typename T> struct WarpCameras {
  Camera<T> there, back;
  T undo[9];  // K Rᵀ: what a motion moves the way back by
};
template <typename T> MCD_HD WarpCameras<T> make_warp_cameras(const T* K, const T* T_dst_ref) {
  T inverse[16] = {};
  for (int i = 0; i < 3; ++i) {
    double shift = 0;
    for (int j = 0; j < 3; ++j) {
      inverse[4 * i + j] = T_dst_ref[4 * j + i];
      shift -= double(T_dst_ref[4 * j + i]) * double(T_dst_ref[4 * j + 3]);
    }
    inverse[4 * i + 3] = T(shift);
  }
  WarpCameras<T> cameras{make_camera(K, T_dst_ref), make_camera(K, static_cast<const T*>(inverse)), {}};
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 3; ++k) cameras.undo[3 * i + j] += K[3 * i + k] * T_dst_ref[4 * j + k];
  return cameras;
}

template <typename T, typename image_t> struct ForwardWarpParams {
  const image_t* attribute;  // [B, C, H, W]
  const T* depth;            // [B, 1, H, W]
  const T* K;                // [B, 3, 3]
  const T* T_dst_ref;        // [B, 4, 4]
  const T* motion;           // [B, 3, H, W] or null
  int64_t batch;
  int channels, height, width, upscale;

  MCD_HD int64_t pixels() const { return int64_t(height) * width; }
  MCD_HD WarpCameras<T> cameras(int64_t b) const { return make_warp_cameras(K + 9 * b, T_dst_ref + 16 * b); }
  // Offset of ray i of `upscale` along an axis.
  MCD_HD T offset(int i) const { return offset(i, upscale); }
  static MCD_HD T offset(int i, int upscale) { return (T(i) - T(upscale - 1) / 2) / T(upscale); }
  // b + K m of pixels from `at` on.
  template <typename V> MCD_HD void load_shift(const Camera<T>& there, int64_t b, int64_t at, int count, V* shift) const {
    for (int i = 0; i < 3; ++i) shift[i] = splat<V>(there.b[i]);
    if (motion)
      for (int j = 0; j < 3; ++j) {
      const V m = load<V>(motion + (b * 3 + j) * pixels() + at, count);
      for (int i = 0; i < 3; ++i) shift[i] = fused<V>(splat<V>(there.K[3 * i + j]), m, shift[i]);
    }
  }
};
template <typename T, typename image_t>
ForwardWarpParams<T, image_t> forward_warp_params(
    const Tensor& attribute, const Tensor& depth, const Tensor& K, const Tensor& T_dst_ref, const Tensor& motion,
    int64_t upscale) {
  return {attribute.as<image_t>(), depth.as<T>(), K.as<T>(), T_dst_ref.as<T>(), motion.as<T>(), depth.size[0],
          int(attribute.size[1]), int(depth.size[2]), int(depth.size[3]), int(upscale)};
}

// Where rays land: the cell y·W + x and the depth there, which is infinite if they land nowhere.
template <typename V> struct Landing {
  Int<V> cell;
  V z;
};
// `shift` is b + K m.
template <typename V>
MCD_HD Landing<V> land(const Camera<Scalar<V>>& there, V x, V y, V depth, const V* shift, int height, int width) {
  using T = Scalar<V>;
  V q[3];
  for (int i = 0; i < 3; ++i) {
    const V ray = fused<V>(splat<V>(there.A[3 * i]), x,
                           fused<V>(splat<V>(there.A[3 * i + 1]), y, splat<V>(there.A[3 * i + 2])));
    q[i] = fused<V>(depth, ray, shift[i]);
  }
  const V over = reciprocal<V>(q[2]), half = splat<V>(T(0.5));
  const V column = fused<V>(q[0], over, half), row = fused<V>(q[1], over, half);
  // Comparisons with NaN are false.
  const Mask<V> lands = (depth > 0) & (q[2] > T(kNearest)) & (column >= 0) & (column < T(width)) & (row >= 0) &
                        (row < T(height));
  const Int<V> x_cell = convert<Int<V>>(select<V>(lands, column, V{}));
  const Int<V> y_cell = convert<Int<V>>(select<V>(lands, row, V{}));
  return {y_cell * width + x_cell, select<V>(lands, q[2], splat<V>(T(__builtin_inff())))};
}

// A cell's look back: where it reads the attribute, from its depth z and, with a motion, its winner's.
template <typename V> struct LookBack {
  V z, ray[3], u_x, u_y, scale;  // scale: 1 / p_z
};
template <typename V>
MCD_HD LookBack<V> look_back(
    const WarpCameras<Scalar<V>>& cameras, V x, Scalar<V> y, V z, bool moves, const V* motion) {
  LookBack<V> at;
  V p[3], undone[3] = {};
  if (moves) apply(cameras.undo, motion, undone);
  for (int i = 0; i < 3; ++i) {
    at.ray[i] = cameras.back.A[3 * i] * x + (cameras.back.A[3 * i + 1] * y + cameras.back.A[3 * i + 2]);
    p[i] = z * at.ray[i] + (cameras.back.b[i] - undone[i]);
  }
  at.z = z;
  at.scale = reciprocal<V>(p[2]);
  at.u_x = p[0] * at.scale, at.u_y = p[1] * at.scale;
  return at;
}
// Gradient to p from that to u, zero where u is clamped.
template <typename V>
MCD_HD void look_back_grad(const LookBack<V>& at, int height, int width, V grad_x, V grad_y, V* grad_p) {
  using T = Scalar<V>;
  const Mask<V> moves_x = moves_freely(at.u_x, T(width - 1)), moves_y = moves_freely(at.u_y, T(height - 1));
  grad_p[0] = select<V>(moves_x, grad_x * at.scale, V{});
  grad_p[1] = select<V>(moves_y, grad_y * at.scale, V{});
  grad_p[2] = -(select<V>(moves_x, grad_p[0] * at.u_x, V{}) + select<V>(moves_y, grad_p[1] * at.u_y, V{}));
}

// Sums over a sample's cells, from which the gradient to T_dst_ref follows: on the way back of grad_p · z · (x, y, 1), of
// grad_p, and of m · (Kᵀ grad_p)ᵀ; on the way there of grad_z · depth · (x', y', 1) and grad_z.
enum { kBackX = 0, kBackY = 3, kBackOne = 6, kBackB = 9, kBackMotion = 12, kThere = 21, kThereB = 24, kWarpSums = 25 };

// What a pack of cells saw: their winners, and the look back.
template <typename V> struct Cells {
  Int<V> winner;  // 0 in a hole
  Mask<V> hit;
  V motion[3];  // the winner's
  LookBack<V> at;
  Corner<V> corner;

  MCD_HD Footprint<V> around(int height, int width) const { return footprint<V>(corner, height, width); }
};
// From their depths and winners, 0 and -1 in a hole.
template <typename V, typename T, typename image_t>
MCD_HD Cells<V> look_at_cells(
    const ForwardWarpParams<T, image_t>& p, const WarpCameras<T>& cameras, V z, Int<V> winner, int64_t b, int y, int x) {
  Cells<V> cells;
  cells.hit = z > 0;
  cells.winner = max<Int<V>>(winner, Int<V>{});
  if (p.motion)
    for (int i = 0; i < 3; ++i)
    cells.motion[i] = select<V>(cells.hit, gather<V>(p.motion + (b * 3 + i) * p.pixels(), cells.winner), V{});
  cells.at = look_back<V>(
      cameras, T(x) + iota<V>(), T(y), select<V>(cells.hit, z, splat<V>(1)), p.motion != nullptr, cells.motion);
  cells.corner = corner<V>(cells.at.u_x, cells.at.u_y, p.height, p.width);
  return cells;
}
template <typename V, typename T, typename image_t>
MCD_HD Cells<V> look_at_cells(
    const ForwardWarpParams<T, image_t>& p, const WarpCameras<T>& cameras, const T* z, const int32_t* winner, int64_t b,
    int y, int x, int count) {
  const int64_t at = b * p.pixels() + int64_t(y) * p.width + x;
  return look_at_cells<V>(p, cameras, load<V>(z + at, count), read_lanes<Int<V>>(winner + at, count), b, y, x);
}

// The gradients that cells pass on: returns that to z, adds the cameras' sums, finds that to the winners' motion. (x_ray,
// y_ray) is where the winning rays started.
template <typename V, typename T, typename image_t>
MCD_HD V cell_gradients(
    const ForwardWarpParams<T, image_t>& p, const WarpCameras<T>& cameras, const Cells<V>& cells,
    const image_t* grad_warped, const T* grad_z, int64_t b, int y, int x, int count, V x_ray, V y_ray, V* sums,
    V* to_motion) {
  const int64_t at = int64_t(y) * p.width + x;
  const V zero{}, z = cells.at.z, columns = T(x) + iota<V>();
  V grad_x{}, grad_y{}, grad_p[3], seen[3];
  const Footprint<V> around = cells.around(p.height, p.width);
  for (int c = 0; c < p.channels; ++c) {
    const int64_t plane = (b * p.channels + c) * p.pixels();
    const auto patch = load_patch<V>(p.attribute + plane, around);
    V by_x, by_y;
    bilinear_grad(patch, cells.corner.w_x, cells.corner.w_y, &by_x, &by_y);
    const V upstream = load<V>(grad_warped + plane + at, count);
    grad_x += upstream * by_x;
    grad_y += upstream * by_y;
  }
  look_back_grad<V>(cells.at, p.height, p.width, grad_x, grad_y, grad_p);
  for (int k = 0; k < 3; ++k) grad_p[k] = select<V>(cells.hit, grad_p[k], zero);
  V to_z = load<V>(grad_z + b * p.pixels() + at, count);
  for (int k = 0; k < 3; ++k) to_z += grad_p[k] * cells.at.ray[k];
  to_z = select<V>(cells.hit, to_z, zero);

  const V depth = select<V>(cells.hit, gather<V>(p.depth + b * p.pixels(), cells.winner), zero);
  for (int k = 0; k < 3; ++k) {
    const V by_z = grad_p[k] * z;
    sums[kBackX + k] += by_z * columns;
    sums[kBackY + k] += by_z * T(y);
    sums[kBackOne + k] += by_z;
    sums[kBackB + k] += grad_p[k];
  }
  sums[kThere] += to_z * depth * x_ray;
  sums[kThere + 1] += to_z * depth * y_ray;
  sums[kThere + 2] += to_z * depth;
  sums[kThereB] += to_z;
  if (!p.motion) return to_z;

  apply_transposed(cameras.there.K, grad_p, seen);
  for (int k = 0; k < 9; ++k) sums[kBackMotion + k] += cells.motion[k / 3] * seen[k % 3];
  apply_transposed(cameras.undo, grad_p, to_motion);
  for (int k = 0; k < 3; ++k) to_motion[k] = to_z * cameras.there.K[6 + k] - to_motion[k];
  return to_z;
}

template <typename T> MCD_HD void warp_camera_grad(const T* K, const T* T_dst_ref, const double* sums, T* grad_T) {
  const Pose there = load_pose(K, T_dst_ref);
  Pose back = there;
  transpose3(there.R, back.R);
  apply(back.R, there.t, back.t);
  for (int i = 0; i < 3; ++i) back.t[i] = -back.t[i];

  double grad_A[9] = {}, grad_b[3] = {}, grad_K[9], to_there[16], to_back[16];
  const double no_motion[9] = {};
  for (int k = 0; k < 3; ++k) grad_A[6 + k] = sums[kThere + k];
  grad_b[2] = sums[kThereB];
  camera_grad(there, grad_A, grad_b, no_motion, grad_K, to_there);
  for (int k = 0; k < 3; ++k) {
    grad_A[3 * k] = sums[kBackX + k], grad_A[3 * k + 1] = sums[kBackY + k], grad_A[3 * k + 2] = sums[kBackOne + k];
    grad_b[k] = sums[kBackB + k];
  }
  camera_grad(back, grad_A, grad_b, no_motion, grad_K, to_back);
  // R' = Rᵀ and t' = -Rᵀ (t + m).
  for (int i = 0; i < 3; ++i) {
    double grad_t = to_there[4 * i + 3];
    for (int j = 0; j < 3; ++j) {
      const double grad_R = to_there[4 * i + j] + to_back[4 * j + i] - there.t[i] * to_back[4 * j + 3] -
                            sums[kBackMotion + 3 * i + j];
      grad_T[4 * i + j] = T(grad_R);
      grad_t -= there.R[3 * i + j] * to_back[4 * j + 3];
    }
    grad_T[4 * i + 3] = T(grad_t);
  }
  for (int j = 0; j < 4; ++j) grad_T[12 + j] = 0;
}

}  // namespace mcd::MCD_TARGET
