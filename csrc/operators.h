// The compiled operators, declared for the target MCD_TARGET; bindings.cpp includes this once for each (no #pragma once).
// Parameters: inputs in the order of the registered schema, then outputs, then workspace, then where to run.
// mcd/ops/native.py calls them and has checked everything.
#include <vector>

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

void photometric_error_fwd(
    const Tensor& reference, const Tensor& warped, const Tensor& sources, const Tensor& valid, double ssim_weight,
    double l1_weight, double c1, double c2, const Tensor& error, const Tensor& auto_mask, const Where& where);
void photometric_error_bwd(
    const Tensor& grad_error, const Tensor& reference, const Tensor& warped, const Tensor& valid, double ssim_weight,
    double l1_weight, double c1, double c2, bool need_reference, const Tensor& grad_warped,
    const Tensor& grad_reference, const Where& where);
void view_synthesis_loss_fwd(
    const Tensor& reference, const Tensor& sources, const std::vector<Tensor>& depths, const Tensor& K,
    const Tensor& T_src_ref, const Tensor& motion, const std::vector<double>& scale_weights, bool mask_invalid,
    double ssim_weight, double l1_weight, double c1, double c2, bool need_grad, bool need_motion, const Tensor& loss,
    const Tensor& losses, const Tensor& auto_mask, const std::vector<Tensor>& grad_depths, const Tensor& grad_K,
    const Tensor& grad_T, const Tensor& grad_motion, const Tensor& coefficients, const Tensor& motion_parts,
    const Tensor& tile_sums, const Tensor& large_grads, const Where& where);
void forward_warp_fwd(
    const Tensor& attribute, const Tensor& depth, const Tensor& K, const Tensor& T_dst_ref, const Tensor& motion,
    int64_t upscale, const Tensor& warped, const Tensor& depth_dst, const Tensor& winner, const Tensor& ray,
    const Tensor& cameras, const Tensor& keys, const Where& where);
void forward_warp_bwd(
    const Tensor& grad_warped, const Tensor& grad_depth_dst, const Tensor& attribute, const Tensor& depth,
    const Tensor& K, const Tensor& T_dst_ref, const Tensor& motion, const Tensor& depth_dst, const Tensor& winner,
    const Tensor& ray, int64_t upscale, bool need_attribute, bool need_geometry, const Tensor& grad_attribute,
    const Tensor& grad_depth, const Tensor& grad_T, const Tensor& grad_motion, const Tensor& cameras,
    const Tensor& cells, const Tensor& block_sums, const Tensor& fixed_point, const Where& where);
void smoothness_loss_fwd(
    const std::vector<Tensor>& disparities, const std::vector<Tensor>& guides, const Tensor& loss,
    const Tensor& factors, const Tensor& sums, const Where& where);
void smoothness_loss_bwd(
    const Tensor& grad_loss, const std::vector<Tensor>& disparities, const std::vector<Tensor>& guides,
    const Tensor& factors, const std::vector<Tensor>& grads, const Where& where);
void motion_sparsity_fwd(
    const Tensor& motion, const Tensor& loss, const Tensor& means, const Tensor& costs, const Where& where);
void motion_sparsity_bwd(
    const Tensor& grad_loss, const Tensor& motion, const Tensor& means, const Tensor& grad, const Where& where);
void instance_stats_fwd(
    const Tensor& values, const Tensor& pixel, const Tensor& offset, const Tensor& frame,
    const std::vector<double>& quantiles, bool linear, const Tensor& count, const Tensor& mean, const Tensor& least,
    const Tensor& largest, const Tensor& quantile, const Where& where);
void instance_stats_bwd(
    const Tensor& grad_mean, const Tensor& values, const Tensor& pixel, const Tensor& offset, const Tensor& frame,
    const Tensor& grad_values, const Where& where);

void align_scale_fwd(
    const Tensor& object_depth, const Tensor& target_depth, const Tensor& pixel, const Tensor& offset,
    const Tensor& frame, const Tensor& given, double delta, const Tensor& aligned, const Tensor& loss,
    const Tensor& mean, const Tensor& scale, const Where& where);
void align_scale_bwd(
    const Tensor& grad_aligned, const Tensor& grad_loss, const Tensor& object_depth, const Tensor& target_depth,
    const Tensor& pixel, const Tensor& offset, const Tensor& frame, const Tensor& mean, const Tensor& scale,
    double delta, const Tensor& grad_object_depth, const Tensor& grad_scale, const Where& where);

void scale_invariant_loss_fwd(
    const Tensor& prediction, const Tensor& target, const Tensor& mask, const Tensor& loss, const Tensor& gate,
    const Tensor& factor, const Tensor& weight, const Tensor& error, const Tensor& compared, const Tensor& samples,
    const Where& where);
void scale_invariant_loss_bwd(
    const Tensor& grad_loss, const Tensor& prediction, const Tensor& target, const Tensor& mask, const Tensor& gate,
    const Tensor& factor, const Tensor& weight, const Tensor& grad_prediction, const Where& where);

void fuse_depth_fwd(
    const Tensor& background, const Tensor& object_depth, const Tensor& pixel, const Tensor& offset,
    const Tensor& frame, const Tensor& fused, const Tensor& winner, const Where& where);
void fuse_depth_bwd(
    const Tensor& grad_fused, const Tensor& winner, const Tensor& pixel, const Tensor& offset, const Tensor& frame,
    const Tensor& grad_background, const Tensor& grad_object_depth, const Where& where);

// Images of bytes, for the loader.
void colour_jitter_fwd(const Tensor& images, const Tensor& draws, const Tensor& changed, const Where& where);
void resize_lanczos_fwd(
    const Tensor& image, const Tensor& column_bounds, const Tensor& column_weights, const Tensor& row_bounds,
    const Tensor& row_weights, const Tensor& resized, const Tensor& between, const Where& where);

}  // namespace mcd::MCD_TARGET
