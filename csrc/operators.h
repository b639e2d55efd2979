// The compiled operators, declared for the target MCD_TARGET; bindings.cpp includes this once for each (no #pragma once).
// Parameters: inputs in the order of the registered schema, then outputs, then workspace, then where to run.
// mcd/ops/native.py calls them and has checked everything.
#include "common/tensor.h"

namespace mcd::MCD_TARGET {

void backward_warp_fwd(
    const Tensor& source, const Tensor& depth, const Tensor& K, const Tensor& T_src_ref, const Tensor& motion,
    bool return_coords, const Tensor& warped, const Tensor& coords, const Tensor& valid, const Where& where);
void backward_warp_bwd(
    const Tensor& grad_warped, const Tensor& source, const Tensor& depth, const Tensor& K, const Tensor& T_src_ref,
    const Tensor& motion, bool need_source, bool need_geometry, const Tensor& grad_source, const Tensor& grad_depth,
    const Tensor& grad_K, const Tensor& grad_T, const Tensor& grad_motion, const Tensor& sums,
    const Tensor& large_grad_depth, const Tensor& fixed_point, const Where& where);

}  // namespace mcd::MCD_TARGET
