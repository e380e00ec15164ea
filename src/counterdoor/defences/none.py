"""No defence, as a control."""

from typing import ClassVar, Literal

from counterdoor.defences.base import Case, DefenceBase, Defended


class NoDefence(DefenceBase):
    """The undefended net itself: the control in which nothing may change."""

    needs_undefended: ClassVar[bool] = True

    name: Literal["none"] = "none"

    def __call__(self, case: Case) -> Defended:
        """The undefended net, not trained again; see :class:`DefenceBase`."""
        return Defended(case.undefended, case.undefended_history)
