"""Steps of every stage by many processes: run as a program, it writes what each number of them finds.

``python shares.py FOLDER first``: first steps in float64 by 1, 2 and 3 processes, into ``FOLDER/first-N.pt``;
``steps``: a few, of objects 20, in float64 by 1 and 2, into ``FOLDER/steps-N.pt``. Batches are drawn, not read: a
global one, of which each process takes its slice.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from mcd import world
from mcd.config import Config, parse_config
from mcd.run.checkpoint import save_weights
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.stages import TrainingStage
from mcd.stages.detector import DetectorStage
from mcd.stages.final import FinalStage
from mcd.stages.ground import GroundStage
from mcd.stages.object import ObjectStage
from mcd.stages.scale import ScaleStage
from mcd.stages.scene import SceneStage
from mcd.stages.slots import SlotsStage
from mcd.training.nan_guard import NanGuard
from mcd.training.profiling import StepTimer
from mcd.training.state import TrainState
from mcd.training.step import take_step
from mcd.training.together import average_gradients, normalise_together

SIZE, BATCH, STEPS = (64, 96), 6, 20
# Steps by case. That of the scene multiplies a difference by about ten, so that rounding, 1e-16, is percents after 14.
SHORT = {"scene: together": 5, "object": STEPS}
CPU = torch.device("cpu")

Make = Callable[[Context], TrainingStage]
# Stage and the step that is taken first: where it stands in phases and ramps.
CASES: dict[str, tuple[Make, int]] = {
    "scene: depth and pose": (SceneStage, 0),
    "scene: motion": (SceneStage, 1),
    "scene: together": (SceneStage, 2),
    "ground: labels": (GroundStage, 0),
    "ground: its own answers": (GroundStage, 3),
    "slots: flow and depth": (SlotsStage, 0),
    "slots: all terms": (SlotsStage, 3),
    "detector": (lambda context: DetectorStage(context, 0), 0),
    "object": (ObjectStage, 0),
    "scale": (ScaleStage, 0),
    "final": (FinalStage, 2),
}


def settings(folder: Path, nets: dict[str, str] | None = None, **sections: Any) -> Config:
    thirds = {"thirds_from": 2, "thirds_full_from": 4, "label_until": 2, "label_floor_from": 4}
    timing = {"background_from": 1, "emptiness_from": 2, "emptiness_full_from": 4}
    # Clipped gradients would hide a factor.
    common = {"steps": STEPS, "batch": BATCH, "clip": None}
    return parse_config(
        {
            "runs": str(folder),
            "data": {"size": SIZE},
            "nets": nets or {},
            "scene": common | {"motion_from": 1, "joint_from": 2},
            "ground": common | thirds | {"hide_depth": 0.5},
            "slots": common | timing | {"size": (16, 32)},
            "detector": common | {"scores": [None, 0.3], "filter_after": [1]},
            "object": common,
            "scale": common,
            "final": common | {"motion_from": 1, "joint_from": 2},
        }
        | sections
    )


def smooth(generator: torch.Generator, *shape: int, cells: int) -> Tensor:
    coarse = torch.rand(*shape[:2], shape[2] // cells + 2, shape[3] // cells + 2, generator=generator)
    return F.interpolate(coarse, shape[2:], mode="bicubic", align_corners=True).clamp(0, 1)


def global_batch(number: int) -> dict[str, Any]:
    """What all stages read; objects differ in size from sample to sample, and one has none."""
    generator = torch.Generator().manual_seed(number)
    wide = smooth(generator, BATCH, 3, SIZE[0], SIZE[1] + 8, cells=6)
    previous, reference, following = (wide[..., shift : shift + SIZE[1]] for shift in (0, 3, 6))
    object_mask = torch.zeros(BATCH, 1, *SIZE, dtype=torch.bool)
    for sample in range(BATCH - 1):
        object_mask[sample, 0, 10 : 22 + 3 * sample, 20 + 5 * sample : 40 + 9 * sample] = True
    boxes = object_mask.clone()
    boxes[-1, 0, 30:50, 8:30] = True
    road = torch.zeros(BATCH, 1, *SIZE, dtype=torch.bool)
    road[:, :, 40:] = True
    flow = (
        12
        * object_mask[:, None].expand(-1, 2, 2, -1, -1).float()
        * smooth(generator, BATCH, 4, *SIZE, cells=12).unflatten(1, (2, 2))
    )
    depth = 2 + 9 * smooth(generator, BATCH, 1, *SIZE, cells=20)
    return {
        "reference": reference,
        "sources": torch.stack((previous, following), 1),
        "K": torch.tensor([[60.0, 0, 47.5], [0, 60, 31.5], [0, 0, 1]]).repeat(BATCH, 1, 1),
        "frame": [f"{number}/{sample}" for sample in range(BATCH)],
        "draw": torch.rand(BATCH, generator=generator),
        "depth": depth,
        "scene_depth": depth,
        "flow": flow,
        "ground": road.float(),
        "road": road,
        "instances": [torch.cat([box, box.roll(30, -1)])[: 1 + sample % 2] for sample, box in enumerate(boxes)],
        "object_mask": object_mask,
        "object_masks": object_mask.expand(-1, 3, -1, -1).contiguous(),
        "pseudo_depth": torch.where(object_mask, depth * 1.3, 0.0),
        "flipped": torch.arange(BATCH) % 2 == 1,
        "dynamic_mask": object_mask,
        "skipped": [],
    }


def share_of(batch: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The part of this process. The flow stays float32: torchvision paints no other."""
    part = world.slice_of(BATCH)
    floats = {name for name, value in batch.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return {name: value[part].to(dtype) if name in floats - {"flow"} else value[part] for name, value in batch.items()}


def make_state(
    case: str,
    folder: Path,
    dtype: torch.dtype,
    nets: dict[str, str] | None = None,
    *,
    compiled: bool = False,
    **sections: Any,
) -> TrainState:
    config = settings(folder, nets, **sections).model_copy(update={"compile": compiled})
    make, step = CASES[case]
    stage = make(Context(config, Run.at(folder / "run", config), CPU))
    stage.steps_per_epoch = 1
    for net in [*stage.nets.values(), *(value for value in vars(stage).values() if isinstance(value, nn.Module))]:
        net.to(dtype)
    state = TrainState(stage)
    state.step = step
    return state


def first_step(case: str, folder: Path) -> Tensor:
    """The gradient that the optimiser sees, as one vector."""
    state = make_state(case, folder, torch.float64)
    found: list[Tensor] = []

    def see(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))

    state.begin_step().register_step_pre_hook(see)
    take_step(state, share_of(global_batch(0), torch.float64), StepTimer(CPU), NanGuard("stop", CPU))
    return found[0].clone()


def losses(case: str, folder: Path) -> Tensor:
    """The loss of every step of a short training in float64, in which rounding stays too small to matter."""
    state = make_state(case, folder, torch.float64)
    guard, found = NanGuard("stop", CPU), []
    for _ in range(SHORT[case]):
        batch = global_batch(state.step % 3)
        terms = take_step(state, share_of(batch, torch.float64), StepTimer(CPU), guard).terms
        found.append(world.total(terms["total"].detach()).double() / world.size())
        state.step += 1
    guard.report()
    return torch.stack(found)


def first_steps(folder: Path) -> dict[str, Tensor]:
    found = {case: first_step(case, folder) for case in CASES} | {"batch norm": batch_norm()}
    assert_agreed(found)
    return found


def batch_norm() -> Tensor:
    """Gradients and statistics of torch's layer, and of timm's, which ends with an activation."""
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(BATCH, 4, 5, 7, generator=generator).double() for _ in range(2))
    net = normalise_together(nn.Sequential(BatchNormAct2d(4), nn.BatchNorm2d(4)).double().train())
    mine = x[world.slice_of(BATCH)].clone().requires_grad_()
    loss = (net(mine) * weight[world.slice_of(BATCH)]).square().mean()
    loss.backward()
    loss = average_gradients([net], loss)
    assert mine.grad is not None
    inner = torch.cat(world.gather(mine.grad)) / world.size()
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    parts = [loss, inner, *gradients, *net.buffers()]
    return torch.cat([part.detach().double().flatten() for part in parts])


def short_trainings(folder: Path) -> dict[str, Tensor]:
    return {case: losses(case, folder) for case in SHORT}


def assert_agreed(found: dict[str, Tensor]) -> None:
    """All processes have the same gradients, to the last bit."""
    for case, gradient in found.items():
        assert len(set(world.gather(hashlib.sha256(gradient.numpy().tobytes()).digest()))) == 1, case


def prepare(folder: Path) -> None:
    """What the stages read of earlier ones."""
    config = settings(folder)
    run = Run(config)
    torch.manual_seed(5)
    nets = {role: Context(config, run, CPU).build(role) for role in ("depth", "pose", "motion")}
    for stage in ("scene", "object"):
        save_weights(run.stage(stage) / "weights.safetensors", nets, dict.fromkeys(nets, "light"), {})
    run.finish("predictions", train={"frames_with_motion": 1})


def fork(what: str, folder: Path, count: int) -> None:
    """Let ``count`` processes work, and keep what they find; an error in one is an error here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
            status = 1
            try:
                torch.set_num_threads(1)
                with world.joined():
                    found = (first_steps if what == "first" else short_trainings)(folder)
                    if world.is_first():
                        torch.save(found, folder / f"{what}-{count}.pt")
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children), f"one of {count} processes failed"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    prepare(place)
    for number in (1, 2, 3) if sys.argv[2] == "first" else (1, 2):
        fork(sys.argv[2], place, number)
