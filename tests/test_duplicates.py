"""Equal pictures: found whatever their files are, and told apart by their labels."""

import numpy as np

from counterdoor.duplicates import Duplicates, held_out_again


def test_equal_pictures_under_two_labels_and_under_one(noise):
    images = np.array(noise(8, 3, 4, 5))
    images[6], images[7], images[3] = images[0], images[2], images[2]
    labels = np.array([0, 0, 1, 1, 1, 0, 2, 1])
    found = Duplicates.among(images, labels)
    assert found.conflicts == ((0, 6),)
    assert found.repeats == ((2, 3, 7),)


def test_one_label_too_many_makes_a_conflict_and_one_pixel_a_difference(noise):
    images = np.repeat(noise(1), 4, axis=0)
    images[3, 0, 0, 0] ^= 1
    found = Duplicates.among(images, np.array([0, 0, 1, 1]))
    assert found == Duplicates(((0, 1, 2),), ())
    assert Duplicates.among(noise(5), np.zeros(5, int)) == Duplicates((), ())
    assert Duplicates.among(noise(5)[:0], np.zeros(0, int)) == Duplicates((), ())


def test_held_out_pictures_that_are_trained_on_are_counted(noise):
    images, test = noise(6), np.array(noise(4, seed=1))
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert held_out_again(images, labels, test, np.zeros(4, int)) == (0, 0)
    test[0], test[2] = images[3], images[4]
    assert held_out_again(images, labels, test, np.array([0, 0, 2, 0])) == (2, 1)
