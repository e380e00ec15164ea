"""What every source promises; a new one is tested by joining the union ``Source``."""

import numpy as np
import pytest

from counterdoor.component import members
from counterdoor.sources import Source


@pytest.fixture(params=list(members(Source)), ids=lambda kind: kind.__name__)
def source(request, make_component):
    return make_component(request.param)


def check_part(images, labels, num_classes):
    assert images.dtype == np.uint8
    assert images.ndim == 4
    assert images.shape[1] in (1, 3)
    assert len(images) > 0
    assert images.max() > 1, "levels reach from 0 to 255, not from 0 to 1"
    assert labels.dtype == np.int64
    assert labels.shape == (len(images),)
    assert labels.min() >= 0
    assert labels.max() < num_classes


def test_image_set(source):
    """One test for all, since reading is slow."""
    images = source()
    assert all(isinstance(name, str) for name in images.class_names)
    assert len(set(images.class_names)) == len(images.class_names)
    assert set(images.labels.tolist()) == set(range(len(images.class_names)))
    check_part(images.images_nchw, images.labels, len(images.class_names))
    if images.test_images_nchw is not None:
        assert images.test_images_nchw.shape[1:] == images.images_nchw.shape[1:]
        check_part(images.test_images_nchw, images.test_labels, len(images.class_names))
    else:
        assert images.test_labels is None

    again = source()
    np.testing.assert_array_equal(images.images_nchw, again.images_nchw)
    np.testing.assert_array_equal(images.labels, again.labels)
    assert images.class_names == again.class_names
    assert not np.shares_memory(images.images_nchw, again.images_nchw)
    assert images.images_nchw.flags.writeable, "ingest moves rows within the array"
    assert images.rejected == ()


def test_any_size_and_mode_can_be_asked_for(source):
    """Grey becomes colour and colour grey, in another size and shape."""
    mode = "RGB" if source.image_mode == "L" else "L"
    changed = source.model_copy(update={"image_size": (9, 14), "image_mode": mode})
    images = changed()
    shape = (3 if mode == "RGB" else 1, 9, 14)
    assert images.images_nchw.shape[1:] == shape
    assert images.images_nchw.std() > 1
    if images.test_images_nchw is not None:
        assert images.test_images_nchw.shape[1:] == shape
