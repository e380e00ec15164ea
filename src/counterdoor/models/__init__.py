"""Networks. A model component builds an untrained net; :class:`TrainedNet` is the artifact."""

from typing import Annotated

from pydantic import Field

from counterdoor.models.compact import Compact
from counterdoor.models.digits_cnn import DigitsCNN
from counterdoor.models.net import (
    NormalisedNet,
    StampedNet,
    TrainedNet,
    build_net,
    channel_statistics,
)
from counterdoor.models.resnet18 import ResNet18

Model = Annotated[DigitsCNN | Compact | ResNet18, Field(discriminator="name")]
"""Every model that a configuration can name."""

__all__ = [
    "Compact",
    "DigitsCNN",
    "Model",
    "NormalisedNet",
    "ResNet18",
    "StampedNet",
    "TrainedNet",
    "build_net",
    "channel_statistics",
]
