"""Features of the images that no label has had a part in."""

from counterdoor.features.learnt import features_of
from counterdoor.features.simclr import Contrast, SimCLR
from counterdoor.features.views import Views

__all__ = ["Contrast", "SimCLR", "Views", "features_of"]
