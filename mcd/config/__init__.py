"""Typed configuration."""

from mcd.config.base import STAGES
from mcd.config.masks import InstancesStage, Proposals, Segment
from mcd.config.reading import PACKAGED, ConfigError, known_keys, load_config, parse_config
from mcd.config.sections import (
    Augment,
    Config,
    Data,
    Detector,
    Evaluation,
    Final,
    Ground,
    Object,
    Scale,
    Scene,
    Schedule,
    Slots,
)

__all__ = [
    "PACKAGED",
    "STAGES",
    "Augment",
    "Config",
    "ConfigError",
    "Data",
    "Detector",
    "Evaluation",
    "Final",
    "Ground",
    "InstancesStage",
    "Object",
    "Proposals",
    "Scale",
    "Scene",
    "Schedule",
    "Segment",
    "Slots",
    "known_keys",
    "load_config",
    "parse_config",
]
