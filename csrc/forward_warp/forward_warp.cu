#include "forward_warp.h"

#include <type_traits>

#include "../common/fixed_point.cuh"
#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockCells = 1024;  // of a block that sums

// Forward and backward find the cameras by this same kernel, so that backward finds the very rays that won. In forward it
// also empties the z-buffer, four words a thread.
template <typename T, typename image_t> struct Prepare {
  static constexpr int kWords = 4;
  ForwardWarpParams<T, image_t> p;
  WarpCameras<T>* cameras;  // [B]
  unsigned long long* keys;
  int64_t words;

  MCD_HD int64_t threads() const { return max((words + kWords - 1) / kWords, p.batch); }
  __device__ void operator()(int64_t i) const {
    if (i < p.batch) cameras[i] = p.cameras(i);
#pragma unroll
    for (int k = 0; k < kWords; ++k)
      if (const int64_t at = i + k * threads(); at < words) keys[at] = ~0ull;
  }
};

// The rays of a pixel: q of the first, and how it changes from one to the next. Forward and backward find them by this same
// code, rounded alike.
template <typename T> struct RaysOfPixel {
  T first[3], across[3], down[3];
  bool some;  // can land

  template <typename Params>
  __device__ RaysOfPixel(const Params& p, const Camera<T>& there, int x, int y, T depth, const T* shift, int upscale)
      : some(depth > 0) {
    const T x_ray = T(x) + p.offset(0, upscale), y_ray = T(y) + p.offset(0, upscale), step = depth / T(upscale);
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const T ray = fused<T>(there.A[3 * k], x_ray, fused<T>(there.A[3 * k + 1], y_ray, there.A[3 * k + 2]));
      first[k] = fused<T>(depth, ray, shift[k]);
      across[k] = step * there.A[3 * k], down[k] = step * there.A[3 * k + 1];
    }
  }
  __device__ Landing<T> land(int column, int row, int height, int width) const {
    T q[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) q[k] = fused<T>(T(column), across[k], fused<T>(T(row), down[k], first[k]));
    const T over = reciprocal<T>(q[2]), half = T(0.5), u_x = fused<T>(q[0], over, half), u_y = fused<T>(q[1], over, half);
    // Comparisons with NaN are false.
    const bool lands = some && q[2] > T(kNearest) && q[2] < T(__builtin_inff()) && u_x >= 0 && u_x < T(width) && u_y >= 0 &&
                       u_y < T(height);
    return {lands ? int(u_y) * width + int(u_x) : -1, q[2]};
  }
};

// The z-buffer: the atomic minimum of (depth, ray) as one number of 64 bits, of which positive floats are ordered like
// integers; in float64 that of the depths first, then that of the rays which reach it. kUpscale: that of the parameters, or 0
// for any.
template <typename T, typename image_t, int kUpscale, bool kFindRay> struct Splat {
  ForwardWarpParams<T, image_t> p;
  const WarpCameras<T>* cameras;
  unsigned long long *keys, *rays;  // [B, H, W]

  __device__ void operator()(int64_t i) const {
    const auto [b, pixel] = divide(i, p.pixels());
    const int upscale = kUpscale ? kUpscale : p.upscale;
    const int y = int(unsigned(pixel) / unsigned(p.width)), x = int(pixel) - y * p.width;
    const Camera<T>& there = cameras[b].there;
    T shift[3];
    p.template load_shift<T>(there, b, pixel, 1, shift);
    const RaysOfPixel<T> own(p, there, x, y, p.depth[i], shift, upscale);
    unsigned long long* image = keys + b * p.pixels();
    const unsigned first_ray = unsigned(pixel) * unsigned(upscale * upscale);
    // Most rays of a pixel land in its last ray's cell: the nearest of them is all that the atomic has to see.
    int32_t cell = -1;
    T nearest = 0;
    unsigned winner = 0;
#pragma unroll
    for (int row = 0; row < upscale; ++row)
#pragma unroll
      for (int step = 0; step < upscale; ++step) {
        const int column = row % 2 ? upscale - 1 - step : step;  // to and fro, so that the next ray is a neighbour
        const auto landing = own.land(column, row, p.height, p.width);
        const unsigned ray = first_ray + row * upscale + column;
        if constexpr (sizeof(T) == 4) {
          const bool same = landing.cell == cell;
          if (!same && cell >= 0) atomicMin(image + cell, key_of_ray(nearest, winner));
          if (!same || landing.z < nearest || (landing.z == nearest && ray < winner)) nearest = landing.z, winner = ray;
          cell = landing.cell;
        } else if (landing.cell >= 0) {
          const unsigned long long bits = __double_as_longlong(landing.z);
          if constexpr (!kFindRay)
            atomicMin(image + landing.cell, bits);
          else if (image[landing.cell] == bits)
            atomicMin(rays + b * p.pixels() + landing.cell, static_cast<unsigned long long>(ray));
        }
      }
    if constexpr (sizeof(T) == 4)
      if (cell >= 0) atomicMin(image + cell, key_of_ray(nearest, winner));
  }

  static __device__ unsigned long long key_of_ray(float z, unsigned ray) {
    return static_cast<unsigned long long>(__float_as_uint(z)) << 32 | ray;
  }
};

template <typename T, typename image_t, int kUpscale> struct Resample {
  ForwardWarpParams<T, image_t> p;
  const WarpCameras<T>* cameras;
  const unsigned long long *keys, *rays;
  image_t* warped;
  T* z;
  int32_t* winner;
  int16_t* ray;

  __device__ void operator()(int64_t i) const {
    const auto [b, pixel] = divide(i, p.pixels());
    const int y = int(unsigned(pixel) / unsigned(p.width)), x = int(pixel) - y * p.width;
    const unsigned count = kUpscale ? kUpscale * kUpscale : p.upscale * p.upscale;
    const unsigned long long key = keys[i];
    const bool hit = key != ~0ull;
    const unsigned number = sizeof(T) == 4 ? unsigned(key) : hit ? unsigned(rays[i]) : 0;
    const T depth = !hit ? T(0) : sizeof(T) == 4 ? T(__uint_as_float(unsigned(key >> 32))) : T(__longlong_as_double(key));
    const int32_t won = hit ? int32_t(number / count) : -1;
    z[i] = depth, winner[i] = won, ray[i] = hit ? int16_t(number % count) : 0;
    const auto cells = look_at_cells<T>(p, cameras[b], depth, won, b, y, x);
    const Footprint<T> around = cells.around(p.height, p.width);
    const image_t* from = p.attribute + b * p.channels * p.pixels();
    image_t* to = warped + b * p.channels * p.pixels() + pixel;
    for (int c = 0; c < p.channels; ++c, from += p.pixels(), to += p.pixels()) {
      const auto patch = load_patch<T>(from, around);
      store(to, hit ? bilinear(patch, cells.corner.w_x, cells.corner.w_y) : T(0), 1);
    }
  }
};

template <typename T, typename image_t> struct CellGradients {
  ForwardWarpParams<T, image_t> p;
  const WarpCameras<T>* cameras;
  const image_t* grad_warped;
  const T *grad_z, *z;
  const int32_t* winner;
  const int16_t* ray;
  T* to_z;       // [B, H, W]
  T* to_motion;  // [B, 3, H, W] with a motion
  double* sums;  // [B, blocks, kWarpSums]

  MCD_HD int blocks() const { return int((p.pixels() + kBlockCells - 1) / kBlockCells); }
};
template <typename T, typename image_t>
__global__ void __launch_bounds__(kThreads) cell_gradients_of(CellGradients<T, image_t> grad) {
  const auto& p = grad.p;
  const int64_t b = blockIdx.x / grad.blocks(), first = blockIdx.x % grad.blocks() * int64_t(kBlockCells);
  const WarpCameras<T>& cameras = grad.cameras[b];
  T sums[kWarpSums] = {};
  for (int64_t i = first + threadIdx.x; i < min<int64_t>(first + kBlockCells, p.pixels()); i += kThreads) {
    const int y = int(unsigned(i) / unsigned(p.width)), x = int(i) - y * p.width, k = grad.ray[b * p.pixels() + i];
    const auto cells = look_at_cells<T>(p, cameras, grad.z, grad.winner, b, y, x, 1);
    const T x_ray = T(cells.winner % p.width) + p.offset(k % p.upscale);
    const T y_ray = T(cells.winner / p.width) + p.offset(k / p.upscale);
    T to_motion[3];
    grad.to_z[b * p.pixels() + i] = cell_gradients<T>(
        p, cameras, cells, grad.grad_warped, grad.grad_z, b, y, x, 1, x_ray, y_ray, sums, to_motion);
    if (p.motion)
      for (int j = 0; j < 3; ++j) grad.to_motion[(b * 3 + j) * p.pixels() + i] = to_motion[j];
  }
  double totals[kWarpSums];
  for (int j = 0; j < kWarpSums; ++j) totals[j] = sums[j];
  block_sum<kThreads>(totals);
  if (threadIdx.x == 0)
    for (int j = 0; j < kWarpSums; ++j) grad.sums[blockIdx.x * kWarpSums + j] = totals[j];
}

// The gradient to a sample's camera: a thread adds up each of the sums.
template <typename T>
__global__ void __launch_bounds__(32) finish_cameras(
    const T* K, const T* T_dst_ref, const double* sums, int blocks, T* grad_T) {
  static_assert(kWarpSums <= 32, "a thread for each sum");
  __shared__ double totals[kWarpSums];
  const int64_t b = blockIdx.x;
  if (threadIdx.x < kWarpSums) {
    double total = 0;
    for (int64_t block = b * blocks; block < (b + 1) * blocks; ++block) total += sums[block * kWarpSums + threadIdx.x];
    totals[threadIdx.x] = total;
  }
  __syncthreads();
  if (threadIdx.x == 0) warp_camera_grad(K + 9 * b, T_dst_ref + 16 * b, totals, grad_T + 16 * b);
}

// What a source pixel gets from the cells that its rays have won: gathered, so that the order of the sum is fixed.
template <typename T, typename image_t, int kUpscale> struct GatherGradients {
  CellGradients<T, image_t> from;
  T *grad_depth, *grad_motion;

  __device__ void operator()(int64_t i) const {
    const auto& p = from.p;
    const auto [b, pixel] = divide(i, p.pixels());
    const int upscale = kUpscale ? kUpscale : p.upscale;
    const int y = int(unsigned(pixel) / unsigned(p.width)), x = int(pixel) - y * p.width;
    const Camera<T>& there = from.cameras[b].there;
    T shift[3], depth = 0, motion[3] = {};
    p.template load_shift<T>(there, b, pixel, 1, shift);
    const RaysOfPixel<T> own(p, there, x, y, p.depth[i], shift, upscale);
#pragma unroll
    for (int k = 0; k < upscale * upscale; ++k) {
      const auto landing = own.land(k % upscale, k / upscale, p.height, p.width);
      const int64_t cell = b * p.pixels() + landing.cell;
      if (landing.cell < 0 || from.winner[cell] != pixel || from.ray[cell] != k) continue;
      const T x_ray = T(x) + p.offset(k % upscale, upscale), y_ray = T(y) + p.offset(k / upscale, upscale);
      depth += from.to_z[cell] * (there.A[6] * x_ray + (there.A[7] * y_ray + there.A[8]));
      if (p.motion)
        for (int j = 0; j < 3; ++j) motion[j] += from.to_motion[(b * 3 + j) * p.pixels() + landing.cell];
    }
    grad_depth[i] = depth;
    if (p.motion)
      for (int j = 0; j < 3; ++j) grad_motion[(b * 3 + j) * p.pixels() + pixel] = motion[j];
  }
};

template <typename T, typename image_t> struct ScatterAttribute {
  CellGradients<T, image_t> from;
  FixedPoint sum;  // [B, C, H, W]

  __device__ void operator()(int64_t i) const {
    const auto& p = from.p;
    if (from.winner[i] < 0) return;
    const auto [b, pixel] = divide(i, p.pixels());
    const int y = int(unsigned(pixel) / unsigned(p.width)), x = int(pixel) - y * p.width;
    const auto at = look_at_cells<T>(p, from.cameras[b], from.z, from.winner, b, y, x, 1).corner;
    const int right = at.column < p.width - 1 ? 1 : 0, down = at.row < p.height - 1 ? p.width : 0;
    const double scale = sum.scale();
    for (int c = 0; c < p.channels; ++c) {
      const int64_t plane = (b * p.channels + c) * p.pixels();
      const int64_t upper = plane + int64_t(at.row) * p.width + at.column;
      const T upstream = load<T>(from.grad_warped + plane + pixel, 1);
      const T bottom = at.w_y * upstream, top = upstream - bottom;
      sum.add(upper, (1 - at.w_x) * top, scale);
      sum.add(upper + right, at.w_x * top, scale);
      sum.add(upper + down, (1 - at.w_x) * bottom, scale);
      sum.add(upper + down + right, at.w_x * bottom, scale);
    }
  }
};

// Calls f with the upscale as a constant where it is the usual one, else with 0.
template <typename F> void with_upscale(int upscale, const F& f) {
  if (upscale == 3)
    f(std::integral_constant<int, 3>{});
  else
    f(std::integral_constant<int, 0>{});
}

}  // namespace

void forward_warp_fwd(
    const Tensor& attribute, const Tensor& depth, const Tensor& K, const Tensor& T_dst_ref, const Tensor& motion,
    int64_t upscale, const Tensor& warped, const Tensor& depth_dst, const Tensor& winner, const Tensor& ray,
    const Tensor& cameras, const Tensor& keys, const Where& where) {
  const char* name = "forward_warp_fwd";
  dispatch(depth.dtype, attribute.dtype, [&](auto scalar, auto image) {
    using T = decltype(scalar);
    using image_t = decltype(image);
    const auto p = forward_warp_params<T, image_t>(attribute, depth, K, T_dst_ref, motion, upscale);
    const int64_t size = p.batch * p.pixels();
    if (size == 0) return;
    if (p.pixels() * p.upscale * p.upscale > 0xffffffff)
      throw std::invalid_argument("forward_warp: more than 2^32 rays in an image");
    auto* found = cameras.as<WarpCameras<T>>();
    auto *best = keys.as<unsigned long long>(), *rays = sizeof(T) == 4 ? best : best + size;
    const Prepare<T, image_t> prepare{p, found, best, size * int64_t(sizeof(T) / 4)};
    for_each_cuda(prepare.threads(), where.stream, name, prepare);
    with_upscale(p.upscale, [&](auto upscale) {
      constexpr int kUpscale = upscale;
      for_each_cuda(size, where.stream, name, Splat<T, image_t, kUpscale, false>{p, found, best, rays});
      if constexpr (sizeof(T) == 8)
        for_each_cuda(size, where.stream, name, Splat<T, image_t, kUpscale, true>{p, found, best, rays});
      for_each_cuda(
          size, where.stream, name,
          Resample<T, image_t, kUpscale>{p, found, best, rays, warped.as<image_t>(), depth_dst.as<T>(),
                                         winner.as<int32_t>(), ray.as<int16_t>()});
    });
  });
}

void forward_warp_bwd(
    const Tensor& grad_warped, const Tensor& grad_depth_dst, const Tensor& attribute, const Tensor& depth,
    const Tensor& K, const Tensor& T_dst_ref, const Tensor& motion, const Tensor& depth_dst, const Tensor& winner,
    const Tensor& ray, int64_t upscale, bool need_attribute, bool need_geometry, const Tensor& grad_attribute,
    const Tensor& grad_depth, const Tensor& grad_T, const Tensor& grad_motion, const Tensor& cameras,
    const Tensor& cells, const Tensor& block_sums, const Tensor& fixed_point, const Where& where) {
  const char* name = "forward_warp_bwd";
  dispatch(depth.dtype, attribute.dtype, [&](auto scalar, auto image) {
    using T = decltype(scalar);
    using image_t = decltype(image);
    const auto p = forward_warp_params<T, image_t>(attribute, depth, K, T_dst_ref, motion, upscale);
    const int64_t size = p.batch * p.pixels();
    if (size == 0) return;
    auto* found = cameras.as<WarpCameras<T>>();
    for_each_cuda(p.batch, where.stream, name, Prepare<T, image_t>{p, found, nullptr, 0});
    const CellGradients<T, image_t> from{
        p, found, grad_warped.as<image_t>(), grad_depth_dst.as<T>(), depth_dst.as<T>(), winner.as<int32_t>(),
        ray.as<int16_t>(), cells.as<T>(), cells.as<T>() + size, block_sums.as<double>()};
    if (need_geometry) {
      cell_gradients_of<T, image_t><<<unsigned(p.batch * from.blocks()), kThreads, 0, cudaStream_t(where.stream)>>>(from);
      check_launch(name);
      finish_cameras<T><<<unsigned(p.batch), 32, 0, cudaStream_t(where.stream)>>>(
          p.K, p.T_dst_ref, from.sums, from.blocks(), grad_T.as<T>());
      check_launch(name);
      with_upscale(p.upscale, [&](auto upscale) {
        constexpr int kUpscale = upscale;
        for_each_cuda(
            size, where.stream, name,
            GatherGradients<T, image_t, kUpscale>{from, grad_depth.as<T>(), grad_motion.as<T>()});
      });
    }
    if (need_attribute) {
      const int64_t count = size * p.channels;
      const FixedPoint sum{fixed_point.as<unsigned long long>(), fixed_point.as<unsigned long long>() + count,
                           p.pixels()};
      clear_fixed_point(sum, count, from.grad_warped, count, where.stream, name);
      for_each_cuda(size, where.stream, name, ScatterAttribute<T, image_t>{from, sum});
      read_fixed_point(sum, count, grad_attribute.as<image_t>(), where.stream, name);
    }
  });
}

}  // namespace mcd::MCD_TARGET
