"""Slot attention: a picture of the residual flow is explained by a background slot and a few object slots.

forward(scene [N, 4, h, w], noise [N or 1, slots, channels], use_emptiness=False) -> :class:`Slots`. The scene is the
flow picture (3 channels in [-1, 1], white is no motion) and the depth of what moves (1 channel in [0, 1], 1 where
nothing does). Slots start from the caller's standard normal noise, so the same noise gives the same slots; the
published net draws it by itself, at inference too. Nguyen et al., CVPR 2024; Locatello et al., NeurIPS 2020.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcd.nets.layers import widen

SLOTS = 5
ITERATIONS = 3
DECODER_LAYERS = 4
STRIDE = 2**DECODER_LAYERS
"""Sides of scenes are multiples of this."""
SCENE_CHANNELS = 4


class Slots(NamedTuple):
    """What every slot says of N scenes; slot 0 is the background."""

    masks: Tensor
    """[N, slots, h, w], float32, sum to 1 over the slots."""
    flow: Tensor
    """[N, slots, 3, h, w], float32, in [-1, 1]."""
    depth: Tensor
    """[N, slots, 1, h, w], float32, not negative."""
    fullness: Tensor
    """[N, slots - 1], float32, in (0, 1): near 0, the object slot is empty."""


class SlotNet(nn.Module):
    """Encoder, slot attention, emptiness, and a spatial broadcast decoder.

    Args:
        channels: width of every layer, and of a slot.
        kernel: side of the convolutions of the encoder and of those that double in the decoder.
        doublings: how many of the decoder's layers double its grid. The fewer, the finer is the grid that slots are
            broadcast to, and the earlier the decoder knows the position of each object.
        own_starts: every slot begins from a mean of its own, where the published ones differ by their noise alone.
        still_bias: what does not move begins as the background: the background's attention is raised there by so much,
            and lowered elsewhere. With 0, as published, it takes a long training until slots look at what moves, which
            is little of a picture.
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        emptiness_width: int,
        *,
        doublings: int = DECODER_LAYERS,
        own_starts: bool = False,
        still_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.still_bias, self._upscale = still_bias, 2**doublings
        pad, objects = kernel // 2, SLOTS - 1
        self.encoder = nn.ModuleList(
            nn.Conv2d(SCENE_CHANNELS if layer == 0 else channels, channels, kernel, padding=pad) for layer in range(4)
        )
        self.encoder_position = nn.Linear(4, channels)
        self.encoder_out = nn.Sequential(nn.Linear(channels, channels), nn.LeakyReLU(), nn.Linear(channels, channels))
        self.slot_attention = SlotAttention(channels, own_starts=own_starts)
        self.emptiness_context = nn.Sequential(
            nn.Linear(objects * channels, emptiness_width),
            nn.LeakyReLU(),
            nn.Linear(emptiness_width, objects * channels),
            nn.LeakyReLU(),
        )
        self.emptiness_head = nn.Sequential(nn.Linear(channels, channels), nn.LeakyReLU(), nn.Linear(channels, 1))
        self.decoder_position = nn.Linear(4, channels)
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels, kernel, stride=2, padding=pad, output_padding=1)
            if layer >= DECODER_LAYERS - doublings
            else nn.ConvTranspose2d(channels, channels, kernel, padding=pad)
            for layer in range(DECODER_LAYERS)
        )
        self.decoder_out = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, kernel, padding=pad),
            nn.LeakyReLU(),
            nn.ConvTranspose2d(channels, 5, 3, padding=1),
        )
        initialise_for_leaky_relu(self)

    def forward(self, scene: Tensor, noise: Tensor, use_emptiness: bool = False) -> Slots:
        self._check(scene, noise)
        features, size = scene, (scene.shape[-2], scene.shape[-1])
        for layer in self.encoder:
            features = F.leaky_relu(layer(features))
        features = features + position(self.encoder_position, size, scene)
        tokens = self.encoder_out(features.flatten(2).transpose(1, 2))
        slots = self.slot_attention(tokens, noise.expand(len(scene), -1, -1), self._background_bias(scene))
        flow, depth, logits = self._decode(slots, size)
        masks = logits.softmax(dim=1)
        objects = slots[:, 1:]
        context = self.emptiness_context(objects.flatten(1)).view_as(objects)
        fullness = widen(self.emptiness_head(objects + context).squeeze(-1)).sigmoid()
        return Slots(suppress_empty(masks, fullness) if use_emptiness else masks, flow, depth, fullness)

    def _background_bias(self, scene: Tensor) -> Tensor | None:
        """What the background's attention is raised by [N, T, 1]."""
        if not self.still_bias:
            return None
        still = (scene[:, :3] > 1 - 1e-3).all(dim=1).flatten(1)[..., None]
        return torch.where(still, self.still_bias, -self.still_bias)

    def _decode(self, slots: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Flow and depth of every slot, and the logits of its mask [N, slots, h, w]."""
        grid = (size[0] // self._upscale, size[1] // self._upscale)
        seeds = slots.flatten(0, 1)[:, :, None, None].expand(-1, -1, *grid)
        features = seeds + position(self.decoder_position, grid, slots)
        for layer in self.decoder:
            features = F.leaky_relu(layer(features))
        decoded = widen(self.decoder_out(features)).unflatten(0, slots.shape[:2])
        flow, depth, logits = decoded.split((3, 1, 1), dim=2)
        lowest = flow.amin(dim=(2, 3, 4), keepdim=True)
        highest = flow.amax(dim=(2, 3, 4), keepdim=True)
        flow = 2 * (flow - lowest) / (highest - lowest + 1e-7) - 1
        return flow, depth.relu(), logits.squeeze(2)

    def _check(self, scene: Tensor, noise: Tensor) -> None:
        if scene.ndim != 4 or scene.shape[1] != SCENE_CHANNELS or any(side % STRIDE for side in scene.shape[-2:]):
            raise ValueError(
                f"the slot net takes scenes [N, {SCENE_CHANNELS}, h, w] whose sides are multiples of {STRIDE}, "
                f"not {list(scene.shape)}"
            )
        if noise.ndim != 3 or noise.shape[0] not in (1, len(scene)) or noise.shape[1:] != (SLOTS, self.channels):
            raise ValueError(
                f"the slot net takes noise [{len(scene)} or 1, {SLOTS}, {self.channels}], not {list(noise.shape)}"
            )


class SlotAttention(nn.Module):
    """Slots compete for tokens: attention is a softmax over slots, and a recurrent cell updates them.

    Args:
        own_starts: every object slot begins from a mean of its own, around which its noise is small.
    """

    slots_mu: Tensor
    slots_log_sigma: Tensor
    slots_bg_mu: Tensor
    slots_bg_log_sigma: Tensor

    def __init__(self, channels: int, *, own_starts: bool = False) -> None:
        super().__init__()
        self.norm_inputs, self.norm_slots, self.norm_mlp = (nn.LayerNorm(channels) for _ in range(3))
        self.project_q, self.project_k, self.project_v = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.gru = nn.GRUCell(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))
        for name in ("slots_mu", "slots_log_sigma", "slots_bg_mu", "slots_bg_log_sigma"):
            self.register_parameter(name, nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, channels))))
        if own_starts:
            self.slots_mu = nn.Parameter(torch.randn(1, SLOTS - 1, channels))
            nn.init.normal_(self.slots_bg_mu)
            for spread in (self.slots_log_sigma, self.slots_bg_log_sigma):
                nn.init.constant_(spread, math.log(0.3))

    def forward(self, tokens: Tensor, noise: Tensor, background_bias: Tensor | None = None) -> Tensor:
        """tokens [N, T, C], noise [N, slots, C], bias of the background [N, T, 1] -> slots [N, slots, C]."""
        tokens = self.norm_inputs(tokens)
        keys, values = self.project_k(tokens), self.project_v(tokens)
        background = self.slots_bg_mu + self.slots_bg_log_sigma.exp() * noise[:, :1]
        slots = torch.cat((background, self.slots_mu + self.slots_log_sigma.exp() * noise[:, 1:]), dim=1)
        for _ in range(ITERATIONS):
            queries = self.project_q(self.norm_slots(slots))
            logits = keys @ queries.transpose(1, 2) * slots.shape[-1] ** -0.5
            if background_bias is not None:
                logits = torch.cat((logits[..., :1] + background_bias, logits[..., 1:]), dim=-1)
            # Sums over all tokens of a picture: bfloat16 would lose most of them.
            attention = widen(logits).softmax(dim=-1) + 1e-8
            attention = (attention / attention.sum(dim=1, keepdim=True)).to(values.dtype)
            updates = attention.transpose(1, 2) @ values
            # The state of the recurrence keeps its precision.
            with torch.autocast(tokens.device.type, enabled=False):
                dtype = self.gru.weight_hh.dtype
                slots = self.gru(updates.flatten(0, 1).to(dtype), slots.flatten(0, 1).to(dtype)).view_as(slots)
            slots = slots + self.mlp(self.norm_mlp(slots))
        return slots


def initialise_for_leaky_relu(net: nn.Module) -> None:
    """Convolutions that keep the spread of what passes through.

    torch's own initialisation halves it in every layer, so that all slots would start with the same masks, to four
    digits.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            reached = float(layer.in_channels * math.prod(layer.kernel_size))
            if isinstance(layer, nn.ConvTranspose2d):
                reached /= math.prod(layer.stride)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / reached))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def suppress_empty(masks: Tensor, fullness: Tensor) -> Tensor:
    """Masks [N, slots, h, w] from which object slots withdraw as far as they are empty; the background takes over."""
    weighted = masks[:, 1:] * fullness[:, :, None, None]
    objects = weighted * (weighted / (weighted.sum(dim=1, keepdim=True) + 1e-10))
    # Not 1 - objects: where the background has next to nothing, that would round to nothing, or below.
    withdrawn = (masks[:, 1:] - objects).sum(dim=1, keepdim=True)
    return torch.cat((masks[:, :1] + withdrawn, objects), dim=1)


def position(embedding: nn.Module, size: tuple[int, int], like: Tensor) -> Tensor:
    """Embedded (y, x, 1 - y, 1 - x) [1, C, h, w] of a grid whose corners are at 0 and 1."""
    y, x = (torch.linspace(0, 1, side, device=like.device) for side in size)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
    return embedding(torch.cat((grid, 1 - grid), dim=-1).to(like.dtype)).permute(2, 0, 1)[None]


def build_slot_net(name: str) -> SlotNet:
    """The slot net ``light`` (0.1 M parameters, made to learn within a thousand steps) or ``published`` (979,046).

    Raises:
        ValueError: there is no such network.
    """
    if name == "published":
        return SlotNet(channels=64, kernel=5, emptiness_width=160)
    if name == "light":
        return SlotNet(channels=32, kernel=3, emptiness_width=80, doublings=2, own_starts=True, still_bias=8.0)
    raise ValueError(f"no slot net '{name}'; there are light, published")
