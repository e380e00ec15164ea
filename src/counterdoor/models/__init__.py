"""Networks. A model component builds an untrained net; :class:`TrainedNet` is the artifact."""

from typing import Annotated

from pydantic import Field

from counterdoor.models.compact import Compact
from counterdoor.models.densenet121 import DenseNet121
from counterdoor.models.digits_cnn import DigitsCNN
from counterdoor.models.external import External
from counterdoor.models.mobilenet_v3 import MobileNetV3
from counterdoor.models.net import (
    NormalisedNet,
    StampedNet,
    TrainedNet,
    build_net,
    channel_statistics,
    check_net,
    logits_of,
)
from counterdoor.models.preact_resnet18 import PreActResNet18
from counterdoor.models.resnet import ResNet18, ResNet34, ResNet50
from counterdoor.models.vgg16_bn import VGG16BN

Model = Annotated[
    DigitsCNN
    | Compact
    | ResNet18
    | ResNet34
    | ResNet50
    | PreActResNet18
    | VGG16BN
    | MobileNetV3
    | DenseNet121
    | External,
    Field(discriminator="name"),
]
"""Every model that a configuration can name."""

__all__ = [
    "VGG16BN",
    "Compact",
    "DenseNet121",
    "DigitsCNN",
    "External",
    "MobileNetV3",
    "Model",
    "NormalisedNet",
    "PreActResNet18",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "StampedNet",
    "TrainedNet",
    "build_net",
    "channel_statistics",
    "check_net",
    "logits_of",
]
