"""The published networks that find masks, written from their description alone; see ``published_nets``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from published_nets import Builder, State
from torch import Tensor

SLOTS, WIDTH = 5, 64


def slot_state() -> State:
    b = Builder(5)
    for layer in range(4):
        b.conv(f"encoder.{layer}.0", 64, 4 if layer == 0 else 64, 5, bias=True)
        b.conv(f"decoder.{layer}.0", 64, 64, 5, bias=True)
    b.conv("decoder.4.0", 64, 64, 5, bias=True)
    b.weight("decoder.4.2.weight", 64, 5, 3, 3)
    b.bias("decoder.4.2.bias", 5)
    for name, side in (("encoder", 128), ("decoder", 8)):
        b.linear(f"{name}_pos_embedding.dense", 64, 4)
        b.state[f"{name}_pos_embedding.grid"] = coordinates(side)[None]
    for layer in (0, 2):
        b.linear(f"encoder_out_layer.{layer}", 64, 64)
    attention = "slot_attention."
    for name in ("inputs", "slots", "mlp"):
        b.affine(f"{attention}norm_{name}", 64)
    for name in "qkv":
        b.linear(f"{attention}project_{name}", 64, 64, bias=False)
    for name in ("ih", "hh"):
        b.weight(f"{attention}gru.weight_{name}", 192, 64)
        b.bias(f"{attention}gru.bias_{name}", 192)
    b.linear(f"{attention}mlp.0", 128, 64)
    b.linear(f"{attention}mlp.2", 64, 128)
    for name in ("slots_mu", "slots_log_sigma", "slots_bg_mu", "slots_bg_log_sigma"):
        b.state[attention + name] = 0.3 * b.random(1, 1, 64)
    b.linear("z_residual.0", 160, 256)
    b.linear("z_residual.2", 256, 160)
    b.linear("z_predictor.0", 64, 64)
    b.linear("z_predictor.2", 1, 64)
    return b.state


def ground_state() -> State:
    b = Builder(6)
    b.conv("input_layer", 64, 4, 3, bias=True)
    for name, outputs in (("conv1", 64), ("conv2", 128)):
        b.conv(f"{name}.0", outputs, 64, 3, bias=True)
        b.state[f"{name}.1.weight"] = 1 + 0.1 * b.random(outputs, 192, 512)
        b.state[f"{name}.1.bias"] = 0.1 * b.random(outputs, 192, 512)
    b.conv("final_layer", 1, 128, 1, bias=True)
    return b.state


def coordinates(side: int) -> Tensor:
    """(y, x, 1 - y, 1 - x) [side, side, 4]."""
    line = torch.arange(side) / (side - 1)
    y, x = line[:, None].expand(side, side), line[None].expand(side, side)
    return torch.stack((y, x, 1 - y, 1 - x), dim=-1)


def slots(state: Mapping[str, Tensor], scene: Tensor, noise: Tensor, use_z: bool) -> dict[str, Tensor]:
    state = {name: tensor.double() for name, tensor in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        name = f"slot_attention.norm_{name}"
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])

    def transposed(name: str, x: Tensor, stride: int, padding: int) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.conv_transpose2d(x, weight, bias, stride=stride, padding=padding, output_padding=stride - 1)

    x = scene
    for layer in range(4):
        x = F.leaky_relu(F.conv2d(x, state[f"encoder.{layer}.0.weight"], state[f"encoder.{layer}.0.bias"], padding=2))
    grids = {
        name: linear(f"{name}_pos_embedding.dense", state[f"{name}_pos_embedding.grid"]).permute(0, 3, 1, 2)
        for name in ("encoder", "decoder")
    }
    tokens = (x + grids["encoder"]).flatten(2).transpose(1, 2)
    tokens = linear("encoder_out_layer.2", F.leaky_relu(linear("encoder_out_layer.0", tokens)))

    tokens = norm("inputs", tokens)
    a = "slot_attention."
    k, v = linear(a + "project_k", tokens), linear(a + "project_v", tokens)
    means = torch.cat([state[a + "slots_bg_mu"]] + [state[a + "slots_mu"]] * (SLOTS - 1), dim=1)
    spreads = torch.cat([state[a + "slots_bg_log_sigma"]] + [state[a + "slots_log_sigma"]] * (SLOTS - 1), dim=1).exp()
    s = means + spreads * noise
    for _ in range(3):
        q = linear(a + "project_q", norm("slots", s))
        attention = (k @ q.transpose(1, 2) / 8).softmax(dim=-1) + 1e-8
        updates = (attention / attention.sum(dim=1, keepdim=True)).transpose(1, 2) @ v
        s = torch.stack([gru(state, update, before) for update, before in zip(updates, s, strict=True)])
        s = s + linear(a + "mlp.2", linear(a + "mlp.0", norm("mlp", s)).relu())

    masks, flows, depths = [], [], []
    for slot in s.unbind(1):
        y = slot[:, :, None, None] + grids["decoder"]
        for layer in range(4):
            y = F.leaky_relu(transposed(f"decoder.{layer}.0", y, 2, 2))
        y = transposed("decoder.4.2", F.leaky_relu(transposed("decoder.4.0", y, 1, 2)), 1, 1)
        low, high = (getattr(y[:, :3].flatten(1), end)(dim=1)[:, None, None, None] for end in ("amin", "amax"))
        flows.append(2 * (y[:, :3] - low) / (high - low + 1e-7) - 1)
        depths.append(y[:, 3:4].relu())
        masks.append(y[:, 4])
    m = torch.stack(masks, dim=1).softmax(dim=1)
    objects = s[:, 1:]
    residual = F.leaky_relu(linear("z_residual.2", F.leaky_relu(linear("z_residual.0", objects.flatten(1)))))
    hidden = F.leaky_relu(linear("z_predictor.0", objects + residual.view_as(objects)))
    z = linear("z_predictor.2", hidden).sigmoid().squeeze(-1)
    if use_z:
        total = sum(z[:, i, None, None] * m[:, i + 1] for i in range(SLOTS - 1)) + 1e-10
        kept = [(z[:, i, None, None] * m[:, i + 1]) ** 2 / total for i in range(SLOTS - 1)]
        m = torch.stack([1 - sum(kept), *kept], dim=1)
    return {"masks": m, "flow": torch.stack(flows, 1), "depth": torch.stack(depths, 1), "fullness": z}


def gru(state: Mapping[str, Tensor], update: Tensor, before: Tensor) -> Tensor:
    a = "slot_attention.gru."
    r, z, n = F.linear(update, state[a + "weight_ih"], state[a + "bias_ih"]).chunk(3, dim=-1)
    hr, hz, hn = F.linear(before, state[a + "weight_hh"], state[a + "bias_hh"]).chunk(3, dim=-1)
    reset, keep = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
    return (1 - keep) * torch.tanh(n + reset * hn) + keep * before


def ground(state: Mapping[str, Tensor], image: Tensor, disp: Tensor) -> Tensor:
    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    x = conv("input_layer", torch.cat((image, disp / disp.max()), dim=1)).relu()
    for name in ("conv1", "conv2"):
        x = conv(f"{name}.0", x)
        x = F.layer_norm(x, x.shape[1:], state[f"{name}.1.weight"], state[f"{name}.1.bias"]).relu()
    return conv("final_layer", x).sigmoid()
