"""What the published training would take on H100 GPUs, from parts: ``python -m benchmarks.scaling [--config C]``.

An estimate, not a result: nothing of it has run on a GPU. The operations of the networks are counted in a forward
pass of every stage and phase, the bytes that processes exchange in their parameters; the operators' kernels come from
the model in ``benchmarks/model.json``, the loader's rate from ``benchmarks/bench_data.py``. All that is assumed is
printed and can be given otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from mcd.config import Config, load_config
from mcd.run.context import Context
from mcd.run.folder import Run
from mcd.stages import STAGES, TrainingStage
from mcd.training.plan import _noise

GPUS = (1, 8, 64)
MODEL = Path(__file__).parent / "model.json"
_MODELLED_BATCH = 12
# Operators of a step, by stage; those of the residual motion are in the scene's phases that have it.
_OPERATORS: Mapping[str, tuple[str, ...]] = {
    "scene": ("view_synthesis_loss", "smoothness_loss"),
    "scene with motion": ("view_synthesis_loss", "smoothness_loss", "forward_warp", "motion_sparsity"),
    "object": ("view_synthesis_loss", "smoothness_loss"),
    "final": ("view_synthesis_loss", "smoothness_loss", "forward_warp", "motion_sparsity", "scale_invariant_loss"),
}


@dataclass(frozen=True)
class Assumed:
    """What nobody has measured here, with the reason for each number."""

    train_frames: int = field(default=69_725, metadata={"why": "of Cityscapes: 5,810 batches of 12 an epoch"})
    all_frames: int = field(default=82_225, metadata={"why": "with those of validation"})
    objects: float = field(default=1.0, metadata={"why": "usable moving objects a training frame; not counted"})
    batch: int = field(default=12, metadata={"why": "triplets a GPU: more GPUs are a larger batch, and fewer steps"})
    teraflops: float = field(default=495.0, metadata={"why": "an H100 SXM, dense TF32, by its data sheet"})
    share: float = field(default=0.15, metadata={"why": "of it that convolutions of these sizes reach; a guess"})
    dispatches: int = field(default=4_037, metadata={"why": "of a joint scene step, counted: docs/profiling.md"})
    dispatch_us: float = field(default=6.0, metadata={"why": "of the host for each of them, nothing captured; a guess"})
    nvlink: float = field(default=300.0, metadata={"why": "GB/s that an all-reduce reaches inside a node; a guess"})
    network: float = field(default=50.0, metadata={"why": "GB/s between nodes"})
    latency_us: float = field(default=20.0, metadata={"why": "of each hop of the ring between nodes; a guess"})
    gpus_a_node: int = field(default=8, metadata={"why": "usual"})
    cores: int = field(default=8, metadata={"why": "for the loader of a GPU"})
    loader: float = field(default=300.0, metadata={"why": "triplets/s a core from the cache"})


@dataclass(frozen=True)
class Phase:
    """A stretch of a stage in which the same nets learn."""

    stage: str
    name: str
    epochs: float
    operations: float
    """Floating-point operations a triplet, forward and backward."""
    exchanged: int
    """Bytes that every process gives to a sum of each step."""


def count(config: Config) -> list[Phase]:
    """The phases of the stages that can be tried on noise, the forward pass of one triplet each."""
    found: list[Phase] = []
    with tempfile.TemporaryDirectory(prefix="mcd-scaling-") as place:
        quiet = config.model_copy(update={"nets": config.nets.model_copy(update={"pretrained": False})})
        for name in ("scene", "object", "final"):
            stage = STAGES[name](Context(quiet, Run.at(Path(place), quiet), torch.device("cpu")))
            assert isinstance(stage, TrainingStage)
            schedule = stage.schedule
            epochs = float(schedule.epochs or 1)
            stage.steps_per_epoch = 1000
            length = schedule.length(1000)
            starts = [0, *(step for step in range(1, length) if stage.phase(step) != stage.phase(step - 1))]
            for begin, end in zip(starts, [*starts[1:], length], strict=True):
                stage.set_mode(begin)
                forward = _forward_operations(stage, begin)
                # The backward pass of a layer is two products of the size of its forward pass.
                operations = sum(n * (3 if role in stage.active(begin) else 1) for role, n in forward.items())
                parameters = sum(p.numel() for role in stage.active(begin) for p in stage.nets[role].parameters())
                with_motion = name == "scene" and stage.phase(begin) > 0
                found.append(
                    Phase(
                        "scene with motion" if with_motion else name,
                        f"{name}: {', '.join(stage.active(begin))}",
                        epochs * (end - begin) / length,
                        float(operations),
                        4 * parameters,
                    )
                )
    return found


def _forward_operations(stage: TrainingStage, step: int) -> dict[str, int]:
    """Floating-point operations of each net in a step's forward pass over one triplet; nothing is differentiated."""
    found = dict.fromkeys(stage.nets, 0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, ExitStack() as hooks:
        for role, net in stage.nets.items():

            def before(*_: object, role: str = role) -> None:
                found[role] -= counter.get_total_flops()

            def after(*_: object, role: str = role) -> None:
                found[role] += counter.get_total_flops()

            hooks.callback(net.register_forward_pre_hook(before).remove)
            hooks.callback(net.register_forward_hook(after).remove)
        stage.forward(_noise(stage.config, 1, torch.device("cpu")), step)
    return found


def kernels(model: Path = MODEL) -> dict[str, float]:
    """Modelled microseconds of an operator, forward and backward, for a batch of 12 at 192x512 on an H100's kind."""
    return {
        row["operator"]: row["microseconds"] for row in json.loads(model.read_text()) if row["architecture"] == "sm_90"
    }


def step_parts(phase: Phase, gpus: int, assumed: Assumed, modelled: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the parts of a step: networks, operators, what the host needs, the sum over processes."""
    nodes = -(-gpus // assumed.gpus_a_node)
    inside = min(gpus, assumed.gpus_a_node)
    # A ring inside each node, then one between them: each sends 2 (n - 1) / n of what there is.
    exchange = 2 * (inside - 1) / inside * phase.exchanged / (assumed.nvlink * 1e9)
    exchange += 2 * (nodes - 1) / nodes * phase.exchanged / (assumed.network * 1e9)
    exchange += 2 * (nodes - 1) * assumed.latency_us * 1e-6
    return {
        "networks": phase.operations * assumed.batch / (assumed.teraflops * 1e12 * assumed.share),
        "operators": sum(modelled[name] for name in _OPERATORS[phase.stage]) * 1e-6 * assumed.batch / _MODELLED_BATCH,
        "host": assumed.dispatches * assumed.dispatch_us * 1e-6,
        "exchange": exchange,
    }


def rate(phase: Phase, gpus: int, assumed: Assumed, modelled: Mapping[str, float]) -> float:
    """Triplets a second: the device or the host, whichever is slower, then the sum; no more than is loaded."""
    parts = step_parts(phase, gpus, assumed, modelled)
    step = max(parts["networks"] + parts["operators"], parts["host"]) + parts["exchange"]
    return min(gpus * assumed.batch / step, gpus * assumed.cores * assumed.loader)


def estimate(config: Config, phases: list[Phase], assumed: Assumed) -> str:
    """The estimate, in Markdown."""
    modelled = kernels()
    lines = [
        "| phase | GFLOP a triplet | MB exchanged a step | "
        + " | ".join(f"{_many(n)}, triplets/s" for n in GPUS)
        + " |"
    ]
    lines.append("|---" * (3 + len(GPUS)) + "|")
    hours = dict.fromkeys(GPUS, 0.0)
    for phase in phases:
        rates = [rate(phase, gpus, assumed, modelled) for gpus in GPUS]
        items = assumed.train_frames * phase.epochs * (assumed.objects if phase.stage == "object" else 1)
        for gpus, triplets in zip(GPUS, rates, strict=True):
            hours[gpus] += items / triplets / 3600
        cells = " | ".join(f"{triplets:,.0f}" for triplets in rates)
        lines.append(f"| {phase.name} | {phase.operations / 1e9:.0f} | {phase.exchanged / 1e6:.0f} | {cells} |")
    # Preparations run the scene's nets forward, a third of a step, over every frame twice (instances and pseudo depth).
    for gpus in GPUS:
        hours[gpus] += 2 * assumed.all_frames / 3 / rate(phases[0], gpus, assumed, modelled) / 3600
    lines += ["", "| " + " | ".join(map(_many, GPUS)) + " |", "|---" * len(GPUS) + "|"]
    lines.append("| " + " | ".join(f"{hours[n]:.2g} hours" for n in GPUS) + " |")
    parts = step_parts(phases[-1], GPUS[-1], assumed, modelled)
    lines += ["", f"A step of '{phases[-1].name}' on {GPUS[-1]} GPUs: " + ", ".join(
        f"{name} {1e3 * seconds:.1f} ms" for name, seconds in parts.items()) + "."]  # fmt: skip
    lines += ["", "Disk:", ""] + [
        f"- {name}: {size / 1e9:.0f} GB" for name, size in disk(config, phases, assumed).items()
    ]
    lines += ["", "Assumed:", ""]
    for one in dataclasses.fields(Assumed):
        lines.append(f"- `{one.name}` {getattr(assumed, one.name):,g}: {one.metadata['why']}")
    lines.append(
        "- the stage scale (small images of objects), validation and evaluation are left out; preparations run the"
    )
    lines.append("  scene's nets forward over all frames twice")
    return "\n".join(lines)


def _many(gpus: int) -> str:
    return f"{gpus} GPU" + "s" * (gpus > 1)


def disk(config: Config, phases: list[Phase], assumed: Assumed) -> dict[str, float]:
    """Bytes by what takes them."""
    height, width = config.data.size
    return {
        "published PNGs, 1.8 MB each (one was weighed)": 1.8e6 * assumed.all_frames,
        "picture cache": 9.0 * height * width * assumed.all_frames,
        "prediction store, a tenth of float32": 0.1 * 4 * 5 * height * width * assumed.all_frames,
        "weights and states, a stage four copies": 4.0 * sum(phase.exchanged for phase in phases),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--config", default="cityscapes")
    for one in dataclasses.fields(Assumed):
        kind = type(one.default)
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default, help=one.metadata["why"])
    given = vars(parser.parse_args())
    config = load_config(given.pop("config"))
    print(estimate(config, count(config), Assumed(**given)))


if __name__ == "__main__":
    main()
