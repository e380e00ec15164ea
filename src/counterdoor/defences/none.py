"""No defence, as a control."""

from typing import Literal

from counterdoor.defences.base import Case, DefenceBase, Defended


class NoDefence(DefenceBase):
    """The undefended net itself: the control in which nothing may change."""

    name: Literal["none"] = "none"

    def __call__(self, case: Case) -> Defended:
        """The undefended net, not trained again; see :class:`DefenceBase`."""
        return Defended(case.undefended, case.undefended_history)
