"""The published networks, written from their description alone: state dicts by key, and what they compute.

Nothing of ``mcd`` is used here, so that the networks and the converter are compared with something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
WIDTHS = (18, 36, 72, 144)
HR_STAGES = {2: 1, 3: 4, 4: 3}  # modules of the stages with 2, 3 and 4 branches
RELU_GAIN = math.sqrt(2)


class Builder:
    """Collects random tensors of sensible size under published names."""

    def __init__(self, seed: int) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(seed)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def weight(self, name: str, *shape: int) -> None:
        self.state[name] = RELU_GAIN * self.random(*shape) / math.sqrt(math.prod(shape[1:]))

    def bias(self, name: str, count: int) -> None:
        self.state[name] = 0.1 * self.random(count)

    def conv(self, name: str, outputs: int, inputs: int, size: int | tuple[int, int], *, bias: bool = False) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        self.weight(f"{name}.weight", outputs, inputs, height, width)
        if bias:
            self.bias(f"{name}.bias", outputs)

    def affine(self, name: str, channels: int) -> None:
        # Below one, so that sums of residuals and branches do not saturate the sigmoids.
        self.state[f"{name}.weight"] = 0.4 + 0.1 * self.random(channels)
        self.bias(f"{name}.bias", channels)

    def batch_norm(self, name: str, channels: int) -> None:
        self.affine(name, channels)
        self.state[f"{name}.running_mean"] = 0.1 * self.random(channels)
        self.state[f"{name}.running_var"] = 1 + 0.1 * self.random(channels).abs()
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def linear(self, name: str, outputs: int, inputs: int, *, bias: bool = True) -> None:
        self.weight(f"{name}.weight", outputs, inputs)
        if bias:
            self.bias(f"{name}.bias", outputs)

    def basic_block(self, name: str, inputs: int, outputs: int, norm: Callable[[str, int], None]) -> None:
        self.conv(f"{name}.conv1", outputs, inputs, 3)
        norm(f"{name}.bn1", outputs)
        self.conv(f"{name}.conv2", outputs, outputs, 3)
        norm(f"{name}.bn2", outputs)
        if inputs != outputs:
            self.conv(f"{name}.downsample.0", outputs, inputs, 1)
            norm(f"{name}.downsample.1", outputs)


def duplicate(state: State, source: str, copy: str) -> None:
    for name in [name for name in state if name.startswith(source)]:
        state[copy + name.removeprefix(source)] = state[name]


def with_prefix(state: State) -> State:
    return {f"module.{name}": tensor for name, tensor in state.items()}


# --- state dicts


def diffnet_state() -> State:
    b = Builder(1)
    e = "depth_encoder."
    b.conv(e + "conv1", 64, 3, 3)
    b.batch_norm(e + "bn1", 64)
    b.conv(e + "conv2", 64, 64, 3)
    b.batch_norm(e + "bn2", 64)
    for block in range(4):
        name, inputs = f"{e}layer1.{block}", 64 if block == 0 else 256
        for index, (outputs, ins, size) in enumerate(((64, inputs, 1), (64, 64, 3), (256, 64, 1)), start=1):
            b.conv(f"{name}.conv{index}", outputs, ins, size)
            b.batch_norm(f"{name}.bn{index}", outputs)
        if block == 0:
            b.conv(f"{name}.downsample.0", 256, 64, 1)
            b.batch_norm(f"{name}.downsample.1", 256)
    for name, outputs, inputs in (
        ("transition1.0", 18, 256),
        ("transition1.1.0", 36, 256),
        ("transition2.2.0", 72, 36),
        ("transition3.3.0", 144, 72),
    ):
        b.conv(f"{e}{name}.0", outputs, inputs, 3)
        b.batch_norm(f"{e}{name}.1", outputs)
    for branches, modules in HR_STAGES.items():
        for module in range(modules):
            _hr_module_state(b, f"{e}stage{branches}.{module}", WIDTHS[:branches])
    d = "depth_decoder.convs."
    for name, channels, hidden, outputs in (
        ("72", 288, 18, 256),
        ("36", 364, 22, 128),
        ("18", 246, 15, 64),
        ("9", 128, 8, 32),
    ):
        b.linear(f"{d}{name}.ca.fc.0", hidden, channels, bias=False)
        b.linear(f"{d}{name}.ca.fc.2", channels, hidden, bias=False)
        b.conv(f"{d}{name}.conv_se", outputs, channels, 3, bias=True)
    b.conv(d + "up_x9_0.conv.conv", 16, 32, 3, bias=True)
    b.conv(d + "up_x9_1.conv.conv", 16, 16, 3, bias=True)
    for scale, channels in enumerate((16, 32, 64, 128)):
        b.conv(f"{d}dispConvScale{scale}.conv", 1, channels, 3, bias=True)
    order = ("up_x9_0", "up_x9_1", "72", "36", "18", "9", *(f"dispConvScale{scale}" for scale in range(4)))
    for index, name in enumerate(order):
        duplicate(b.state, f"{d}{name}.", f"depth_decoder.decoder.{index}.")
    return with_prefix(b.state)


def _hr_module_state(b: Builder, name: str, widths: Sequence[int]) -> None:
    for branch, width in enumerate(widths):
        for block in range(4):
            b.basic_block(f"{name}.branches.{branch}.{block}", width, width, b.batch_norm)
    for i in range(len(widths)):
        for j in range(len(widths)):
            fuse = f"{name}.fuse_layers.{i}.{j}"
            if j > i:
                b.conv(f"{fuse}.0", widths[i], widths[j], 1)
                b.batch_norm(f"{fuse}.1", widths[i])
            for k in range(i - j):
                outputs = widths[i] if k == i - j - 1 else widths[j]
                b.conv(f"{fuse}.{k}.0", outputs, widths[j], 3)
                b.batch_norm(f"{fuse}.{k}.1", outputs)


def _resnet18_state(b: Builder, name: Callable[[str], str], inputs: int, norm: Callable[[str, int], None]) -> None:
    b.conv(name("conv1"), 64, inputs, 7)
    norm(name("bn1"), 64)
    before = 64
    for layer, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            b.basic_block(f"{name(f'layer{layer}')}.{block}", before, width, norm)
            before = width


def pose_state() -> State:
    b = Builder(2)
    _resnet18_state(b, lambda part: f"pose_encoder.encoder.{part}", 6, b.batch_norm)
    b.linear("pose_encoder.encoder.fc", 1000, 512)
    for index, (outputs, inputs, size) in enumerate(((256, 512, 1), (256, 256, 3), (256, 256, 3), (12, 256, 1))):
        b.conv(f"pose_decoder.net.{index}", outputs, inputs, size, bias=True)
    return with_prefix(b.state)


def raft_state() -> State:
    b = Builder(3)
    for net, outputs in (("fnet", 256), ("cnet", 256)):
        normalised = net == "cnet"
        b.conv(f"{net}.conv1", 64, 3, 7, bias=True)
        if normalised:
            b.batch_norm(f"{net}.norm1", 64)
        before = 64
        for layer, width in enumerate((64, 96, 128), start=1):
            for block in range(2):
                name = f"{net}.layer{layer}.{block}"
                b.conv(f"{name}.conv1", width, before, 3, bias=True)
                b.conv(f"{name}.conv2", width, width, 3, bias=True)
                norms = ["norm1", "norm2"]
                if before != width:
                    b.conv(f"{name}.downsample.0", width, before, 1, bias=True)
                    norms.append("norm3")
                if normalised:
                    for norm in norms:
                        b.batch_norm(f"{name}.{norm}", width)
                    duplicate(b.state, f"{name}.norm3.", f"{name}.downsample.1.")
                before = width
        b.conv(f"{net}.conv2", outputs, 128, 1, bias=True)
    u = "update_block."
    for name, outputs, inputs, size in (
        ("encoder.convc1", 256, 324, 1),
        ("encoder.convc2", 192, 256, 3),
        ("encoder.convf1", 128, 2, 7),
        ("encoder.convf2", 64, 128, 3),
        ("encoder.conv", 126, 256, 3),
        *((f"gru.conv{gate}1", 128, 384, (1, 5)) for gate in "zrq"),
        *((f"gru.conv{gate}2", 128, 384, (5, 1)) for gate in "zrq"),
        ("flow_head.conv1", 256, 128, 3),
        ("flow_head.conv2", 2, 256, 3),
        ("mask.0", 256, 128, 3),
        ("mask.2", 576, 256, 1),
    ):
        b.conv(u + name, outputs, inputs, size, bias=True)
    return with_prefix(b.state)


def scale_state() -> State:
    b = Builder(4)
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    _resnet18_state(b, lambda part: f"all_feature_extractor.{places[part]}", 5, b.affine)
    for index, (outputs, inputs) in zip((0, 2, 4), ((256, 512), (128, 256), (1, 128)), strict=True):
        b.linear(f"fc.{index}", outputs, inputs)
    return b.state


def detector_state(*, old_names: bool = False) -> State:
    """Mask R-CNN of torchvision, with frozen batch normalisation; ``old_names``: as before its release 0.13."""
    b = Builder(5)

    def frozen_norm(name: str, channels: int) -> None:
        b.batch_norm(name, channels)
        del b.state[f"{name}.num_batches_tracked"]

    _resnet18_state(b, lambda part: f"backbone.body.{part}", 5, frozen_norm)
    inner = "" if old_names else ".0"
    for level, channels in enumerate((64, 128, 256, 512)):
        b.conv(f"backbone.fpn.inner_blocks.{level}{inner}", 256, channels, 1, bias=True)
        b.conv(f"backbone.fpn.layer_blocks.{level}{inner}", 256, 256, 3, bias=True)
    b.conv("rpn.head.conv" if old_names else "rpn.head.conv.0.0", 256, 256, 3, bias=True)
    b.conv("rpn.head.cls_logits", 3, 256, 1, bias=True)
    b.conv("rpn.head.bbox_pred", 12, 256, 1, bias=True)
    r = "roi_heads."
    b.linear(r + "box_head.fc6", 1024, 256 * 7 * 7)
    b.linear(r + "box_head.fc7", 1024, 1024)
    b.linear(r + "box_predictor.cls_score", 2, 1024)
    b.linear(r + "box_predictor.bbox_pred", 8, 1024)
    for index in range(4):
        b.conv(f"{r}mask_head.mask_fcn{index + 1}" if old_names else f"{r}mask_head.{index}.0", 256, 256, 3, bias=True)
    b.weight(r + "mask_predictor.conv5_mask.weight", 256, 256, 2, 2)
    b.bias(r + "mask_predictor.conv5_mask.bias", 256)
    b.conv(r + "mask_predictor.mask_fcn_logits", 2, 256, 1, bias=True)
    return with_prefix(b.state)


# --- what they compute


class Reader:
    """Layers by published name, in evaluation mode and float64."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = {
            name.removeprefix("module."): tensor.double() if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }

    def conv(self, name: str, x: Tensor, stride: int = 1, *, reflect: bool = False) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
        if reflect:
            x, padding = F.pad(x, (1, 1, 1, 1), mode="reflect"), (0, 0)
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride=stride, padding=padding)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        if f"{name}.running_mean" not in self.state:
            return F.group_norm(x, 1, weight, bias)
        return F.batch_norm(x, self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"], weight, bias)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def basic_block(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        y = F.relu(self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x, stride)))
        y = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", y))
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, stride))
        return F.relu(x + y)

    def resnet18(self, name: Callable[[str], str], x: Tensor) -> Tensor:
        x = F.relu(self.norm(name("bn1"), self.conv(name("conv1"), x, 2)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for layer in (1, 2, 3, 4):
            for block in range(2):
                x = self.basic_block(f"{name(f'layer{layer}')}.{block}", x, 2 if layer > 1 and block == 0 else 1)
        return x


def diffnet_depths(state: Mapping[str, Tensor], image: Tensor) -> list[Tensor]:
    r = Reader(state)

    def conv_norm(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return r.norm(f"{name}.1", r.conv(f"{name}.0", x, stride))

    def hr_module(name: str, inputs: list[Tensor]) -> list[Tensor]:
        branches = []
        for branch, x in enumerate(inputs):
            for block in range(4):
                x = r.basic_block(f"{name}.branches.{branch}.{block}", x)
            branches.append(x)
        outputs = []
        for i, own in enumerate(branches):
            total = torch.zeros_like(own)
            for j, x in enumerate(branches):
                fuse = f"{name}.fuse_layers.{i}.{j}"
                if j > i:
                    x = F.interpolate(conv_norm(fuse, x), own.shape[2:], mode="bilinear", align_corners=True)
                for k in range(i - j):
                    x = conv_norm(f"{fuse}.{k}", x, 2)
                    x = x if k == i - j - 1 else F.relu(x)
                total = total + x
            outputs.append(F.relu(total))
        return outputs

    def stage(branches: int, xs: list[Tensor]) -> list[Tensor]:
        for module in range(HR_STAGES[branches]):
            xs = hr_module(f"{e}stage{branches}.{module}", xs)
        return xs

    e = "depth_encoder."
    half = F.relu(r.norm(e + "bn1", r.conv(e + "conv1", image, 2)))
    quarter = x = F.relu(r.norm(e + "bn2", r.conv(e + "conv2", half, 2)))
    for block in range(4):
        name = f"{e}layer1.{block}"
        y = F.relu(r.norm(f"{name}.bn1", r.conv(f"{name}.conv1", x)))
        y = F.relu(r.norm(f"{name}.bn2", r.conv(f"{name}.conv2", y)))
        y = r.norm(f"{name}.bn3", r.conv(f"{name}.conv3", y))
        x = F.relu(y + (conv_norm(f"{name}.downsample", x) if block == 0 else x))
    second = stage(2, [F.relu(conv_norm(e + "transition1.0", x)), F.relu(conv_norm(e + "transition1.1.0", x, 2))])
    third = stage(3, [*second, F.relu(conv_norm(e + "transition2.2.0", second[-1], 2))])
    fourth = stage(4, [*third, F.relu(conv_norm(e + "transition3.3.0", third[-1], 2))])

    def attend(name: str, high: Tensor, *lows: Tensor) -> Tensor:
        x = torch.cat([F.interpolate(high, scale_factor=2.0, mode="nearest"), *lows], dim=1)
        gate = r.linear(f"{d}{name}.ca.fc.2", F.relu(r.linear(f"{d}{name}.ca.fc.0", x.mean(dim=(2, 3)))))
        return F.relu(r.conv(f"{d}{name}.conv_se", x * torch.sigmoid(gate)[:, :, None, None]))

    d = "depth_decoder.convs."
    x16 = attend("72", fourth[3], third[2], fourth[2])
    x8 = attend("36", x16, second[1], third[1], fourth[1])
    x4 = attend("18", x8, quarter, second[0], third[0], fourth[0])
    x2 = attend("9", x4, half)
    x1 = F.elu(r.conv(d + "up_x9_0.conv.conv", x2, reflect=True))
    x1 = F.elu(r.conv(d + "up_x9_1.conv.conv", F.interpolate(x1, scale_factor=2.0, mode="nearest"), reflect=True))
    logits = [r.conv(f"{d}dispConvScale{s}.conv", x, reflect=True) for s, x in enumerate((x1, x2, x4, x8))]
    return [1 / (0.01 + 9.99 * torch.sigmoid(logit)) for logit in logits]


def pose_motion(state: Mapping[str, Tensor], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    r = Reader(state)
    x = (torch.cat([first, second], dim=1) - 0.45) / 0.225
    x = r.resnet18(lambda part: f"pose_encoder.encoder.{part}", x)
    for index in range(3):
        x = F.relu(r.conv(f"pose_decoder.net.{index}", x))
    motions = 0.01 * r.conv("pose_decoder.net.3", x).mean(dim=(2, 3)).view(-1, 2, 6)
    return motions[:, 0, :3], motions[:, 0, 3:]


def scale_factor(state: Mapping[str, Tensor], image: Tensor, ground: Tensor, object_depth: Tensor) -> Tensor:
    r = Reader(state)
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    x = torch.cat([image, ground, object_depth], dim=1)
    x = r.resnet18(lambda part: f"all_feature_extractor.{places[part]}", x).mean(dim=(2, 3))
    return r.linear("fc.4", F.relu(r.linear("fc.2", F.relu(r.linear("fc.0", x)))))[:, 0]


def raft_flow(state: Mapping[str, Tensor], warped: Tensor, source: Tensor) -> Tensor:
    """One iteration from zero flow; images in [0, 255]."""
    r = Reader(state)

    def encode(net: str, x: Tensor) -> Tensor:
        def norm(name: str, x: Tensor) -> Tensor:
            return F.instance_norm(x) if net == "fnet" else r.norm(f"{net}.{name}", x)

        x = F.relu(norm("norm1", r.conv(f"{net}.conv1", x, 2)))
        for layer in (1, 2, 3):
            for block in range(2):
                name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
                y = F.relu(norm(f"{name}.norm1", r.conv(f"{net}.{name}.conv1", x, stride)))
                y = F.relu(norm(f"{name}.norm2", r.conv(f"{net}.{name}.conv2", y)))
                if stride == 2:
                    x = norm(f"{name}.norm3", r.conv(f"{net}.{name}.downsample.0", x, 2))
                x = F.relu(x + y)
        return r.conv(f"{net}.conv2", x)

    warped, source = (2 * image / 255 - 1 for image in (warped, source))
    first, second, context = encode("fnet", warped), encode("fnet", source), encode("cnet", warped)
    batch, channels, height, width = first.shape
    volume = torch.einsum("bchw,bcyx->bhwyx", first, second) / math.sqrt(channels)
    volume = volume.reshape(batch * height * width, 1, height, width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.stack([x, y], dim=-1).double().repeat(batch, 1, 1, 1).reshape(-1, 1, 1, 2)
    offsets = torch.arange(-4.0, 5.0, dtype=torch.float64)
    # Published ordering: the first index of the window is added to x, the second to y.
    window = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1)
    looked_up = []
    for level in range(4):
        size = torch.tensor([volume.shape[3] - 1, volume.shape[2] - 1])
        grid = 2 * (centre / 2**level + window) / size - 1
        looked_up.append(F.grid_sample(volume, grid, align_corners=True).view(batch, height, width, 81))
        volume = F.avg_pool2d(volume, 2)
    correlation = torch.cat(looked_up, dim=-1).permute(0, 3, 1, 2)

    u = "update_block."
    hidden, context = torch.tanh(context[:, :128]), F.relu(context[:, 128:])
    flow = torch.zeros(batch, 2, height, width, dtype=torch.float64)
    matched = F.relu(r.conv(u + "encoder.convc2", F.relu(r.conv(u + "encoder.convc1", correlation))))
    moved = F.relu(r.conv(u + "encoder.convf2", F.relu(r.conv(u + "encoder.convf1", flow))))
    motion = F.relu(r.conv(u + "encoder.conv", torch.cat([matched, moved], dim=1)))
    given = torch.cat([context, motion, flow], dim=1)
    for half in "12":
        both = torch.cat([hidden, given], dim=1)
        update = torch.sigmoid(r.conv(f"{u}gru.convz{half}", both))
        reset = torch.sigmoid(r.conv(f"{u}gru.convr{half}", both))
        proposal = torch.tanh(r.conv(f"{u}gru.convq{half}", torch.cat([reset * hidden, given], dim=1)))
        hidden = (1 - update) * hidden + update * proposal
    flow = r.conv(u + "flow_head.conv2", F.relu(r.conv(u + "flow_head.conv1", hidden)))
    mask = 0.25 * r.conv(u + "mask.2", F.relu(r.conv(u + "mask.0", hidden)))
    share = mask.view(batch, 1, 9, 8, 8, height, width).softmax(dim=2)
    neighbours = F.unfold(8 * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    fine = (share * neighbours).sum(dim=2)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, 8 * height, 8 * width)
