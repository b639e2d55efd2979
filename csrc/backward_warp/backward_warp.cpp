#include "backward_warp.h"

#include <type_traits>
#include <vector>

#include "../common/for_each.h"
#include "../operators.h"

namespace mcd {
namespace {

// A row is walked in chunks whose intermediate values stay in the L1 cache; each loop over a chunk vectorises.
constexpr int kChunk = 128;

template <typename scalar_t, typename image_t, int kMotion>
MCD_HD void load_depth(
    const BackwardWarpParams<scalar_t, image_t, kMotion>& p, int64_t b, int y, int start, int count, scalar_t* out) {
  if (p.full_depth()) {
    const scalar_t* row = p.depth + b * p.pixels() + int64_t(y) * p.width + start;
    for (int i = 0; i < count; ++i) out[i] = row[i];
    return;
  }
  for (int i = 0; i < count; ++i) out[i] = p.depth_at(b, y, start + i);
}

template <typename scalar_t> struct CornersChunk {
  int32_t index[kChunk], right[kChunk], down[kChunk];
  scalar_t w_x[kChunk], w_y[kChunk];

  MCD_HD void set(int i, const Corners<scalar_t>& at) {
    index[i] = at.index, right[i] = at.right, down[i] = at.down, w_x[i] = at.w_x, w_y[i] = at.w_y;
  }
  MCD_HD Corners<scalar_t> get(int i) const { return {index[i], right[i], down[i], w_x[i], w_y[i]}; }
};

template <typename scalar_t, typename image_t, int kMotion> struct FwdRow {
  BackwardWarpFwd<scalar_t, image_t, kMotion> fwd;

  MCD_HD void operator()(int64_t row) const {
    const auto& p = fwd.params;
    const int64_t b = row / p.height;
    const int y = int(row % p.height);
    const Camera<scalar_t> camera = p.camera(b);
    CornersChunk<scalar_t> at;
    scalar_t depth[kChunk], spoiled[kChunk];
    for (int start = 0; start < p.width; start += kChunk) {
      const int count = min(kChunk, p.width - start);
      load_depth(p, b, y, start, count, depth);
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const auto pixel = look(p, camera, b, y, start + i, depth[i]);
        at.set(i, corners(pixel.at.u_x, pixel.at.u_y, p.height, p.width));
        spoiled[i] = pixel.usable ? 0 : quiet_nan<scalar_t>();
        if (fwd.coords) fwd.write_coords(b, y, start + i, pixel);
      }
      for (int c = 0; c < p.channels; ++c) {
        const image_t* plane = p.source + (b * p.channels + c) * p.pixels();
        image_t* out = fwd.warped + (b * p.channels + c) * p.pixels() + int64_t(y) * p.width + start;
#pragma omp simd
        for (int i = 0; i < count; ++i) {
          const auto corner = at.get(i);
          store(out + i, bilinear(load_patch<scalar_t>(plane, corner), corner.w_x, corner.w_y) + spoiled[i]);
        }
      }
    }
  }
};

template <typename scalar_t, typename image_t, int kMotion> struct BwdRow {
  BackwardWarpBwd<scalar_t, image_t, kMotion> bwd;

  MCD_HD void operator()(int64_t row) const {
    const auto& p = bwd.params;
    const int64_t b = row / p.height;
    const int y = int(row % p.height);
    const Camera<scalar_t> camera = p.camera(b);
    CornersChunk<scalar_t> at;
    scalar_t depth[kChunk], grad_x[kChunk], grad_y[kChunk];
    scalar_t sums[kSums] = {};
    for (int start = 0; start < p.width; start += kChunk) {
      const int count = min(kChunk, p.width - start);
      load_depth(p, b, y, start, count, depth);
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const auto pixel = look(p, camera, b, y, start + i, depth[i]);
        at.set(i, corners(pixel.at.u_x, pixel.at.u_y, p.height, p.width));
        grad_x[i] = grad_y[i] = 0;
      }
      for (int c = 0; c < p.channels; ++c) {
        const image_t* plane = p.source + (b * p.channels + c) * p.pixels();
        const image_t* grad = bwd.grad_warped + (b * p.channels + c) * p.pixels() + int64_t(y) * p.width + start;
#pragma omp simd
        for (int i = 0; i < count; ++i) {
          const auto corner = at.get(i);
          scalar_t by_x, by_y;
          bilinear_grad(load_patch<scalar_t>(plane, corner), corner.w_x, corner.w_y, &by_x, &by_y);
          const scalar_t upstream = load<scalar_t>(grad[i]);
          grad_x[i] += upstream * by_x;
          grad_y[i] += upstream * by_y;
        }
      }
#pragma omp simd reduction(+ : sums[ : kSums])
      for (int i = 0; i < count; ++i) {
        const auto pixel = look(p, camera, b, y, start + i, depth[i]);
        bwd.pixel(camera, b, y, start + i, pixel, grad_x[i], grad_y[i], sums);
      }
    }
    for (int k = 0; k < kSums; ++k) bwd.sums[row * kSums + k] = sums[k];
  }
};

template <typename scalar_t> struct CameraGrad {
  BackwardWarpCameraGrad<scalar_t> grad;

  MCD_HD void operator()(int64_t b) const {
    double grad_A[9] = {}, grad_b[3] = {}, grad_motion_K[9] = {};
    for (int y = 0; y < grad.height; ++y) grad.add(b, y, grad_A, grad_b, grad_motion_K);
    grad.write(b, grad_A, grad_b, grad_motion_K);
  }
};

// One row of the small depth gradient from the large one.
template <typename scalar_t> struct DepthGradRow {
  const scalar_t* large;  // [B, H, W]
  scalar_t* small;        // [B, h, w]
  int height, width, small_height, small_width;

  MCD_HD void operator()(int64_t row) const {
    const scalar_t ratio_y = scalar_t(small_height) / height, ratio_x = scalar_t(small_width) / width;
    const int64_t b = row / small_height;
    const int i = int(row % small_height);
    std::vector<scalar_t> collected(width);
    int first, last;
    readers(i, ratio_y, height, &first, &last);
    for (int y = first; y < last; ++y) {
      const scalar_t weight = weight_of(i, between(y, ratio_y, small_height));
      const scalar_t* in = large + (b * height + y) * width;
      scalar_t* sum = collected.data();
#pragma omp simd
      for (int x = 0; x < width; ++x) sum[x] += weight * in[x];
    }
    scalar_t* out = small + row * small_width;
    for (int j = 0; j < small_width; ++j) out[j] = 0;
    for (int x = 0; x < width; ++x) {
      const auto tap = between(x, ratio_x, small_width);
      out[tap.low] += (1 - tap.weight) * collected[x];
      out[tap.high] += tap.weight * collected[x];
    }
  }
};

// Scatters the gradient of one plane of the source: a single task a plane, so that the order of its sums is fixed.
template <typename scalar_t, typename image_t, int kMotion> struct SourceGradPlane {
  BackwardWarpBwd<scalar_t, image_t, kMotion> bwd;
  image_t* grad_source;  // [B, C, H, W]

  MCD_HD void operator()(int64_t plane) const {
    const auto& p = bwd.params;
    const int64_t b = plane / p.channels;
    const Camera<scalar_t> camera = p.camera(b);
    const image_t* grad = bwd.grad_warped + plane * p.pixels();
    std::vector<scalar_t> sum(p.pixels());
    for (int y = 0; y < p.height; ++y)
      for (int x = 0; x < p.width; ++x) {
        const auto pixel = look(p, camera, b, y, x, p.depth_at(b, y, x));
        if (!pixel.usable) continue;
        const auto at = corners(pixel.at.u_x, pixel.at.u_y, p.height, p.width);
        const scalar_t upstream = load<scalar_t>(grad[int64_t(y) * p.width + x]);
        const scalar_t bottom = at.w_y * upstream, top = upstream - bottom;
        sum[at.index] += (1 - at.w_x) * top;
        sum[at.index + at.right] += at.w_x * top;
        sum[at.index + at.down] += (1 - at.w_x) * bottom;
        sum[at.index + at.down + at.right] += at.w_x * bottom;
      }
    for (int64_t i = 0; i < p.pixels(); ++i) store(grad_source + plane * p.pixels() + i, sum[i]);
  }
};

template <typename F> void dispatch_motion(const Tensor& motion, F f) {
  if (!motion) return f(std::integral_constant<int, 0>{});
  if (motion.size[1] == 2) return f(std::integral_constant<int, 2>{});
  return f(std::integral_constant<int, 3>{});
}

template <typename scalar_t, typename image_t, int kMotion>
BackwardWarpParams<scalar_t, image_t, kMotion> make_params(
    const Tensor& source, const Tensor& depth, const Tensor& K, const Tensor& T_src_ref, const Tensor& motion) {
  return {source.as<image_t>(),    depth.as<scalar_t>(),    K.as<scalar_t>(),        T_src_ref.as<scalar_t>(),
          motion.as<scalar_t>(),   source.size[0],          int(source.size[1]),     int(source.size[2]),
          int(source.size[3]),     int(depth.size[2]),      int(depth.size[3])};
}

}  // namespace

void backward_warp_fwd(
    const Tensor& source, const Tensor& depth, const Tensor& K, const Tensor& T_src_ref, const Tensor& motion,
    bool return_coords, const Tensor& warped, const Tensor& coords, const Tensor& valid, const Where& where) {
  dispatch(depth.dtype, source.dtype, [&](auto scalar, auto image) {
    dispatch_motion(motion, [&](auto motion_channels) {
      using scalar_t = decltype(scalar);
      using image_t = decltype(image);
      constexpr int kMotion = motion_channels;
      const BackwardWarpFwd<scalar_t, image_t, kMotion> fwd{
          make_params<scalar_t, image_t, kMotion>(source, depth, K, T_src_ref, motion), warped.as<image_t>(),
          return_coords ? coords.as<scalar_t>() : nullptr, return_coords ? valid.as<bool>() : nullptr};
      if constexpr (with_cuda)
        if (where.cuda()) return backward_warp_fwd_cuda(fwd, where);
      for_each_cpu(fwd.params.rows(), where.threads, FwdRow<scalar_t, image_t, kMotion>{fwd});
    });
  });
}

void backward_warp_bwd(
    const Tensor& grad_warped, const Tensor& source, const Tensor& depth, const Tensor& K, const Tensor& T_src_ref,
    const Tensor& motion, bool need_source, bool need_geometry, const Tensor& grad_source, const Tensor& grad_depth,
    const Tensor& grad_K, const Tensor& grad_T, const Tensor& grad_motion, const Tensor& sums,
    const Tensor& large_grad_depth, const Tensor& fixed_point, const Where& where) {
  dispatch(depth.dtype, source.dtype, [&](auto scalar, auto image) {
    dispatch_motion(motion, [&](auto motion_channels) {
      using scalar_t = decltype(scalar);
      using image_t = decltype(image);
      constexpr int kMotion = motion_channels;
      const auto params = make_params<scalar_t, image_t, kMotion>(source, depth, K, T_src_ref, motion);
      const Tensor& pixel_grad_depth = params.full_depth() ? grad_depth : large_grad_depth;
      const BackwardWarpBwd<scalar_t, image_t, kMotion> bwd{
          params, grad_warped.as<image_t>(), pixel_grad_depth.as<scalar_t>(), grad_motion.as<scalar_t>(),
          sums.as<scalar_t>()};
      const BackwardWarpCameraGrad<scalar_t> camera{params.K,           params.T_src_ref,      bwd.sums,
                                                    grad_K.as<scalar_t>(), grad_T.as<scalar_t>(), params.height};
      if constexpr (with_cuda)
        if (where.cuda()) {
          if (need_geometry) backward_warp_bwd_cuda(bwd, camera, grad_depth.as<scalar_t>(), where);
          if (need_source)
            backward_warp_source_grad_cuda(bwd, grad_source.as<image_t>(), fixed_point.as<int64_t>(), where);
          return;
        }
      if (need_geometry) {
        for_each_cpu(params.rows(), where.threads, BwdRow<scalar_t, image_t, kMotion>{bwd});
        for_each_cpu(params.batch, where.threads, CameraGrad<scalar_t>{camera});
        if (!params.full_depth())
          for_each_cpu(
              params.batch * params.depth_height, where.threads,
              DepthGradRow<scalar_t>{bwd.grad_depth, grad_depth.as<scalar_t>(), params.height, params.width,
                                     params.depth_height, params.depth_width});
      }
      if (need_source)
        for_each_cpu(
            params.batch * params.channels, where.threads,
            SourceGradPlane<scalar_t, image_t, kMotion>{bwd, grad_source.as<image_t>()});
    });
  });
}

}  // namespace mcd
