"""Released checkpoints of Nguyen et al. (CVPR 2024) as weights of this package.

    python -m mcd.convert FOLDER -o OUT

FOLDER is a published checkpoint folder (``…/models/weights``) with any of depth_net.pth, pose_net.pth, raft.pth,
depth_scale_alignment.pth, slot_attention.pth, ground_segmentation.pth and maskrcnn.pth. OUT becomes a stage folder: one
weights file, which ``init``, mcd.evaluate and mcd.predict take.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # before imports of packages that may be missing, which `mcd` names
    from mcd.cli import main as command

    sys.exit(command(["convert", *sys.argv[1:]]))

import torch
from torch import Tensor, nn

from mcd.errors import McdError
from mcd.nets import (
    build_depth_net,
    build_detector,
    build_ground_net,
    build_motion_net,
    build_pose_net,
    build_scale_net,
    build_slot_net,
)
from mcd.nets.detector import PUBLISHED_MAGNIFY
from mcd.run.checkpoint import WEIGHTS, save_weights

SIZE = (192, 512)


class ConversionError(McdError, RuntimeError):
    """A published checkpoint that does not fit; the message lists every tensor."""


@dataclass(frozen=True)
class Released:
    """One published file and how its keys are called here."""

    role: str
    net: str
    build: Callable[[], nn.Module]
    renames: tuple[tuple[str, str], ...]
    """Regular expressions and replacements, applied one after the other."""
    unused: str = r"(?!)"
    """Keys that the published network never reads."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """What our network stores and the published one leaves to its code."""


# The published decoder registers each of its modules twice: under its name and, in this order, in a list.
_DECODER = ("up_x9_0", "up_x9_1", "72", "36", "18", "9", *(f"dispConvScale{scale}" for scale in range(4)))

RELEASED = {
    "depth_net.pth": Released(
        "depth",
        "diffnet",
        lambda: build_depth_net("diffnet"),
        (
            (r"^depth_encoder\.", "encoder.hrnet."),
            *(
                (rf"^depth_decoder\.decoder\.{index}\.", f"depth_decoder.convs.{name}.")
                for index, name in enumerate(_DECODER)
            ),
            (r"^depth_decoder\.convs\.72\.", "decoder.to_sixteenth."),
            (r"^depth_decoder\.convs\.36\.", "decoder.to_eighth."),
            (r"^depth_decoder\.convs\.18\.", "decoder.to_quarter."),
            (r"^depth_decoder\.convs\.9\.", "decoder.to_half."),
            (r"^depth_decoder\.convs\.up_x9_0\.conv\.conv\.", "decoder.before."),
            (r"^depth_decoder\.convs\.up_x9_1\.conv\.conv\.", "decoder.after."),
            (r"^depth_decoder\.convs\.dispConvScale(\d)\.", r"decoder.heads.\1."),
            (r"^(decoder\.to_\w+)\.ca\.fc\.0\.", r"\1.squeeze."),
            (r"^(decoder\.to_\w+)\.ca\.fc\.2\.", r"\1.excite."),
            (r"^(decoder\.to_\w+)\.conv_se\.", r"\1.conv."),
        ),
    ),
    "pose_net.pth": Released(
        "pose",
        "resnet18",
        lambda: build_pose_net("resnet18"),
        (
            (r"^pose_encoder\.encoder\.", "encoder."),
            (r"^pose_decoder\.net\.0\.", "squeeze."),
            (r"^pose_decoder\.net\.1\.", "convs.0."),
            (r"^pose_decoder\.net\.2\.", "convs.1."),
            (r"^pose_decoder\.net\.3\.", "head.1."),
        ),
        unused=r"pose_encoder\.encoder\.fc\.(weight|bias)",
    ),
    "raft.pth": Released(
        "motion",
        "raft",
        lambda: build_motion_net("raft"),
        (
            (r"^fnet\.", "feature_encoder."),
            (r"^cnet\.", "context_encoder."),
            (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
            (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
            (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
            (r"^(\w+_encoder\.layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
            # The third norm is the shortcut's, registered a second time as downsample.1.
            (r"^(\w+_encoder\.layer\d\.\d)\.norm3\.", r"\1.downsample.1."),
            (r"^(\w+_encoder\.layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
            (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
            (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
            (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
            (r"^update_block\.gru\.conv(\w)(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
            (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
            (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
        ),
    ),
    "depth_scale_alignment.pth": Released(
        "scale",
        "resnet18",
        lambda: build_scale_net("resnet18", positive=False),
        (
            (r"^all_feature_extractor\.0\.", "encoder.conv1."),
            (r"^all_feature_extractor\.1\.", "encoder.bn1."),
            *((rf"^all_feature_extractor\.{layer + 3}\.", f"encoder.layer{layer}.") for layer in (1, 2, 3, 4)),
            *((rf"^fc\.{layer}\.", f"head.{layer + 2}.") for layer in (0, 2, 4)),
        ),
        constants={"positive": torch.tensor(False)},
    ),
    "slot_attention.pth": Released(
        "slots",
        "published",
        lambda: build_slot_net("published"),
        (
            (r"^encoder\.(\d)\.0\.", r"encoder.\1."),
            (r"^decoder\.4\.(\d)\.", r"decoder_out.\1."),
            (r"^decoder\.([0-3])\.0\.", r"decoder.\1."),
            (r"^(encoder|decoder)_pos_embedding\.dense\.", r"\1_position."),
            (r"^encoder_out_layer\.", "encoder_out."),
            (r"^z_residual\.", "emptiness_context."),
            (r"^z_predictor\.", "emptiness_head."),
        ),
        # Coordinates, which our net makes for any size.
        unused=r"(encoder|decoder)_pos_embedding\.grid",
    ),
    "ground_segmentation.pth": Released("ground", "published", lambda: build_ground_net("published", SIZE), ()),
    "maskrcnn.pth": Released(
        "detector",
        "resnet18",
        lambda: build_detector("resnet18", SIZE, magnify=PUBLISHED_MAGNIFY),
        # torchvision before 0.13 had fewer containers around these layers.
        (
            (r"^(backbone\.fpn\.\w+_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
            (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
            *((rf"^roi_heads\.mask_head\.mask_fcn{n}\.", f"roi_heads.mask_head.{n - 1}.0.") for n in (1, 2, 3, 4)),
        ),
    ),
}


def convert(state: Mapping[str, Tensor], released: Released) -> nn.Module:
    """Our network with the tensors of a published state dict.

    Raises:
        ConversionError: tensors are missing, left over, of the wrong shape, or stored twice with different values.
    """
    net = released.build()
    own = net.state_dict()
    found: dict[str, Tensor] = dict(released.constants)
    problems: list[str] = []
    for published, tensor in state.items():
        name = published.removeprefix("module.")
        if re.fullmatch(released.unused, name):
            continue
        for pattern, replacement in released.renames:
            name = re.sub(pattern, replacement, name)
        if name not in own:
            problems.append(f"left over: {published}")
        elif tensor.shape != own[name].shape:
            problems.append(f"wrong shape: {published} is {list(tensor.shape)}, should be {list(own[name].shape)}")
        elif name in found and not torch.equal(found[name], tensor):
            problems.append(f"stored twice with different values: {published}")
        found.setdefault(name, tensor)
    problems += [f"missing: {name}" for name in own if name not in found]
    if problems:
        raise ConversionError("\n".join(problems))
    net.load_state_dict(found)
    return net


def convert_folder(folder: Path, out: Path) -> dict[str, nn.Module]:
    """Convert every known file of ``folder`` into ``out / "weights.safetensors"``; returns the nets by role.

    Raises:
        ConversionError: no known file is there, or one is unreadable or does not fit; nothing is written.
    """
    files = {name: folder / name for name in RELEASED if (folder / name).is_file()}
    if not files:
        below = sorted({str(path.parent) for name in RELEASED for path in folder.rglob(name)})
        hint = f"; there are some in {', '.join(below)}" if below else ""
        raise ConversionError(f"{folder} holds none of {', '.join(RELEASED)}{hint}")
    nets: dict[str, nn.Module] = {}
    problems: list[str] = []
    for name, path in files.items():
        try:
            nets[RELEASED[name].role] = convert(_read(path), RELEASED[name])
        except ConversionError as error:
            problems += [f"{path}:", *(f"  {line}" for line in str(error).splitlines())]
    if problems:
        raise ConversionError("\n".join(problems))
    names = {RELEASED[name].role: RELEASED[name].net for name in files}
    save_weights(out / WEIGHTS, nets, names, {"format": "published", "size": SIZE, "magnify": PUBLISHED_MAGNIFY})
    return nets


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the broken bytes lead to
        raise ConversionError(f"cannot be read: {str(error).splitlines()[0] if str(error) else error!r}") from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConversionError("is no state dict: it must map names to tensors")
    return state


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 where nothing was written."""
    parser = argparse.ArgumentParser(prog="mcd convert", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="published checkpoint folder with *.pth files")
    parser.add_argument("-o", "--out", type=Path, required=True, help=f"folder to write {WEIGHTS} to")
    given = parser.parse_args(arguments)
    try:
        nets = convert_folder(given.folder, given.out)
    except (ConversionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for file, released in RELEASED.items():
        if released.role in nets:
            count = sum(parameter.numel() for parameter in nets[released.role].parameters())
            print(f"{file}: {released.role} net '{released.net}', {count:,} parameters")
    others = sorted(path.name for path in given.folder.glob("*.pth") if path.name not in RELEASED)
    if others:
        print(f"not converted: {', '.join(others)}")
    print(f"wrote {given.out / WEIGHTS}")
    return 0
