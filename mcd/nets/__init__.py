"""Networks: depth, pose, residual motion, object scale, ground and slots, each built by name."""

from mcd.nets.camera import build_camera
from mcd.nets.depth import DEPTH_NETS, build_depth_net, freeze_encoder
from mcd.nets.detector import build_detector
from mcd.nets.ground import build_ground_net
from mcd.nets.layers import PretrainedError
from mcd.nets.motion import build_motion_net
from mcd.nets.pose import build_pose_net
from mcd.nets.scale import build_scale_net
from mcd.nets.segmenter import build_segmenter
from mcd.nets.slots import build_slot_net

__all__ = [
    "DEPTH_NETS",
    "PretrainedError",
    "build_camera",
    "build_depth_net",
    "build_detector",
    "build_ground_net",
    "build_motion_net",
    "build_pose_net",
    "build_scale_net",
    "build_segmenter",
    "build_slot_net",
    "freeze_encoder",
]
