"""NAD: the net is taught where to look by a copy of itself that saw clean images alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from counterdoor.augment import Augment
from counterdoor.component import Component
from counterdoor.defences.base import Case, DefenceBase, Defended
from counterdoor.engine import DEFAULT
from counterdoor.epochs import Descent, Epochs, Step
from counterdoor.models import NormalisedNet, build_net
from counterdoor.recipe import Recipe, Steps
from counterdoor.seeding import seeded_torch
from counterdoor.training import predict_logits

PAPER_RECIPE = Recipe(
    epochs=10,
    batch_size=64,
    learning_rate=0.1,
    weight_decay=1e-4,
    schedule=Steps(milestones=(2, 4, 6, 8), factor=0.1),
    augment=Augment(crop_padding=4, flip=True),
)


class NAD(DefenceBase):
    """Neural attention distillation: fine-tuned with the attention maps of a fine-tuned teacher.

    Source: Li et al., "Neural Attention Distillation: Erasing Backdoor Triggers from Deep
    Neural Networks" (ICLR 2021), section 3 and, for the recipe, 4.1: the undefended net
    fine-tuned on the trusted images is the teacher, the undefended net the student. The
    map loss is the mean square of the authors' code, to which its weights belong, and not
    the norm of the paper's equation 3. The maps are those at the end of a residual net's
    last three groups; here at the end of the last three resolutions, which exist in any
    net of convolutions. Without the paper's cutout.

    Attributes:
        p: power of the activations in an attention map.
        betas: weight of each map's loss, the deepest last; of a net with fewer resolutions
            the last ones. 500, 1000, 1000 in the authors' code.
        recipe: the fine-tuning of teacher and student.
    """

    needs_trusted: ClassVar[bool] = True
    needs_undefended: ClassVar[bool] = True
    reproduced: ClassVar[bool] = False

    name: Literal["nad"] = "nad"
    p: float = Field(default=2.0, gt=0, le=10)
    betas: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(500.0, 1000.0, 1000.0), min_length=1
    )
    recipe: Recipe = PAPER_RECIPE

    def check(
        self, images_nchw: np.ndarray, ledger: pd.DataFrame, num_classes: int, model: Component
    ) -> None:
        """Refuse a net without maps as well; see :class:`DefenceBase`."""
        super().check(images_nchw, ledger, num_classes, model)
        net = build_net(model, images_nchw[:2], num_classes, seed=0, stream="check/init")
        map_names(net, images_nchw[:2], len(self.betas))

    def __call__(self, case: Case) -> Defended:
        """Fine-tune the teacher, then the student, in fp32 and one process.

        See :class:`DefenceBase`.
        """
        trusted, teacher = case.samples(case.ledger["trusted"]), case.undefended.build()
        case.fit(teacher, trusted, self.recipe, "defended/teacher")
        student, device = case.undefended.build(), case.engine.device
        names = map_names(student, case.images_nchw[trusted.rows[:2]], len(self.betas))
        for net in (teacher, student):
            net.to(device)
            net.to(memory_format=torch.channels_last)
        train = Epochs(trusted, self.recipe, case.seed, case.engine, remedy="lower defence.betas")
        with seeded_torch(case.seed, "defended/net", device):  # dropout draws from it
            step = self._step(student, teacher.eval(), names)
            records = train("defended", self.recipe.epochs, step)
        history = pd.DataFrame(records)
        rates = [self.recipe.schedule(epoch, self.recipe.epochs) for epoch in range(len(history))]
        history["learning_rate"] = self.recipe.learning_rate * np.array(rates)
        return case.deployed(student, history)

    def _step(self, student: NormalisedNet, teacher: NormalisedNet, names: Sequence[str]) -> Step:
        """Cross-entropy + the sum of beta * attention loss over the maps."""
        descend = Descent(student, self.recipe)
        betas = self.betas[-len(names) :]

        def step(images: Tensor, labels: Tensor, epoch: float) -> dict[str, Tensor]:
            with torch.no_grad(), outputs_of(teacher, names) as taught:
                teacher(images)
            with outputs_of(student, names) as own:
                logits = student(images)
            entropy = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
            losses = [
                beta * attention_loss(own[name], taught[name], self.p)
                for beta, name in zip(betas, names, strict=True)
            ]
            attention = torch.stack(losses).sum()
            descend(entropy + attention, epoch)
            right = (logits.detach().argmax(1) == labels).float().mean()
            return {
                "loss": entropy.detach(),
                "accuracy": right,
                "attention_loss": attention.detach(),
            }

        return step


def attention_loss(student_nchw: Tensor, teacher_nchw: Tensor, p: float) -> Tensor:
    """Mean square difference of normalised attention maps.

    A map is the sum over channels of |activation|^p; over its places it is divided by its
    Euclidean norm.

    Args:
        student_nchw: activations, float, shape (N, C, H, W).
        teacher_nchw: the same of the teacher.
        p: the power.

    Source: NAD, section 3.2; the mean square is the authors' code's.
    """
    one, other = (
        F.normalize(each.abs().pow(p).sum(1).flatten(1)) for each in (student_nchw, teacher_nchw)
    )
    return F.mse_loss(one, other)


@contextmanager
def outputs_of(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that gets the outputs of the named modules, inside the block."""
    outputs: dict[str, Tensor] = {}

    def note(name: str, output: Tensor) -> None:
        outputs[name] = output

    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: note(name, output)
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def map_names(net: nn.Module, images_nchw: np.ndarray, count: int) -> tuple[str, ...]:
    """For each of the last ``count`` resolutions the module that ends last in it.

    Args:
        net: from float images in [0, 1] to logits.
        images_nchw: a few images, uint8, shape (N, C, H, W).
        count: how many at most.

    Raises:
        ValueError: if no module gives maps of more than one place.
    """
    ends: dict[tuple[int, ...], str] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            size = tuple(output.shape[2:])
            ends.pop(size, None)  # the last one counts, in the order of the last ones
            ends[size] = name

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
        for name, module in net.named_modules()
    ]
    try:
        predict_logits(net, images_nchw, engine=DEFAULT)
    finally:
        for hook in hooks:
            hook.remove()
    if not ends:
        raise ValueError(
            "the net gives no map of activations to compare; choose another model or another "
            "defence"
        )
    return tuple(ends.values())[-count:]
