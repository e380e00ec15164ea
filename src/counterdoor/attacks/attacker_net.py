"""A net of the attacker's own, trained on the clean training set before anything is poisoned."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from counterdoor.attacks.pgd import pgd_step
from counterdoor.augment import Augment
from counterdoor.checkpoint import under
from counterdoor.component import Config
from counterdoor.engine import DEFAULT, Engine
from counterdoor.epochs import Descent, Epochs, Step
from counterdoor.feed import Samples
from counterdoor.models import Compact, Model, NormalisedNet, TrainedNet, build_net
from counterdoor.recipe import Recipe, Triangle
from counterdoor.seeding import seeded_torch, torch_generator
from counterdoor.training import fit

ROBUST_STEPS = 3
"""Steps of gradient ascent in the training of a robust net."""


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
        robust_to: float = 0.0,
    ) -> dict[str, Tensor]:
        """Train the net and give all that :meth:`rebuild` needs.

        A net that is to be robust sees every image moved by at most ``robust_to`` to where
        its loss is higher (:func:`robust_step`), in fp32 and one process.

        Args:
            images_nchw: clean training images, uint8, shape (N, C, H, W), in [0, 255].
            labels: true labels, int64, shape (N,), in 0..num_classes-1.
            num_classes: number of classes K.
            seed: the run's seed.
            engine: what to run on.
            robust_to: largest change of a pixel in training, in [0, 1]; 0 for the usual
                training.

        Returns:
            CPU tensors: ``net/<name>`` for each of the net's, and ``image_shape`` and
            ``num_classes``, int64.
        """
        samples = Samples(images_nchw, np.arange(len(images_nchw)), labels)
        net = build_net(self.model, images_nchw, num_classes, seed=seed, stream="attack/init")
        if not robust_to:
            fitted = fit(net, samples, self.recipe, seed=seed, stream="attack", engine=engine)
            return packed(fitted.state, images_nchw, num_classes)
        net.to(engine.device)
        net.to(memory_format=torch.channels_last)
        with seeded_torch(seed, "attack/net", engine.device):  # dropout draws from it
            step = robust_step(net, self.recipe, robust_to, torch_generator(seed, "attack/starts"))
            Epochs(samples, self.recipe, seed, engine)("attack", self.recipe.epochs, step)
        state = {name: each.detach().cpu().contiguous() for name, each in net.state_dict().items()}
        return packed(state, images_nchw, num_classes)

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
            state=under("net/", prepared),
        ).build()


def robust_step(net: NormalisedNet, recipe: Recipe, epsilon: float, draws: torch.Generator) -> Step:
    """Gradient descent on images that gradient ascent has moved, from a random start.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks"
    (2018), equation 2.1, with a few long steps: a single one is learnt by heart and teaches
    nothing else.

    Args:
        net: the net to train.
        recipe: for the descent and label smoothing.
        epsilon: largest change of a pixel, in (0, 1].
        draws: a CPU generator, for the random starts.
    """
    descend = Descent(net, recipe)
    length = 2.5 * epsilon / ROBUST_STEPS

    def step(images: Tensor, labels: Tensor, epoch: float) -> dict[str, Tensor]:
        noise = torch.rand(images.shape, generator=draws).to(images.device)
        start = (images + epsilon * (2.0 * noise - 1.0)).clamp(0.0, 1.0)
        moved = start
        for _ in range(ROBUST_STEPS):
            moved = pgd_step(net, moved, images, labels, epsilon=epsilon, step=length)
        logits = net(moved)
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        descend(loss, epoch)
        right = (logits.detach().argmax(1) == labels).float().mean()
        return {"loss": loss.detach(), "accuracy": right}

    return step


def packed(
    state: Mapping[str, Tensor], images_nchw: np.ndarray, num_classes: int
) -> dict[str, Tensor]:
    """A net's tensors under ``net/``, with the shape of its images and its number of classes."""
    return {f"net/{name}": tensor for name, tensor in state.items()} | {
        "image_shape": torch.tensor(images_nchw.shape[1:]),
        "num_classes": torch.tensor(num_classes),
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
