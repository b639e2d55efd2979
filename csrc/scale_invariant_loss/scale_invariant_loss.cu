#include "scale_invariant_loss.h"

#include "../common/cluster.cuh"
#include "../common/for_each.h"
#include "../common/select.cuh"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kBits = 11, kBins = 1 << kBits;
enum { kPredictions, kRatios, kSets };  // of values that a sample is asked for quantiles of

// What the blocks of a sample tell each other.
template <typename scalar_t> struct SampleMemory {
  using K = Key<scalar_t>;
  static constexpr int kRounds = (8 * sizeof(scalar_t) + kBits - 1) / kBits;

  alignas(16) int bins[kSets + 1][kRounds][kBins];  // the last for the ratios in the gate
  struct Part {
    K least[kSets], largest[kSets], above;
    int poisoned, compared;
    double error;
  } parts[kClusterBlocks];  // of each block
};

// Values among which a rank is looked for: those in [low, low + width], `below` of all lie before them.
template <typename scalar_t> struct Interval {
  Key<scalar_t> low, width;
  int below, inside, rank;
};

// A block's part of a sample. Pixels are kept in registers, as keys of prediction and ratio, as far as there is room.
template <typename scalar_t, int kBlocks> class PartOfSample {
  using K = Key<scalar_t>;
  using Memory = SampleMemory<scalar_t>;

 public:
  static constexpr int kThreads = kBlocks == 1 && sizeof(scalar_t) == 4 ? 1024 : 512;
  static constexpr int kScanWarps = 8;  // look for a rank among the bins
  static constexpr K kNone = ~K(0);
  struct Pixel {
    scalar_t target;  // 0 where it does not count
    K key[kSets];     // there kNone, which is in no interval

    __device__ bool taken() const { return target > 0; }
  };
  struct Shared {
    alignas(16) int bins[kSets][kBins];
    int warps[kSets][kScanWarps];
    K least[kSets][kThreads / 32], largest[kSets][kThreads / 32];
    struct {
      int bin, below, inside;
    } found[kSets];
  };

  __device__ PartOfSample(const ScaleInvariantFwd<scalar_t>& fwd, Memory* memory, Shared* shared)
      : fwd_(fwd), b_(blockIdx.x / kBlocks), block_(int(blockIdx.x % kBlocks)), pixels_(int(fwd.params.pixels)),
        target_(fwd.params.target + b_ * pixels_), prediction_(fwd.params.prediction + b_ * pixels_), memory_(memory + b_),
        shared_(shared) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) kept_[k] = read<false>(first() + k * kStep);
  }

  __device__ void run() {
    Interval<scalar_t> sets[kSets];
    const bool poisoned = summarize(sets);
    scalar_t factor = nan<scalar_t>();
    if (!poisoned) {
      const K least = sets[kPredictions].low;
      Interval<scalar_t> gated[1] = {sets[kRatios]};
      const double wanted[kSets] = {0.9, 0.5}, median[1] = {0.5};
      narrow(kPredictions, sets, wanted);
      const int count = total_;
      if (count > 0) {
        gate_ = {value_of<scalar_t>(sets[kRatios].low), value_of<scalar_t>(least), between(sets[kPredictions], 0.9, count)};
#pragma unroll
        for (int k = 0; k < kKept; ++k)
          if (!gate_.template at<scalar_t>(kept_[k].target, true)) kept_[k].target = 0, kept_[k].key[kRatios] = kNone;
        narrow(kRatios, gated, median);
        if (total_ > 0) factor = value_of<scalar_t>(gated[0].low);
      }
    }
    add_errors(factor);
  }

 private:
  [[maybe_unused]] static constexpr int kWarps = kThreads / 32, kOwn = kBins / kThreads;
  [[maybe_unused]] static constexpr int kKept = sizeof(scalar_t) == 8 || kBlocks == 1 ? 4 : 24;
  static_assert(kWarps <= 32 && kSets * kScanWarps <= kWarps, "a lane for each warp");

  struct alignas(kOwn * sizeof(int)) Bins {
    int of[kOwn];
  };
  __device__ static Bins& own_bins(int* bins) { return reinterpret_cast<Bins*>(bins)[threadIdx.x]; }

  [[maybe_unused]] static constexpr int kStep = kBlocks * kThreads;

  __device__ int first() const { return block_ * kThreads + int(threadIdx.x); }
  // Pixels outside of the gate do not count once it is known.
  template <bool kGated> __device__ Pixel read(int i) const {
    const scalar_t target = i < pixels_ ? target_[i] : scalar_t(0), prediction = i < pixels_ ? prediction_[i] : scalar_t(0);
    bool taken = fwd_.params.template counted<scalar_t>(target, 1);
    if (kGated) taken = gate_.template at<scalar_t>(target, taken);
    if (!taken) return {0, {kNone, kNone}};
    return {target, {key_of(prediction), key_of(prediction / target)}};
  }
  // f(i, pixel) for all of the part.
  template <typename F> __device__ __forceinline__ void each(const F& f) const {
#pragma unroll
    for (int k = 0; k < kKept; ++k) f(first() + k * kStep, kept_[k]);
#pragma unroll 1
    for (int i = first() + kKept * kStep; i < pixels_; i += kStep) f(i, read<true>(i));
  }

  // The span of both sets; whether there is a NaN. Clears the sample's bins.
  __device__ bool summarize(Interval<scalar_t> (&sets)[kSets]) {
    K least[kSets] = {~K(0), ~K(0)}, largest[kSets] = {};
    bool poisoned = false;
    each([&](int, const Pixel& pixel) {
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        least[set] = min(least[set], pixel.key[set]);
        largest[set] = max(largest[set], K(pixel.key[set] - kNone));  // one more than the key, and 0 for none
      }
      poisoned |= pixel.taken() && is_nan(value_of<scalar_t>(pixel.key[kPredictions]));
    });
    auto* bins = reinterpret_cast<int4*>(memory_->bins);
    for (int i = first(); i < int(sizeof(memory_->bins) / sizeof(int4)); i += kStep) bins[i] = {};
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      least[set] = warp_min(least[set]), largest[set] = warp_max(largest[set]);
      if (lane == 0) shared_->least[set][warp] = least[set], shared_->largest[set][warp] = largest[set];
    }
    __syncthreads();
    if (warp == 0)
      for (int set = 0; set < kSets; ++set) {
        const K low = warp_min(shared_->least[set][lane % kWarps]), high = warp_max(shared_->largest[set][lane % kWarps]);
        if (lane == 0) memory_->parts[block_].least[set] = low, memory_->parts[block_].largest[set] = high;
      }
    const int found = __syncthreads_or(poisoned);
    if (threadIdx.x == 0) memory_->parts[block_].poisoned = found;
    cluster_sync<kBlocks>();
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const auto& part = memory_->parts[lane % kBlocks];
      const K low = warp_min(__ldcg(&part.least[set])), high = warp_max(__ldcg(&part.largest[set]));
      sets[set] = {low, high - 1 - low, 0, 0, 0};
    }
    return __reduce_add_sync(0xffffffffu, __ldcg(&memory_->parts[lane % kBlocks].poisoned)) != 0;
  }

  // Makes the intervals of `count` sets, of which `which` is the first, those of single values, the ones at the quantiles.
  // total_: how many pixels there are.
  template <int count>
  __device__ __forceinline__ void narrow(
      int which, Interval<scalar_t> (&sets)[count], const double (&quantile)[count]) {
#pragma unroll 1
    for (int round = 0; round < Memory::kRounds; ++round) {
      K open = round == 0;
      int shift[count];
#pragma unroll
      for (int set = 0; set < count; ++set) open |= sets[set].width, shift[set] = bin_shift(sets[set].width, kBits);
      if (open == 0) return;
#pragma unroll
      for (int set = 0; set < count; ++set) own_bins(shared_->bins[set]) = {};
      __syncthreads();
      each([&](int, const Pixel& pixel) {
#pragma unroll
        for (int set = 0; set < count; ++set) {
          const K distance = pixel.key[which + set] - sets[set].low;
          if (distance <= sets[set].width) atomicAdd(&shared_->bins[set][distance >> shift[set]], 1);
        }
      });
      __syncthreads();
      // The sets of one call go into bins of their own: those of the second call behind those of the first.
      int(*bins)[Memory::kRounds][kBins] = memory_->bins + (count == kSets ? 0 : kSets);
#pragma unroll
      for (int set = 0; set < count; ++set) {
        const Bins own = own_bins(shared_->bins[set]);
#pragma unroll
        for (int i = 0; i < kOwn; ++i)
          if (own.of[i]) atomicAdd(&bins[set][round][threadIdx.x * kOwn + i], own.of[i]);
      }
      cluster_sync<kBlocks>();
      find_bins<count>(bins, round, sets, quantile);
#pragma unroll
      for (int set = 0; set < count; ++set) {
        if (round > 0 && sets[set].width == 0) continue;
        const auto& found = shared_->found[set];
        const K start = K(found.bin) << shift[set];
        sets[set].below += found.below, sets[set].inside = found.inside;
        sets[set].low += start;
        sets[set].width = min<K>(sets[set].width - start, (K(1) << shift[set]) - 1);
        if (total_ == 0) sets[set].width = 0;
      }
    }
  }

  // In each set the bin that holds the rank, how many values lie below it and in it.
  template <int count>
  __device__ __forceinline__ void find_bins(
      const int (*bins)[Memory::kRounds][kBins], int round, Interval<scalar_t> (&sets)[count],
      const double (&quantile)[count]) {
    constexpr int kOwn = kBins / (32 * kScanWarps);
    // Warps that look at different sets at the same time.
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kScanWarps, set = threadIdx.x / 32 / kScanWarps;
    int inside[kOwn], end = 0;  // of this and the bins before, first of the warp's, then of all
    if (set < count) {
      const auto* own = reinterpret_cast<const int4*>(bins[set][round]) + (warp * 32 + lane) * (kOwn / 4);
#pragma unroll
      for (int i = 0; i < kOwn; i += 4) {
        const int4 four = __ldcg(own + i / 4);
        inside[i] = four.x, inside[i + 1] = four.y, inside[i + 2] = four.z, inside[i + 3] = four.w;
        end += four.x + four.y + four.z + four.w;
      }
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int before = __shfl_up_sync(0xffffffffu, end, step);
        if (lane >= step) end += before;
      }
      if (lane == 31) shared_->warps[set][warp] = end;
    }
    __syncthreads();
    if (round == 0) {
      total_ = __reduce_add_sync(0xffffffffu, lane < kScanWarps ? shared_->warps[0][lane] : 0);
#pragma unroll
      for (int i = 0; i < count; ++i) sets[i].rank = int(QuantilePosition(quantile[i], max(total_, 1), false).rank);
    }
    if (set < count) {
      end += __reduce_add_sync(0xffffffffu, lane < warp ? shared_->warps[set][lane] : 0);
      const int rank = set == 0 ? sets[0].rank - sets[0].below : sets[count - 1].rank - sets[count - 1].below;
#pragma unroll
      for (int i = kOwn - 1; i >= 0; --i) {
        const int begin = end - inside[i];
        if (begin <= rank && rank < end) shared_->found[set] = {(warp * 32 + lane) * kOwn + i, begin, inside[i]};
        end = begin;
      }
    }
    __syncthreads();
  }

  // The quantile of predictions whose lower neighbour `found` is.
  __device__ scalar_t between(const Interval<scalar_t>& found, double quantile, int count) {
    const QuantilePosition position(quantile, count, true);
    K next = found.low;
    if (position.fraction != 0 && found.rank + 1 == found.below + found.inside) {
      K above = ~K(0);
      each([&](int, const Pixel& pixel) {
        if (pixel.key[kPredictions] > found.low) above = min(above, pixel.key[kPredictions]);
      });
      above = block_reduce<kThreads>(above, [](K a, K b) { return min(a, b); });
      if (threadIdx.x == 0) memory_->parts[block_].above = above;
      cluster_sync<kBlocks>();
      next = ~K(0);
      for (int block = 0; block < kBlocks; ++block) next = min(next, __ldcg(&memory_->parts[block].above));
    }
    return position.between(Neighbours<scalar_t>{value_of<scalar_t>(found.low), value_of<scalar_t>(next)});
  }

  __device__ void add_errors(scalar_t factor) {
    double error = 0;
    int compared = 0;
    each([&](int i, const Pixel& pixel) {
      if (i >= pixels_) return;
      bool chosen;
      const scalar_t ratio = value_of<scalar_t>(pixel.key[kRatios]);
      error += double(fwd_.template pixels<scalar_t>(b_, i, 1, pixel.target, ratio, pixel.taken(), factor, &chosen));
      compared += chosen;
    });
    error = block_sum_all<kThreads>(error);
    compared = block_sum_all<kThreads>(compared);
    typename Memory::Part& part = memory_->parts[block_];
    if (threadIdx.x == 0) part.error = error, part.compared = compared;
    if (threadIdx.x == 0 && block_ == 0) fwd_.factor[b_] = factor;
  }

  const ScaleInvariantFwd<scalar_t>& fwd_;
  int64_t b_;
  int block_, pixels_;
  const scalar_t *target_, *prediction_;  // of the sample
  Memory* memory_;
  Shared* shared_;
  int total_ = 0;
  Gate<scalar_t> gate_{nan<scalar_t>(), nan<scalar_t>(), nan<scalar_t>()};  // lets all pass
  Pixel kept_[kKept];
};

template <typename scalar_t, int kBlocks>
__global__ void MCD_CLUSTER(kBlocks) __launch_bounds__(PartOfSample<scalar_t, kBlocks>::kThreads, 1)
    loss_of_samples(__grid_constant__ const ScaleInvariantFwd<scalar_t> fwd, SampleMemory<scalar_t>* memory) {
  if constexpr (kBlocks == 1 || MCD_HAS_CLUSTERS) {
    using Part = PartOfSample<scalar_t, kBlocks>;
    __shared__ typename Part::Shared shared;
    Part(fwd, memory, &shared).run();
  }
}

template <typename scalar_t, int kBlocks>
void launch(const ScaleInvariantFwd<scalar_t>& fwd, SampleMemory<scalar_t>* memory, void* stream) {
  constexpr int kThreads = PartOfSample<scalar_t, kBlocks>::kThreads;
  const auto blocks = unsigned(fwd.params.batch * kBlocks);
  loss_of_samples<scalar_t, kBlocks><<<blocks, kThreads, 0, cudaStream_t(stream)>>>(fwd, memory);
}

// A warp: each lane takes samples.
template <typename scalar_t> struct Finish {
  ScaleInvariantFwd<scalar_t> fwd;
  const SampleMemory<scalar_t>* memory;
  int blocks;  // of a sample

  __device__ void operator()(int64_t lane) const {
    double error = 0;
    int64_t compared = 0;
    for (int64_t b = lane; b < fwd.params.batch; b += 32)
      for (int block = 0; block < blocks; ++block)
        error += memory[b].parts[block].error, compared += memory[b].parts[block].compared;
    for (int step = 16; step > 0; step /= 2) {
      error += __shfl_xor_sync(0xffffffffu, error, step);
      compared += __shfl_xor_sync(0xffffffffu, compared, step);
    }
    if (lane == 0) fwd.finish(error, compared);
  }
};

// A thread takes four pixels in a row.
template <typename scalar_t> struct GradOfPixels {
  static constexpr int kOwn = 4;
  ScaleInvariantBwd<scalar_t> bwd;
  bool quads;

  __device__ void operator()(int64_t i) const {
    const int64_t pixels = bwd.params.pixels;
    const auto [b, quarter] = divide(i, (pixels + kOwn - 1) / kOwn);
    const int64_t first = quarter * kOwn, at = b * pixels + first;
    const scalar_t factor = bwd.factor[b], size = *bwd.grad_loss * *bwd.weight;
    if (quads) {
      const auto prediction = *reinterpret_cast<const Quad<scalar_t>*>(bwd.params.prediction + at);
      const auto target = *reinterpret_cast<const Quad<scalar_t>*>(bwd.params.target + at);
      const auto gate = *reinterpret_cast<const Quad<bool>*>(bwd.gate + at);
      const auto mask = *reinterpret_cast<const Quad<bool>*>(bwd.params.mask + at);
      Quad<scalar_t> grad;
#pragma unroll
      for (int k = 0; k < kOwn; ++k)
        grad.lanes[k] = bwd.template grad<scalar_t>(
            prediction.lanes[k], target.lanes[k], gate.lanes[k] & mask.lanes[k], factor, size);
      *reinterpret_cast<Quad<scalar_t>*>(bwd.grad_prediction + at) = grad;
    } else {
      for (int64_t k = at; k < at + min<int64_t>(kOwn, pixels - first); ++k)
        bwd.grad_prediction[k] = bwd.template grad<scalar_t>(
            bwd.params.prediction[k], bwd.params.target[k], bwd.gate[k] & bwd.params.mask[k], factor, size);
    }
  }
};

}  // namespace

void scale_invariant_loss_fwd(
    const Tensor& prediction, const Tensor& target, const Tensor& mask, const Tensor& loss, const Tensor& gate,
    const Tensor& factor, const Tensor& weight, const Tensor&, const Tensor&, const Tensor& samples,
    const Where& where) {
  dispatch_scale_invariant(prediction, target, mask, [&](auto params) {
    using scalar_t = typename decltype(params)::scalar;
    const ScaleInvariantFwd<scalar_t> fwd{params, loss.as<scalar_t>(), gate.as<bool>(), factor.as<scalar_t>(),
                                          weight.as<scalar_t>()};
    if (params.batch > 0) {
      using Memory = SampleMemory<scalar_t>;
      if (samples.size[1] * int64_t(sizeof(int64_t)) < int64_t(sizeof(Memory)))
        throw std::invalid_argument("scale_invariant_loss_fwd: too little workspace for a sample");
      (has_clusters() ? launch<scalar_t, kClusterBlocks> : launch<scalar_t, 1>)(fwd, samples.as<Memory>(), where.stream);
      check_launch("scale_invariant_loss_fwd");
    }
    for_each_cuda(
        32, where.stream, "scale_invariant_loss_fwd",
        Finish<scalar_t>{fwd, samples.as<SampleMemory<scalar_t>>(), has_clusters() ? kClusterBlocks : 1});
  });
}

void scale_invariant_loss_bwd(
    const Tensor& grad_loss, const Tensor& prediction, const Tensor& target, const Tensor& mask, const Tensor& gate,
    const Tensor& factor, const Tensor& weight, const Tensor& grad_prediction, const Where& where) {
  dispatch_scale_invariant(prediction, target, mask, [&](auto params) {
    using scalar_t = typename decltype(params)::scalar;
    const ScaleInvariantBwd<scalar_t> bwd{params, grad_loss.as<scalar_t>(), gate.as<bool>(), factor.as<scalar_t>(),
                                          weight.as<scalar_t>(), grad_prediction.as<scalar_t>()};
    using Grad = GradOfPixels<scalar_t>;
    for_each_cuda(
        params.batch * ((params.pixels + Grad::kOwn - 1) / Grad::kOwn), where.stream, "scale_invariant_loss_bwd",
        Grad{bwd, in_quads(params.pixels, params.prediction, params.target, params.mask, bwd.gate, bwd.grad_prediction)});
  });
}

}  // namespace mcd::MCD_TARGET
