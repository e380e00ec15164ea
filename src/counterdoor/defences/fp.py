"""Fine-pruning: channels that clean images leave idle are cut off."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from counterdoor.augment import Augment
from counterdoor.component import Component
from counterdoor.defences.base import Case, DefenceBase, Defended
from counterdoor.engine import DEFAULT, Engine
from counterdoor.models import NormalisedNet, build_net
from counterdoor.recipe import Recipe
from counterdoor.training import predict_classes, predict_logits

BENCH_RECIPE = Recipe(
    epochs=100,
    batch_size=256,
    learning_rate=0.01,
    weight_decay=5e-4,
    augment=Augment(crop_padding=4, flip=True),
)


class FinePruning(DefenceBase):
    """Fine-pruning: prune the channels idle on trusted images, then fine-tune on these.

    Source: Liu, Dolan-Gavitt and Garg, "Fine-Pruning: Defending Against Backdooring Attacks
    on Deep Neural Networks" (RAID 2018), section 4: channels of the last convolution in
    the order of their mean activation, until the accuracy on held-out clean images falls
    too far. Tolerance and recipe are BackdoorBench's. Here no image is held out: the
    trusted ones measure the accuracy and are trained on. A channel is taken behind the
    batch norm that follows its convolution, where there is one, so that a pruned channel
    is 0 and no constant; it stays pruned in the fine-tuning.

    Attributes:
        tolerance: fall of the accuracy on the trusted images up to which is pruned, in [0, 1].
        largest_share: share of the channels that may be pruned, in [0, 1].
        recipe: the fine-tuning.
    """

    needs_trusted: ClassVar[bool] = True
    needs_undefended: ClassVar[bool] = True
    reproduced: ClassVar[bool] = False

    name: Literal["fp"] = "fp"
    tolerance: float = Field(default=0.1, ge=0, le=1)
    largest_share: float = Field(default=0.95, ge=0, le=1)
    recipe: Recipe = BENCH_RECIPE

    def check(
        self, images_nchw: np.ndarray, ledger: pd.DataFrame, num_classes: int, model: Component
    ) -> None:
        """Refuse a net without a convolution as well; see :class:`DefenceBase`."""
        super().check(images_nchw, ledger, num_classes, model)
        net = build_net(model, images_nchw[:2], num_classes, seed=0, stream="check/init")
        last_convolution(net, images_nchw[:2])

    def __call__(self, case: Case) -> Defended:
        """Prune the undefended net and fine-tune it; see :class:`DefenceBase`."""
        trusted, net = case.samples(case.ledger["trusted"]), case.undefended.build()
        images = case.images_nchw[trusted.rows]
        place = last_convolution(net, images[:2])
        activity = channel_activity(net, place[-1], images, engine=case.engine)
        kept = self._kept(net, place[-1], activity, images, trusted.labels, case.engine)
        silence(net, place, kept)
        with only(net, place[-1], kept):  # the fine-tuning must not revive a channel
            fitted = case.fit(net, trusted, self.recipe, "defended")
        return case.deployed(net, fitted.history)

    def _kept(
        self,
        net: NormalisedNet,
        behind: str,
        activity: Tensor,
        images_nchw: np.ndarray,
        labels: np.ndarray,
        engine: Engine,
    ) -> Tensor:
        """Which channels stay: pruned one by one while the accuracy is within the tolerance."""

        def accuracy() -> float:
            return float(np.mean(predict_classes(net, images_nchw, engine=engine) == labels))

        kept = torch.ones(len(activity), dtype=torch.bool)
        least = accuracy() - self.tolerance
        most = min(int(self.largest_share * len(activity)), len(activity) - 1)
        for channel in activity.argsort(stable=True)[:most]:
            kept[channel] = False
            with only(net, behind, kept):
                if accuracy() < least - 1e-9:
                    kept[channel] = True
                    break
        return kept


def last_convolution(net: nn.Module, images_nchw: np.ndarray) -> tuple[str, ...]:
    """The convolution that a net calls last, and the batch norm that takes its output.

    Args:
        net: from float images in [0, 1] to logits.
        images_nchw: a few images, uint8, shape (N, C, H, W).

    Returns:
        The convolution's name and, if there is one, the batch norm's.

    Raises:
        ValueError: if the net has no convolution.
    """
    found: list[tuple[str, ...]] = []
    outputs: list[Tensor] = []

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            found.append((name,))
            outputs.append(output)
        elif isinstance(module, _BatchNorm) and outputs and inputs[0] is outputs[-1]:
            found[-1] = (*found[-1][:1], name)

    hooks = [
        module.register_forward_hook(lambda *told, name=name: note(name, *told))
        for name, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, _BatchNorm))
    ]
    try:
        predict_logits(net, images_nchw, engine=DEFAULT)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(
            "the net has no convolution whose channels could be pruned; choose another model or "
            "another defence"
        )
    return found[-1]


def channel_activity(
    net: nn.Module, name: str, images_nchw: np.ndarray, *, engine: Engine = DEFAULT
) -> Tensor:
    """Mean over images and places of max(0, output) of each channel, float64, shape (C,).

    Args:
        net: from float images in [0, 1] to logits.
        name: of the module, whose output has the shape (N, C, H, W).
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        engine: what to run on.
    """
    sums: list[Tensor] = []

    def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        sums.append(output.float().clamp(min=0).mean((2, 3)).double().sum(0).cpu())

    hook = net.get_submodule(name).register_forward_hook(note)
    try:
        predict_logits(net, images_nchw, engine=engine)
    finally:
        hook.remove()
    return torch.stack(sums).sum(0) / len(images_nchw)


class _Only:
    """A forward hook that lets some channels through; an object, so that copies of nets have it."""

    def __init__(self, kept: Tensor) -> None:
        self._kept = kept.clone()

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output * self._kept.to(output)[:, None, None]


@contextmanager
def only(net: nn.Module, name: str, kept: Tensor) -> Iterator[None]:
    """Inside the block the module ``name`` gives 0 for channels not ``kept``, bool, shape (C,)."""
    hook = net.get_submodule(name).register_forward_hook(_Only(kept))
    try:
        yield
    finally:
        hook.remove()


def silence(net: nn.Module, names: tuple[str, ...], kept: Tensor) -> None:
    """Set the weights and biases of channels not ``kept`` to 0, in each of the modules."""
    with torch.no_grad():
        for name in names:
            for parameter in net.get_submodule(name).parameters():
                parameter[~kept] = 0.0
