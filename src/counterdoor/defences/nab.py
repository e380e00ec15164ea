"""NAB: a benign backdoor that switches the attacker's off."""

from typing import ClassVar, Literal

from counterdoor.defences.base import Case, DefenceBase, Defended
from counterdoor.relabeling import plan_samples
from counterdoor.stamp import Stamp


class NAB(DefenceBase):
    """Non-adversarial backdoor: suspects are relabelled and stamped, and so is every input.

    Source: Liu, Sangiovanni-Vincentelli and Yue, "Beating Backdoor Attack at Its Own Game"
    (ICCV 2023), section 4. Its parameters are those of the stages: warm-up, detector,
    labeler, stamp and recipe.
    """

    needs_suspects: ClassVar[bool] = True
    needs_pseudo_labels: ClassVar[bool] = True

    name: Literal["nab"] = "nab"

    def stamp_in_use(self, stamp: Stamp) -> Stamp | None:
        """The run's stamp."""
        return stamp

    def __call__(self, case: Case) -> Defended:
        """Train on the plan, deployed with the stamp if any sample was stamped.

        See :class:`DefenceBase`. Source: NAB, section 4.3.
        """
        used = case.stamp if case.plan["stamped"].any() else None
        net = case.new_net()
        samples = plan_samples(case.images_nchw, case.plan)
        fitted = case.fit(net, samples, case.recipe, "defended", used)
        return case.deployed(net, fitted.history, used)
