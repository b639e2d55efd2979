// The loss on CUDA: warps walk down strips of an image as they do for the photometric error, one for each source at each of
// a block's scales. A thread takes the three channels of two neighbouring columns. In a row it looks the source up, finds
// the windows of the row above and which pixels count there, and completes the gradients of the row above that.
#pragma once

#include "../photometric_error/strip.cuh"
#include "view_synthesis_loss.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kWalkRows = 40;

// What strips add up to, each at each scale.
struct StripSums {
  double* sums;  // [scales, tiles, strips, S, 2], then [scales, tiles, strips + B, S, kCameraSums]
  int64_t strips, batch;
  int tiles, scales, sources;

  // The loss, and how many pixels are in the mask; `strip` counts those of all tiles.
  MCD_HD double* totals(int s, int64_t strip, int i) const {
    return sums + ((s * int64_t(tiles) * strips + strip) * sources + i) * 2;
  }
  // Of one image in a strip, which may have several. As one or the other rises from a place to the next, their sum has no
  // two of them.
  MCD_HD double* camera(int s, int tile, int64_t strip, int64_t image, int i) const {
    const int64_t lines = int64_t(s) * tiles + tile;
    return sums + 2 * int64_t(scales) * tiles * strips * sources +
           ((lines * (strips + batch) + strip + image) * sources + i) * kCameraSums;
  }
};

template <typename T, typename image_t> struct LossKernel {
  ViewSynthesisParams<T> p;
  const image_t *reference[3], *sources[3];  // [B, 3, H, W], [B, S, 3, H, W], from each channel on
  const T* identity;                   // [B, H, W]: the least error of the sources as they are
  T* large_grads[kMaxScales];          // [B, H, W]: gradients of upsampled depths, or null
  Strips strips;
  StripSums sums;
  int scales_together;  // in a block
};

// Windows of the reference as a thread has them for a channel, which serve all sources and scales.
template <typename T> struct SharedWindows {
  Quad<T> quads[3][32];
  Two<T> spreads[32];

  __device__ void write(int lane, const ReferenceWindows<T>& of) {
    quads[0][lane] = {of.mean[0], of.mean[1], of.spreads_of_columns[0], of.spreads_of_columns[1]};
    quads[1][lane] = {of.columns[0].before, of.columns[0].after, of.columns[1].before, of.columns[1].after};
    quads[2][lane] = {of.across[0].before, of.across[0].after, of.across[1].before, of.across[1].after};
    spreads[lane] = {of.spreads[0], of.spreads[1]};
  }
  __device__ ReferenceWindows<T> read(int lane) const {
    const Quad<T> some = quads[0][lane], columns = quads[1][lane], across = quads[2][lane];
    const Two<T> spread = spreads[lane];
    ReferenceWindows<T> of;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      of.mean[k] = some.lanes[k], of.spreads_of_columns[k] = some.lanes[2 + k], of.spreads[k] = spread.at[k];
      of.columns[k] = {columns.lanes[2 * k], columns.lanes[2 * k + 1]};
      of.across[k] = {across.lanes[2 * k], across.lanes[2 * k + 1]};
    }
    return of;
  }
};

// What a block keeps in shared memory. All but what warps hand each other a thread writes and reads by itself.
template <typename T> struct LossMemory {
  static constexpr int kRing = 3, kEdges = 3, kSums = 3;
  static constexpr int kQuads = kRing * 2 * 2 + 3 + kEdges + 1 + kSums, kTwos = kRing + 2 + 2;

  static constexpr int kWarpQuads = 32 * kQuads, kWarpTwos = 32 * kTwos;

  SharedWindows<T>* windows;  // [2, channels], of one row while those of the next are found
  Quad<T>* quads;             // the thread's own, 32 apart
  Two<T>* twos;               // of the scale's first source, the next source's kWarpTwos further
  int source;

  static constexpr size_t bytes(int warps) {
    return 6 * sizeof(SharedWindows<T>) + warps * (kWarpQuads * sizeof(Quad<T>) + kWarpTwos * sizeof(Two<T>));
  }
  __device__ LossMemory(void* shared, int warps, int warp, int source) : windows(static_cast<SharedWindows<T>*>(shared)), source(source) {
    auto* first = reinterpret_cast<Quad<T>*>(windows + 6);
    quads = first + warp * kWarpQuads + threadIdx.x % 32;
    twos = reinterpret_cast<Two<T>*>(first + warps * kWarpQuads) + (warp - source) * kWarpTwos + threadIdx.x % 32;
  }
  // Of column k in a row that was looked up: the derivatives of the channels by the position in the image, times the
  // projection's scale, x and y in turn, and the position.
  __device__ Quad<T>& slopes(int row, int k, int part) const { return quads[((row * 2 + k) * 2 + part) * 32]; }
  __device__ Two<T>& depth(int row) const { return of_source(row, source); }
  // q = depth · ray + b, ray = A (x, y, 1): a column of A and a number of b.
  __device__ Quad<T>& camera(int i) const { return quads[(4 * kRing + i) * 32]; }
  // Of the first row and the last, two columns each: |d| summed over the channels, then what its sign weighs. Then of the
  // first row its gradients, of a column each.
  __device__ Quad<T>& edge(int i) const { return quads[(4 * kRing + 3 + i) * 32]; }
  // Two rows of a small depth at the thread's columns.
  __device__ Quad<T>& small_depth() const { return quads[(4 * kRing + 3 + kEdges) * 32]; }
  // Sums over the pixels, of the camera's gradients: of grad_q · depth, of it at the second column, of grad_q · depth · y and
  // of grad_q.
  __device__ Quad<T>& sums(int i) const { return quads[(4 * kRing + 4 + kEdges + i) * 32]; }
  // Handed from warp to warp, in turn in one place and in another: source i's errors, and its gradients to depth.
  __device__ Two<T>& errors(int turn, int i) const { return of_source(kRing + turn, i); }
  __device__ Two<T>& to_depth(int turn, int i) const { return of_source(kRing + 2 + turn, i); }
  __device__ Two<T>& of_source(int place, int i) const { return twos[i * kWarpTwos + place * 32]; }
};
// The smallest of the GPUs from 8.0 on have 99 KiB for a block.
static_assert(LossMemory<float>::bytes(kMaxGroups<float, false>) <= 99 * 1024);
static_assert(LossMemory<double>::bytes(2) <= 99 * 1024);

// Threads of a block and blocks that a multiprocessor is to hold, which bounds registers.
template <typename T> constexpr int kWalkThreads = sizeof(T) == 4 ? 256 : 32 * kMaxGroups<T, false>;
template <typename T> constexpr int kWalkBlocks = sizeof(T) == 4 ? 2 : 1;
static_assert(32 * kMaxGroups<float, false> <= kWalkThreads<float>);

// A number that the compiler must not find anew wherever it is needed.
__device__ __forceinline__ int remembered(int number) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(number));
#endif
  return number;
}

// Two pixels of a depth that is smaller than the images: down the columns, then along the row. The rows' mixtures along the
// row stay until others are needed.
template <typename T>
__device__ __forceinline__ void small_depth(
    T (&depth)[2], const T* plane, const DepthScale<T>& scale, int y, int x, int& row_kept, Quad<T>& kept) {
  const auto row = between<T>(T(y), scale.ratio_y, scale.height);
  if (row.low != row_kept) {
    row_kept = row.low;
    const T *low = plane + int64_t(row.low) * scale.width, *high = plane + int64_t(row.high) * scale.width;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const auto column = between<T>(T(x + k), scale.ratio_x, scale.width);
      kept.lanes[k] = mix(low[column.low], low[column.high], column.weight);
      kept.lanes[2 + k] = mix(high[column.low], high[column.high], column.weight);
    }
  }
  const Quad<T> rows = kept;
#pragma unroll
  for (int k = 0; k < 2; ++k) depth[k] = mix(rows.lanes[k], rows.lanes[2 + k], row.weight);
}

// kUsual: two sources of float, the usual constants, pairs of columns that are read as one.
template <typename T, typename image_t, bool kUsual, bool kGrad>
__global__ void __launch_bounds__(kWalkThreads<T>, kWalkBlocks<T>)
    loss_strips(__grid_constant__ const LossKernel<T, image_t> kernel) {
  extern __shared__ double shared[];
  const auto& p = kernel.p;
  const int height = p.height, width = p.width, sources = kUsual ? kUsualSources : p.sources;
  // By a reduction: the compiler then sees that all threads of a warp go the same way.
  const int lane = int(threadIdx.x % 32), warp = int(__reduce_min_sync(kWholeWarp, threadIdx.x / 32));
  const int warps = kernel.scales_together * sources;
  const T infinity = T(__builtin_inff());
  int first_scale = 0;
  unsigned block = blockIdx.x;
  for (const auto strips = unsigned(kernel.strips.blocks()); block >= strips; first_scale += kernel.scales_together)
    block -= strips;
  const int s = first_scale + warp / sources, source = warp % sources;
  const PairOfColumns pair(kernel.strips, block);
  const int x = max(pair.x, 0), second = kUsual || x + 1 < width ? 1 : 0;
  const LossMemory<T> memory(shared, warps, warp, source);
  // Other kernels have no registers left for that.
  const bool own = kUsual ? remembered(pair.own) : pair.own;
  const int first_row = kUsual ? remembered(pair.top) : pair.top, last_row = (kUsual ? remembered(pair.bottom) : pair.bottom) - 1;
  const DepthScale<T>& scale = p.scales[s];
  const bool full = p.full(s);

  // Places in images; pointers of 64 bits take twice the instructions.
  using Index = std::conditional_t<kUsual || sizeof(T) == 8, int32_t, int64_t>;
  const Index pixels = Index(height) * width, of_pair = Index(pair.image) * sources + source, of_image = pair.image * pixels + x;
  const Index of_reference = of_image + 2 * pair.image * pixels, of_source = of_pair * 3 * pixels;
  const T* small = scale.depth + int64_t(pair.image) * scale.height * scale.width;
  {
    const auto camera = p.camera(pair.image, source);
    for (int i = 0; i < 3; ++i) memory.camera(i) = {camera.A[i], camera.A[3 + i], camera.A[6 + i], camera.b[i]};
    for (int i = 0; i < 3; ++i) memory.sums(i) = {};
  }

  // Of the row at hand and of those above and below: the reference, x - y, and the sums of |x - y| over the channels, which are
  // infinite where the source must not be chosen.
  T y_above[3][2] = {}, y_here[3][2] = {}, d_above[3][2] = {}, d_here[3][2] = {}, l1_here[2] = {};
  // Gradients to x that lack windows of rows to come.
  T grad_above[3][2] = {}, grad_here[3][2] = {};
  T total_error = 0, total_pixels = 0;
  int place = 0, row_kept = -1;

  // Looks row q up, and keeps at `place` what gradients need of it.
  const auto look_up = [&](int q, T(&y_below)[3][2], T(&d_below)[3][2], T(&l1_below)[2]) {
    const Index row = Index(q) * width;
#pragma unroll
    for (int c = 0; c < 3; ++c) load_pair<kUsual>(y_below[c], kernel.reference[c] + (of_reference + row), second);
    T depth[2];
    if (full)
      load_pair<kUsual>(depth, scale.depth + (of_image + row), second);
    else
      small_depth(depth, small, scale, q, x, row_kept, memory.small_depth());
    const Quad<T> by_x = memory.camera(0), by_y = memory.camera(1), by_one = memory.camera(2);
    const T columns[2] = {T(x), T(x + 1)};
    T of_row[3];
    for (int i = 0; i < 3; ++i) of_row[i] = by_y.lanes[i] * T(q) + by_one.lanes[i];
    T motions[2][2] = {};
    if (p.motion)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        load_pair<kUsual>(motions[i], p.motion + ((of_pair * 2 + i) * pixels + row + x), second);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      T ray[3];
      for (int i = 0; i < 3; ++i) ray[i] = by_x.lanes[i] * columns[k] + of_row[i];
      // What is not finite makes u NaN, but for motions, of which one might.
      T q_x = depth[k] * ray[0] + by_x.lanes[3], q_y = depth[k] * ray[1] + by_y.lanes[3];
      const T q_z = depth[k] * ray[2] + by_one.lanes[3];
      if (p.motion) q_x += motions[0][k] + 0 * motions[1][k], q_y += motions[1][k] + 0 * motions[0][k];
      const T over = reciprocal<T>(q_z + T(kEpsilon)), u_x = q_x * over, u_y = q_y * over;
      const bool seen = !(is_nan(u_x) | is_nan(u_y));
      const T at_x = clamp_coord(u_x, T(width - 1)), at_y = clamp_coord(u_y, T(height - 1));
      const bool inside_x = seen & (at_x == u_x), inside_y = seen & (at_y == u_y);
      const int column = int(at_x), line = int(at_y), left = min(column, width - 2);
      const T w_x = seen ? at_x - T(column) : T(__builtin_nanf("")), w_y = at_y - T(line);
      const Index top = of_source + (line * width + left), bottom = top + (line < height - 1 ? width : 0);
      const bool last = column > left;
      T slopes[3][2], l1 = 0;
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const image_t *upper_pair = kernel.sources[c] + top, *lower_pair = kernel.sources[c] + bottom;
        Patch<T> patch{{load<T>(upper_pair, 1), load<T>(upper_pair + 1, 1)}, {load<T>(lower_pair, 1), load<T>(lower_pair + 1, 1)}};
        patch.top.left = last ? patch.top.right : patch.top.left;
        patch.bottom.left = last ? patch.bottom.right : patch.bottom.left;
        const T upper = patch.top.right - patch.top.left, lower = patch.bottom.right - patch.bottom.left;
        const T from = patch.top.left + w_x * upper, drop = patch.bottom.left + w_x * lower - from;
        d_below[c][k] = from + w_y * drop - y_below[c][k];
        slopes[c][0] = upper + w_y * (lower - upper), slopes[c][1] = drop;
        l1 = c == 0 ? abs<T>(d_below[c][k]) : l1 + abs<T>(d_below[c][k]);
      }
      const bool usable = !p.mask_invalid | (inside_x & inside_y & (q_z > T(kNearest)));
      l1_below[k] = usable ? l1 : infinity;
      if constexpr (kGrad) {
        // Nothing moves at the far border and beyond.
        const T scale_x = inside_x & !last ? over : T(0), scale_y = inside_y & (line < height - 1) ? over : T(0);
        memory.slopes(place, k, 0) = {slopes[0][0] * scale_x, slopes[0][1] * scale_y, slopes[1][0] * scale_x, slopes[1][1] * scale_y};
        memory.slopes(place, k, 1) = {slopes[2][0] * scale_x, slopes[2][1] * scale_y, at_x, at_y};
      }
    }
    if constexpr (kGrad) memory.depth(place) = {depth[0], depth[1]};
  };

  // The row that was completed last, whose gradients to depth the sources have left at `handed`; -1: none.
  int waiting = -1, handed = 0, turn = 0;
  T* const to_depth = !kGrad ? nullptr : full ? scale.grad : kernel.large_grads[s];
  const auto meet = [&] {
    __syncthreads();
    turn ^= 1;
    if (!kGrad || waiting < 0) return;
    if (source == (kUsual ? turn : 0) && own) {
      const Two<T> first = memory.to_depth(handed, 0);
      T total[2] = {first.at[0], first.at[1]};
#pragma unroll
      for (int i = 1; i < sources; ++i) {
        const Two<T> part = memory.to_depth(handed, i);
        for (int k = 0; k < 2; ++k) total[k] += part.at[k];
      }
      store_pair<kUsual>(to_depth + (of_image + Index(waiting) * width), total, second);
    }
    waiting = -1, handed ^= 1;
  };
  // Which pixels of row q have the source's error in the loss: 1, else 0.
  const auto choose = [&](int q, const T(&windows)[2], const T(&l1)[2], T(&chosen)[2]) {
    T least[2], error[2];
    load_pair<kUsual>(least, kernel.identity + (of_image + Index(q) * width), second);
    Two<T> mine;
#pragma unroll
    for (int k = 0; k < 2; ++k)
      mine.at[k] = error[k] = l1[k] == infinity ? infinity : p.weights.ssim * windows[k] + p.weights.l1 * l1[k];
    memory.errors(turn, source) = mine;
    const int at = turn;
    meet();
    bool smallest[2];
    for (int k = 0; k < 2; ++k) smallest[k] = error[k] < least[k];
#pragma unroll
    for (int j = 0; j < (kUsual ? 1 : sources); ++j) {
      const int i = kUsual ? 1 - source : j;
      if (!kUsual && i == source) continue;
      const Two<T> other = memory.errors(at, i);
      // The first of equal ones. NaN compares with nothing, and no source is then chosen.
      const bool before = source < i;
#pragma unroll
      for (int k = 0; k < 2; ++k) smallest[k] &= (error[k] < other.at[k]) | ((error[k] == other.at[k]) & before);
    }
    for (int k = 0; k < 2; ++k) chosen[k] = smallest[k] ? T(1) : T(0);
    if (q < first_row || q > last_row || !own) return;
    for (int k = 0; k < 2; ++k)
      if (k == 0 || second) total_error += smallest[k] ? error[k] : T(0), total_pixels += chosen[k];
    if (s > 0 || source > 0) return;
    bool kept[2] = {}, known[2] = {true, true};
    for (int i = 0; i < sources; ++i) {
      const Two<T> of_source = memory.errors(at, i);
      for (int k = 0; k < 2; ++k) kept[k] |= of_source.at[k] < least[k], known[k] &= !is_nan(of_source.at[k]);
    }
    for (int k = 0; k < 2; ++k) kept[k] &= known[k];
    store_pair<kUsual>(p.auto_mask + (of_image + Index(q) * width), kept, second);
  };

  // Gradients of row q to depth, motion and camera, from those to x and what was kept at `place`.
  const auto complete = [&](int q, const T(&grads)[3][2], const T(&d)[3][2], bool spoiled) {
    const Quad<T> by_x = memory.camera(0), by_y = memory.camera(1), by_one = memory.camera(2);
    const T columns[2] = {T(x), T(x + 1)};
    T of_row[3];
    for (int i = 0; i < 3; ++i) of_row[i] = by_y.lanes[i] * T(q) + by_one.lanes[i];
    const Two<T> depth = memory.depth(place);
    Two<T> value{};
    if (own) {
      Quad<T> sums[3] = {memory.sums(0), memory.sums(1), memory.sums(2)};
      T by_depth[3];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (k == 1 && !second) break;
        T ray[3];
        for (int i = 0; i < 3; ++i) ray[i] = by_x.lanes[i] * columns[k] + of_row[i];
        const Quad<T> some = memory.slopes(place, k, 0), rest = memory.slopes(place, k, 1);
        T grad[3] = {grads[0][k], grads[1][k], grads[2][k]};
        T slopes[6] = {some.lanes[0], some.lanes[1], some.lanes[2], some.lanes[3], rest.lanes[0], rest.lanes[1]};
        T to_depth = depth.at[k];
        if (spoiled) {
          for (int c = 0; c < 3; ++c) {
            const bool nothing = !is_finite(d[c][k]) | (grad[c] == 0);
            for (T* number : {&grad[c], &slopes[2 * c], &slopes[2 * c + 1]}) *number = nothing ? T(0) : *number;
          }
          to_depth = is_finite(to_depth) ? to_depth : T(0);
        }
        T q_grad[3];
        for (int i = 0; i < 2; ++i) q_grad[i] = grad[0] * slopes[i] + grad[1] * slopes[2 + i] + grad[2] * slopes[4 + i];
        q_grad[2] = -(q_grad[0] * rest.lanes[2] + q_grad[1] * rest.lanes[3]);
        value.at[k] = q_grad[0] * ray[0] + q_grad[1] * ray[1] + q_grad[2] * ray[2];
        for (int i = 0; i < 3; ++i) {
          by_depth[i] = k == 0 ? q_grad[i] * to_depth : by_depth[i] + q_grad[i] * to_depth;
          if (k == 1) sums[i].lanes[1] += q_grad[i] * to_depth;
          sums[i].lanes[3] += q_grad[i];
        }
        if (p.motion_grads) {
          T* to_motion = p.motion_grads + (int64_t(s) * p.batch * sources + of_pair) * 2 * pixels + int64_t(q) * width + x + k;
          to_motion[0] = q_grad[0], to_motion[pixels] = q_grad[1];
        }
      }
      for (int i = 0; i < 3; ++i) {
        sums[i].lanes[0] += by_depth[i], sums[i].lanes[2] += by_depth[i] * T(q);
        memory.sums(i) = sums[i];
      }
    }
    memory.to_depth(handed, source) = value;
    waiting = q;
  };

  const int begin = max(first_row - (kGrad ? 1 : 0), 1);  // the first row with windows
  const int end = kGrad ? last_row + 1 : min(last_row, height - 2);
  int ahead_of = last_row == height - 1 ? height - 3 : -2, back_before = kGrad && first_row == 0 ? 3 : -2;
  const int last_window = min(end, height - 2);
  int duty = -1, spoiled = 0;  // a bit for each row that was NaN, the last one lowest
#pragma unroll 1
  for (int r = begin - 2; r <= end;) {
    // The last row is looked up once more before, for its pixels are found in the windows of an earlier one. The first is
    // looked up once more after, for its own errors are known late.
    const bool ahead = r == ahead_of, back = r == back_before;
    T y_below[3][2], d_below[3][2], l1_below[2], grad_below[3][2];
    look_up(ahead ? height - 1 : back ? 0 : min(r + 1, height - 1), y_below, d_below, l1_below);
    if (ahead) {
      ahead_of = -2;
      memory.edge(0).lanes[2] = l1_below[0], memory.edge(0).lanes[3] = l1_below[1];
      continue;
    }
    if (kGrad && back) {
      back_before = -2;
      T grads[3][2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const Quad<T> kept = memory.edge(1 + k);
        const T l1 = memory.edge(0).lanes[k];
        for (int c = 0; c < 3; ++c) grads[c][k] = kept.lanes[c] + (d_below[c][k] != 0 ? copysign(l1, d_below[c][k]) : T(0));
      }
      meet();
      complete(0, grads, d_below, spoiled & 7);
      continue;
    }
    spoiled <<= 1;
    // The reference's windows of the next row, by each warp in turn.
    if (warp == duty && r < last_window) {
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        T next[2];
        load_pair<kUsual>(next, kernel.reference[c] + (of_reference + Index(r + 2) * width), second);
        const ReferenceWindows<T> found(y_here[c], y_below[c], next, p.weights.c2);
        memory.windows[(r + 1) % 2 * 3 + c].write(lane, found);
      }
    }
    duty = duty + 1 == warps ? 0 : duty + 1;
    if (r == -1) memory.edge(0).lanes[0] = l1_below[0], memory.edge(0).lanes[1] = l1_below[1];
    if (r >= begin && r < height - 1) {
      WindowsOfPair<T> windows[3];
      T error[2] = {};
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const ReferenceWindows<T> y = memory.windows[r % 2 * 3 + c].read(lane);
        if (!kUsual && p.weights.luminance)
          windows[c].template find<true>(d_above[c], d_here[c], d_below[c], y, p.weights);
        else
          windows[c].template find<false>(d_above[c], d_here[c], d_below[c], y, p.weights);
        for (int k = 0; k < 2; ++k) error[k] = c == 0 ? windows[c].error[k] : error[k] + windows[c].error[k];
      }
      const bool is_spoiled = __any_sync(kWholeWarp, is_nan(error[0]) | is_nan(error[1]));
      spoiled |= is_spoiled;
      {
        T errors[1][2] = {{error[0], error[1]}};
        mirror(pair, width, errors);
        error[0] = errors[0][0], error[1] = errors[0][1];
      }
      T weights[1][2];
      choose(r, error, l1_here, weights[0]);
      const T own_l1[2] = {weights[0][0] * p.weights.l1, weights[0][1] * p.weights.l1};
      if (r == 2 || r == height - 3) {
        // The pixels of the border's rows are found in the windows of these.
#pragma unroll 1
        for (int q = r == 2 ? 0 : height - 1; q >= 0;) {
          T* edge = memory.edge(0).lanes + (q == 0 ? 0 : 2);
          T l1[2] = {edge[0], edge[1]}, chosen[2];
          choose(q, error, l1, chosen);
          for (int k = 0; k < 2; ++k) weights[0][k] += chosen[k], edge[k] = chosen[k] * p.weights.l1;
          q = q == 0 && r == height - 3 ? height - 1 : -1;
        }
      }
      if constexpr (kGrad) {
        gather_mirrored(pair, width, weights);
        if (is_spoiled) {
          stay_a_branch();
          // What is NaN has the weight 0, and is rare.
          for (int c = 0; c < 3; ++c)
            for (int k = 0; k < 2; ++k)
              if (weights[0][k] == 0) windows[c].alpha[k] = windows[c].beta[k] = windows[c].gamma[k] = 0;
        }
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          T alpha[2], beta[2], gamma[2];
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const T weight = weights[0][k] * (3 * p.weights.ssim);
            alpha[k] = weight * windows[c].alpha[k], beta[k] = weight * windows[c].beta[k], gamma[k] = weight * windows[c].gamma[k];
          }
          T a[2], b[2], g[2];
          Line<T>(alpha).sums(a), Line<T>(beta).sums(b), Line<T>(gamma).sums(g);
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            grad_above[c][k] = add_windows(grad_above[c][k], a[k], b[k], g[k], d_above[c][k], y_above[c][k]);
            grad_here[c][k] = add_windows(grad_here[c][k], a[k], b[k], g[k], d_here[c][k], y_here[c][k]);
            grad_below[c][k] = -g[k] + a[k] * d_below[c][k] - b[k] * y_below[c][k];
            if (d_here[c][k] != 0) grad_here[c][k] += copysign(own_l1[k], d_here[c][k]);
          }
        }
      }
    } else {
      meet();
      for (int c = 0; c < 3; ++c) grad_below[c][0] = grad_below[c][1] = 0;
    }
    if constexpr (kGrad) {
      if (r == height - 2)
        for (int c = 0; c < 3; ++c)
          for (int k = 0; k < 2; ++k)
            if (d_below[c][k] != 0) grad_below[c][k] += copysign(memory.edge(0).lanes[2 + k], d_below[c][k]);
      // The place of the row above is the next to be written.
      place = place == 2 ? 0 : place + 1;
      if (r > max(first_row, 1)) complete(r - 1, grad_above, d_above, spoiled & 7);
      if (r == 1)
        for (int k = 0; k < 2; ++k) memory.edge(1 + k) = {grad_above[0][k], grad_above[1][k], grad_above[2][k], T(0)};
    }
#pragma unroll
    for (int c = 0; c < 3; ++c)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        y_above[c][k] = y_here[c][k], y_here[c][k] = y_below[c][k];
        d_above[c][k] = d_here[c][k], d_here[c][k] = d_below[c][k];
        grad_above[c][k] = grad_here[c][k], grad_here[c][k] = grad_below[c][k];
      }
    for (int k = 0; k < 2; ++k) l1_here[k] = l1_below[k];
    ++r;
  }
  if (kGrad) meet();

  double totals[2] = {total_error, total_pixels};
#pragma unroll
  for (int k = 0; k < 2; ++k)
    for (int step = 16; step > 0; step /= 2) totals[k] += __shfl_xor_sync(kWholeWarp, totals[k], step);
  double* to_totals = kernel.sums.totals(s, block, source);
  if (lane == 0) to_totals[0] = totals[0], to_totals[1] = totals[1];
  if constexpr (kGrad) {
    const int halo = kernel.strips.halo, owners = __popc(__ballot_sync(kWholeWarp, own));
    const int last = __shfl_sync(kWholeWarp, pair.image, halo + owners - 1);
#pragma unroll 1
    for (int b = __shfl_sync(kWholeWarp, pair.image, halo); b <= last; ++b) {
      const bool here = own && pair.image == b;
      T sums[kSumsOfWarp] = {};
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const Quad<T> of_thread = memory.sums(i);
        const T by_depth = of_thread.lanes[0];
        sums[kSumX + i] = here ? by_depth * T(x) + of_thread.lanes[1] : T(0), sums[kSumY + i] = here ? of_thread.lanes[2] : T(0);
        sums[kSumOne + i] = here ? by_depth : T(0), sums[kSumB + i] = here ? of_thread.lanes[3] : T(0);
      }
      const T of_warp = sum_of_warp(sums);
      if (lane % 2 == 0 && lane / 2 < kCameraSums)
        kernel.sums.camera(s, pair.tile, pair.strip, b, source)[lane / 2] = of_warp;
    }
  }
}

}  // namespace
}  // namespace mcd::MCD_TARGET
