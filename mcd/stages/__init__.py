"""The stages of a run, in order (Nguyen et al., CVPR 2024). One file a stage."""

from mcd.errors import StageError
from mcd.run.context import Context
from mcd.run.networks import check_nets
from mcd.stages.detector import DetectorStage
from mcd.stages.final import ControlStage, FinalStage
from mcd.stages.ground import GroundStage
from mcd.stages.instances import InstancesPreparation
from mcd.stages.object import ObjectStage
from mcd.stages.predictions import PredictionsPreparation
from mcd.stages.proposals import ProposalsPreparation
from mcd.stages.pseudo import PseudoPreparation
from mcd.stages.scale import ScaleStage
from mcd.stages.scene import SceneStage
from mcd.stages.segment import SegmentPreparation
from mcd.stages.slots import SlotsStage
from mcd.stages.stage import Preparation, Stage, TrainingStage

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        SceneStage,
        PredictionsPreparation,
        GroundStage,
        SlotsStage,
        DetectorStage,
        SegmentPreparation,
        ProposalsPreparation,
        InstancesPreparation,
        ObjectStage,
        ScaleStage,
        PseudoPreparation,
        FinalStage,
        ControlStage,
    )
}

__all__ = ["STAGES", "Context", "Preparation", "Stage", "StageError", "TrainingStage", "check_nets"]
