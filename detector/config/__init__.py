"""The configuration: one frozen record per section, with the type and the meaning of every key.

`python -m detector.config.reference` generates docs/configuration.md from it.
"""

from detector.config.data import DataConfig, SplitsConfig, TransformsConfig
from detector.config.fields import Section
from detector.config.network import AnchorConfig, LossConfig, MatcherConfig, ModelConfig
from detector.config.training import EvalConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig

__all__ = [
    "AnchorConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "MatcherConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "SplitsConfig",
    "TrainConfig",
    "TransformsConfig",
]


class Config(Section):
    """The whole configuration."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    matcher: MatcherConfig = MatcherConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
