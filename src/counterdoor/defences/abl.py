"""ABL: what is learnt too easily is unlearnt."""

from typing import ClassVar, Literal

from pydantic import Field

from counterdoor.defences.base import Case, DefenceBase, Defended, joined
from counterdoor.detectors import Fixed, SuspectRule
from counterdoor.recipe import Ascent, Recipe, Steps

PAPER_RECIPE = Recipe(
    epochs=20,
    batch_size=64,
    learning_rate=5e-4,
    weight_decay=1e-4,
    schedule=Steps(),
)


class ABL(DefenceBase):
    """Anti-backdoor learning: the isolated are left out, then unlearnt by gradient ascent.

    Source: Li et al., "Anti-Backdoor Learning: Training Clean Models on Poisoned Data"
    (NeurIPS 2021), section 4: isolation by the loss under local gradient ascent (stages
    warm-up and detect), then unlearning of the isolated 1 %; 20 epochs at a rate of 5e-4
    are the authors' code's, as BackdoorBench runs it. There the net that isolated is
    trained on; here the remaining samples are learnt from the twin's initial weights with
    the twin's recipe, so that both nets differ by the defence alone. The paper's objective
    descends on the remaining samples while it ascends on the isolated; as in the authors'
    code, the ascent here is on the isolated alone.

    Attributes:
        isolation_ratio: share of the untrusted samples that is isolated, in (0, 1).
        ceiling: loss from which on a sample is not unlearnt any further, in nats; ``None``
            for no end, as in the authors' code.
        recipe: the unlearning; its loss transform is always gradient ascent.
    """

    needs_suspects: ClassVar[bool] = True
    reproduced: ClassVar[bool] = False

    name: Literal["abl"] = "abl"
    isolation_ratio: float = Field(default=0.01, gt=0, lt=1)
    ceiling: float | None = Field(default=None, gt=0, le=100)
    recipe: Recipe = PAPER_RECIPE

    def suspect_rule(self, usual: SuspectRule) -> SuspectRule:
        """The isolation ratio, whatever the usual rule is."""
        return Fixed(ratio=self.isolation_ratio)

    def __call__(self, case: Case) -> Defended:
        """Train on all but the isolated, then unlearn these; see :class:`DefenceBase`."""
        net, isolated = case.new_net(), case.ledger["suspect"]
        learnt = case.fit(net, case.samples(~isolated), case.recipe, "defended")
        ascent = self.recipe.model_copy(update={"loss": Ascent(ceiling=self.ceiling)})
        unlearnt = case.fit(net, case.samples(isolated), ascent, "defended/unlearn")
        return case.deployed(net, joined(learnt.history, unlearnt.history))
