"""Features of the images that no label has had a part in."""

from typing import Annotated

from pydantic import Field

from counterdoor.features.learnt import features_of
from counterdoor.features.patches import Patches
from counterdoor.features.simclr import Contrast, SimCLR
from counterdoor.features.views import Views

__all__ = ["Contrast", "Features", "Patches", "SimCLR", "Views", "features_of"]

Features = Annotated[SimCLR | Patches, Field(discriminator="name")]
"""How features are had without labels."""
