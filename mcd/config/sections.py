"""What a config says: one tree of frozen sections, every key with its type, default and meaning.

Lengths of stages are given in ``steps`` or in ``epochs``; everything a schedule says about time (phases, drops) is in
the same unit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mcd.config.base import (
    MASKED_STAGES,
    STAGES,
    Count,
    Fraction,
    Moment,
    Pixels,
    Positive,
    Section,
    Seed,
    Side,
    StageName,
    Weight,
    Whole,
)
from mcd.config.data import Augment, Data
from mcd.config.evaluation import Evaluation
from mcd.config.losses import Photometric
from mcd.config.masks import InstancesStage, Proposals, Pseudo, Segment
from mcd.config.nets import Nets
from mcd.ops.backend import BackendUnavailable
from mcd.ops.registry import check_choice

# Where a result is written and how fast it comes does not change it.
_RESULT_IS_WITHOUT: dict[str, Any] = {
    **dict.fromkeys(("run", "runs", "log_every", "picture_every", "device"), True),
    "data": {"cache": True, "fill_cache": True},
}


class Schedule(Section):
    """How long a stage trains, and how."""

    steps: Whole | None = Field(
        None, description="0 (ground, slots, detector): with the weights of their 'init' as they are"
    )
    epochs: Positive | None = None
    batch: Count = 8
    lr: Positive = 1e-3
    warmup: Whole = Field(0, description="steps of linear warm-up")
    drops: tuple[tuple[Moment, Positive], ...] = Field((), description="(when, factor): learning-rate drops")
    halve_every: Positive | None = Field(None, description="steady decay: the learning rate halves in this time")
    clip: Positive | None = Field(10.0, description="gradient norm per network")
    validate_every: Count = Field(100, description="steps between validations")
    validate_batches: Count = Field(8, description="batches of one validation")
    checkpoint_every: Count = Field(100, description="steps between resumable checkpoints")
    select: Literal["best", "last", "ground_truth"] = Field(
        "best",
        description="weights kept: lowest validation loss, last, or (scene and final; published) lowest abs_rel on "
        "ground truth",
    )

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        if self.steps == 0 and "init" not in type(self).model_fields:
            raise ValueError("'steps' should not be 0; a stage that is not to train is left out of 'stages'")
        if self.steps == 0 and getattr(self, "init", None) is None:
            raise ValueError("'steps' is 0, and there is no 'init' whose weights could be taken as they are")
        if self.select == "ground_truth" and not isinstance(self, Scene):
            raise ValueError("select: ground_truth needs a net that sees the whole image: scene or final")
        return self

    def in_steps(self, when: float, steps_per_epoch: int) -> int:
        """A moment of this schedule (steps or epochs, as its length) as a step number."""
        return round(when * (steps_per_epoch if self.epochs is not None else 1))

    def length(self, steps_per_epoch: int) -> int:
        return self.steps if self.steps is not None else max(self.in_steps(float(self.epochs or 0), steps_per_epoch), 1)


class Scene(Schedule):
    """Depth, pose and residual motion, self-supervised."""

    depth_from: Moment = Field(
        0, description="when depth begins to learn; before, the pose net learns against the depth of 'init'"
    )
    pose_rate: Positive = Field(1.0, description="learning rate of the pose net, as a multiple of 'lr'")
    camera_rate: Positive = Field(1.0, description="learning rate of a camera that is learned, as a multiple of 'lr'")
    odometry: bool = Field(
        False,
        description="sequence, with 'init': the camera's motion is found from the images and the depth of the net that "
        "training starts from, before it; depth learns with that, and the pose net learns it; False: published",
    )
    odometry_again: tuple[Moment, ...] = Field(
        (),
        description="when that motion is found again, with depth as it is then; while a camera is learned, the first "
        "of these moments is when it is found at all",
    )
    frozen_blocks: Whole | None = Field(
        None,
        description="the stem and so many blocks of the depth net's encoder (lite0 has them), and its normalisation "
        "statistics, stay those of 'init'; null, published: all is learned",
    )
    motion_from: Moment | None = Field(None, description="when the motion net starts, alone; None: no residual motion")
    joint_from: Moment | None = Field(None, description="when all nets train together")
    motion_floor: Weight = Field(1e-5, description="residual motion below this magnitude is dropped")

    @model_validator(mode="after")
    def _phases(self) -> Scene:
        if self.motion_from is not None and self.joint_from is not None and self.joint_from < self.motion_from:
            raise ValueError("'joint_from' must not lie before 'motion_from'")
        if self.motion_from is not None and self.depth_from > self.motion_from:
            raise ValueError("'depth_from' must not lie after 'motion_from'")
        length = self.steps if self.steps is not None else self.epochs
        if list(self.odometry_again) != sorted(set(self.odometry_again)):
            raise ValueError("the moments of 'odometry_again' must follow one another")
        moments = {key: getattr(self, key) for key in ("depth_from", "motion_from", "joint_from")}
        for key, begin in {**moments, "odometry_again": max(self.odometry_again, default=None)}.items():
            if begin is not None and length is not None and begin >= length:
                raise ValueError(f"'{key}', {begin:g}, must lie before the end of the stage, {length:g}")
        return self


class Predictions(Section):
    """Depth and residual flow of every frame, from the nets of the scene stage."""

    batch: Count = 8
    flow_threshold: Positive = Field(1.0, description="pixels at a width of 512; flow below it is dropped")


class Ground(Schedule):
    """Ground segmentation, taught by the normals of the scene stage's depth."""

    init: Path | None = Field(None, description="stage folder or weights file to start from, such as released ones")
    distance: Positive = Field(11.0, description="of the neighbours that span a normal, at a width of 512")
    angle: Annotated[float, Field(gt=0, le=90)] = Field(
        10.0, description="degrees by which a normal of the ground may lean"
    )
    below_camera: bool = Field(True, description="ceilings are no ground; False: the published form")
    hide_depth: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the images whose depth is hidden in training; then what is ground with and without it "
        "counts; 0: published",
    )
    smoothness: Weight = 2.0
    label_until: Moment | None = Field(
        None, description="when the weight of the labels (1) begins to fall; None: never"
    )
    label_floor_from: Moment | None = Field(None, description="when it has fallen")
    label_floor: Weight = Field(0.25, description="to this")
    thirds_from: Moment | None = Field(None, description="when self-supervision by thirds begins; None: never")
    thirds_full_from: Moment | None = Field(None, description="when it has its full weight")
    thirds_weight: Weight = 0.5

    def neighbours(self, width: int) -> int:
        """``distance`` in pixels of an image of this width."""
        return max(round(self.distance * width / 512), 1)

    @model_validator(mode="after")
    def _ramps(self) -> Ground:
        _check_ramp("label_until", self.label_until, "label_floor_from", self.label_floor_from)
        _check_ramp("thirds_from", self.thirds_from, "thirds_full_from", self.thirds_full_from)
        return self


class Slots(Schedule):
    """Slot attention on pictures of the residual flow."""

    init: Path | None = Field(None, description="stage folder or weights file to start from, such as released ones")
    size: tuple[Side, Side] = Field((128, 128), description="height and width that the net sees, multiples of 16")
    threshold: Fraction = Field(0.25, description="a slot's mask is where it has at least this share")
    min_moving: Fraction = Field(
        0.0, description="frames with a smaller share of moving pixels are not trained on; 0, published: all are"
    )
    depth: Weight = Field(0.2, description="weight of the reconstructed depth; that of the flow is 1")
    moving: Weight = Field(0.0, description="how much more a pixel that moves counts in both; 0: published")
    background: Weight = Field(0.005, description="weight of: the background slot covers what does not move")
    background_flow: Weight = Field(1.0, description="weight of: the background slot shows no motion")
    background_depth: Weight = Field(0.02, description="weight of: the background slot shows no depth")
    background_from: Moment = Field(0, description="when the three terms of the background begin")
    emptiness: Weight = Field(0.002, description="last weight of: slots are empty")
    emptiness_target: Weight = 0.01
    emptiness_from: Moment | None = Field(None, description="when emptiness begins to act, weight 0; None: never")
    emptiness_full_from: Moment | None = Field(None, description="when it has its last weight")

    @model_validator(mode="after")
    def _shape(self) -> Slots:
        if any(side % 16 for side in self.size):
            raise ValueError(f"'size' must be multiples of 16, not {self.size[0]}x{self.size[1]}")
        _check_ramp("emptiness_from", self.emptiness_from, "emptiness_full_from", self.emptiness_full_from)
        return self


def _check_ramp(first: str, begin: float | None, last: str, end: float | None) -> None:
    if (begin is None) != (end is None) or (begin is not None and end is not None and end < begin):
        raise ValueError(f"'{first}' and '{last}' are given together, in this order")


class Detector(Schedule):
    """Self-training of the detector; ``steps`` or ``epochs`` is the length of one round."""

    batch: Count = 16
    lr: Positive = 5e-3
    clip: Positive | None = None
    select: Literal["best", "last", "ground_truth"] = "last"
    init: Path | None = Field(None, description="weights that the first round starts from, such as released ones")
    momentum: Fraction = 0.9
    weight_decay: Weight = 5e-4
    decay: Positive = Field(0.98, description="factor on the learning rate from round to round")
    magnify: Annotated[float, Field(gt=0, le=16)] = Field(
        1.0, description="inputs are enlarged so many times; 2.6: as the published code does"
    )
    scores: tuple[Fraction | None, ...] = Field(
        (None, 0.5, 0.55, 0.55, 0.6, 0.6, 0.65, 0.65, 0.7, 0.7),
        min_length=1,
        description="a round each: score above which its detections teach the next; null: the next has the same labels",
    )
    filter_after: tuple[int, ...] = Field(
        (2, 4, 7, 9), description="rounds, from 0, whose detections must fill their boxes and are merged"
    )
    views: Annotated[int, Field(strict=True, ge=1, le=5)] = Field(
        5,
        description="views of the last round: the image, its lower left and lower right part, the same of its central "
        "half; 5: published",
    )
    min_area: Fraction = Field(0.001, description="smallest object, share of the image")
    box_excess: Positive = Field(0.1, description="a box may be so much larger than its mask, as a share of the mask")
    absorb: Fraction = Field(0.5, description="masks are merged from this overlap, share of the smaller")
    replace: Fraction = Field(0.25, description="a mask ends where a larger one covers this share of it")
    both_directions: bool = Field(True, description="slots of both directions of the flow; False: published")
    split: bool = Field(True, description="parts of a slot that do not touch are objects each; False: published")
    open: Pixels = Field(10.0, description="half width of what is too thin, at a width of 512")
    close: Pixels = Field(2.0, description="half width of gaps that are closed; 2: published")
    reach: Pixels = Field(
        2.0, description="ground must be so near to the box of a slot, at a width of 512; 0, published: inside"
    )
    largest_box: Fraction = Field(0.5, description="boxes of slots are smaller, share of the image")
    fill: Fraction = Field(0.5, description="share of its box that a slot fills")

    @model_validator(mode="after")
    def _rounds(self) -> Detector:
        if self.scores[-1] is None:
            raise ValueError("'scores' must end with a number: the last round's detections are the result")
        beyond = [number for number in self.filter_after if not 0 <= number < len(self.scores)]
        if beyond:
            raise ValueError(
                f"'filter_after' names round {beyond[0]}, but 'scores' has rounds 0 to {len(self.scores) - 1}"
            )
        if self.views > 1 and len(self.scores) - 1 not in self.filter_after:
            raise ValueError("several 'views' show objects more than once: 'filter_after' must name the last round")
        if self.steps == 0 and len(self.scores) > 1:
            raise ValueError("without training ('steps' is 0) there is one round: 'scores' should be one number")
        if not 0 < self.replace <= self.absorb:
            raise ValueError(f"'replace', {self.replace:g}, must lie above 0 and not above 'absorb', {self.absorb:g}")
        return self


class Object(Schedule):
    smoothness: Weight = 0.02
    start: Weight = Field(
        0,
        description="weight by which an object keeps its shape in the depth of the net in 'init'; 0: published",
    )


class Scale(Schedule):
    huber: Positive = 0.005
    shift_augment: Fraction = Field(
        0.36, description="largest sideways shift of the inputs, share of the width; 0: the published form"
    )
    dilate: Annotated[int, Field(ge=0, le=512)] = Field(2, description="5x5 dilations of the box, at a width of 512")
    dilate_middle: Annotated[int, Field(ge=0, le=512)] = Field(5, description="the same for masks straight ahead")
    contact: Fraction | None = Field(
        None, description="objects farther from the ground at their foot, as a share, teach nothing; null: published"
    )


class Final(Scene):
    pseudo_weight: Weight = Field(0.1, description="weight of the pseudo-depth loss; 0 is the control")


class Config(Section):
    run: str | None = Field(None, description="name of the run folder; None: the config's stem")
    runs: Path = Field(Path("runs"), description="where run folders are")
    init: Path | None = Field(
        None,
        description="run, stage folder or weights file to start from (of a run, its final weights before its scene's)",
    )
    stages: tuple[StageName, ...] = Field(MASKED_STAGES, min_length=1)
    store: Literal["none", "sqlite"] = Field(
        "none",
        description="depth and residual flow of the scene nets for later stages: computed anew, or in one file of the "
        "run (about a tenth of raw float32)",
    )
    seed: Seed = 0
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 …")
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(0, description="CPU threads; 0: as torch chooses")
    backend: str | dict[str, str] = Field("auto", description="auto, a name, or {operator: name}")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="networks; auto: bfloat16 on CUDA")
    channels_last: bool = True
    step: Literal["eager", "graphed", "auto"] = Field(
        "eager",
        description="scene, object and final on CUDA: steps operator by operator, as a CUDA graph, or the faster",
    )
    compile: bool = Field(False, description="depth, pose, motion and scale nets by torch.compile")
    on_nan: Literal["stop", "skip"] = "stop"
    log_every: Count = 20
    picture_every: Count = 200
    data: Data = Data()
    augment: Augment = Augment()
    nets: Nets = Nets()
    loss: Photometric = Photometric()
    scene: Scene = Scene(steps=1000)
    predictions: Predictions = Predictions()
    ground: Ground = Ground(steps=300)
    slots: Slots = Slots(steps=600)
    detector: Detector = Detector(epochs=1)
    segment: Segment = Segment()
    proposals: Proposals = Proposals()
    instances: InstancesStage = InstancesStage()
    object: Object = Object(steps=200)
    scale: Scale = Scale(steps=350)
    pseudo: Pseudo = Pseudo()
    final: Final = Final(steps=300)
    evaluation: Evaluation = Evaluation()

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, backend: str | dict[str, str]) -> str | dict[str, str]:
        try:
            check_choice(backend, "backend")
        except BackendUnavailable as error:
            raise ValueError(str(error)) from None
        return backend

    @model_validator(mode="after")
    def _stages(self) -> Config:
        order = [STAGES.index(name) for name in self.stages]
        if order != sorted(set(order)):
            raise ValueError(f"'stages' should be each once, in this order: {', '.join(STAGES)}")
        readers = [name for name in ("predictions", "ground", "slots", "detector", "proposals") if name in self.stages]
        if readers and self.store == "none":
            raise ValueError(f"stage '{readers[0]}' needs a store of the scene nets' predictions: set store: sqlite")
        needs = {name: ["predictions"] for name in ("ground", "slots", "proposals")}
        needs["detector"] = ["predictions", "ground"]
        if self.detector.steps != 0:
            needs["detector"].append("slots")
        for name in readers:
            missing = [other for other in needs.get(name, ()) if other not in self.stages]
            if missing:
                raise ValueError(f"stage '{name}' needs the stage '{missing[0]}' before it")
        finders = [name for name in ("detector", "segment", "proposals") if name in self.stages]
        if len(finders) > 1:
            raise ValueError(
                f"the stages '{finders[0]}' and '{finders[1]}' both find the objects: leave one of them out"
            )
        if self.instances.tracks and (self.data.kind != "sequence" or self.data.spacing[0] != 1):
            raise ValueError("'instances.tracks' needs data of kind sequence whose 'spacing' begins with 1")
        for stage, schedule in (("scene", self.scene), ("final", self.final)):
            if schedule.odometry and stage in self.stages and self.data.kind != "sequence":
                raise ValueError(f"'{stage}.odometry' needs data of kind sequence, not {self.data.kind}")
        if self.scale.contact is not None and self.store == "none":
            raise ValueError("'scale.contact' needs a store of the scene's depth: set store: sqlite")
        if "ground" in self.stages and self.ground.steps != 0:
            least = 3 * self.ground.neighbours(self.data.size[1]) + 1
            if min(self.data.size) < least:
                raise ValueError(
                    f"'ground.distance', {self.ground.distance:g} at a width of 512, wants images of at least {least} "
                    f"pixels each way, not {self.data.size[0]}x{self.data.size[1]}: lower it"
                )
        return self

    def digest(self) -> str:
        """Hash of everything that decides the result (not where it is written, nor how often it is logged)."""
        document = self.model_dump(mode="json", exclude=_RESULT_IS_WITHOUT)
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
