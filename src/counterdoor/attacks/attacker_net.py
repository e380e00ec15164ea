"""A net of the attacker's own, trained on the clean training set before anything is poisoned."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from counterdoor.augment import Augment
from counterdoor.component import Config
from counterdoor.engine import DEFAULT, Engine
from counterdoor.feed import Samples
from counterdoor.models import Compact, Model, NormalisedNet, TrainedNet, build_net
from counterdoor.recipe import Recipe, Triangle
from counterdoor.training import fit


class AttackerNet(Config):
    """Which net the attacker trains, and how; the victim's may be another.

    Attributes:
        model: the net.
        recipe: its training.
    """

    model: Model = Compact(widths=(32, 64, 128))
    recipe: Recipe = Recipe(
        epochs=16,
        batch_size=128,
        learning_rate=0.3,
        momentum=0.85,
        weight_decay=5e-4,
        nesterov=True,
        schedule=Triangle(),
        augment=Augment(crop_padding=2, crop_fill="reflect"),
    )

    def train(
        self,
        images_nchw: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        *,
        seed: int,
        engine: Engine = DEFAULT,
    ) -> dict[str, Tensor]:
        """Train the net and give all that :meth:`rebuild` needs.

        Args:
            images_nchw: clean training images, uint8, shape (N, C, H, W), in [0, 255].
            labels: true labels, int64, shape (N,), in 0..num_classes-1.
            num_classes: number of classes K.
            seed: the run's seed.
            engine: what to run on.

        Returns:
            CPU tensors: ``net/<name>`` for each of the net's, and ``image_shape`` and
            ``num_classes``, int64.
        """
        samples = Samples(images_nchw, np.arange(len(images_nchw)), labels)
        net = build_net(self.model, images_nchw, num_classes, seed=seed, stream="attack/init")
        fitted = fit(net, samples, self.recipe, seed=seed, stream="attack", engine=engine)
        return packed(fitted.state, images_nchw, num_classes)

    def rebuild(self, prepared: Mapping[str, Tensor]) -> NormalisedNet:
        """The trained net, in eval mode, on the CPU.

        Args:
            prepared: what :meth:`train` gave; other tensors may lie beside it.

        Raises:
            ValueError: if it is missing, or belongs to another model.
        """
        channels, height, width = (int(size) for size in needed(prepared, "image_shape"))
        return TrainedNet(
            architecture=self.model.model_dump(mode="json"),
            image_shape=(channels, height, width),
            num_classes=int(needed(prepared, "num_classes")),
            state=below("net/", prepared),
        ).build()


def packed(
    state: Mapping[str, Tensor], images_nchw: np.ndarray, num_classes: int
) -> dict[str, Tensor]:
    """A net's tensors under ``net/``, with the shape of its images and its number of classes."""
    return {f"net/{name}": tensor for name, tensor in state.items()} | {
        "image_shape": torch.tensor(images_nchw.shape[1:]),
        "num_classes": torch.tensor(num_classes),
    }


def below(prefix: str, prepared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with ``prefix``, under the rest of their name."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in prepared.items()
        if name.startswith(prefix)
    }


def needed(prepared: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor ``name``.

    Raises:
        ValueError: if the attack has not been prepared.
    """
    if name not in prepared:
        raise ValueError(
            f"the attack needs {name!r} of what its prepare() makes, but was given "
            f"{', '.join(sorted(prepared)) or 'nothing'}; pass on what prepare() returned"
        )
    return prepared[name]
