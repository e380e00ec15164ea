"""Every model at every size and mode: can it be shipped in each form, before it is trained?"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from counterdoor.component import members
from counterdoor.hardened import Hardened, try_exports
from counterdoor.models import Model, TrainedNet, build_net
from counterdoor.sources.decoding import Form
from counterdoor.stamp import Stamp

SIZES = (28, 32, 64, 96)
CLASSES = 10


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:  # noqa: ARG001
    """Each model that needs no code of somebody else, at each size, grey and RGB."""
    for kind in members(Model):
        if kind.component_name() == "external":
            continue
        for size in SIZES:
            for channels, mode in ((1, "L"), (3, "RGB")):
                model = kind()
                images = np.zeros((2, channels, size, size), np.uint8)
                state = build_net(model, images, CLASSES, seed=0, stream="x").state_dict()
                net = TrainedNet.of(model, images, CLASSES, state, Stamp(size=2, colour="white"))
                names = tuple(map(str, range(CLASSES)))
                try:
                    try_exports(Hardened(net, names, Form((size, size), mode)))
                    wrong = None
                except ValueError as error:
                    wrong = str(error)
                yield f"{kind.component_name()} {size} {mode}", wrong
