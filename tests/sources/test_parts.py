"""Parts of data are known however they are spelt, and classes are not taken for them."""

import pytest

from counterdoor.sources.parts import part_of, sorted_out


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("train", "train Train TRAINING training_set trainData seg_train train2017 images_train"),
        ("test", "test Testing TEST test-set testset tst"),
        ("eval", "eval Evaluation"),
        ("valid", "val valid Validation val2017 dev"),
        (None, "trains trainer contest tested value device images data cat train_test 7 é"),
    ],
)
def test_spellings(part, names):
    assert {name: part_of(name) for name in names.split()} == dict.fromkeys(names.split(), part)


def test_two_of_a_part_are_refused():
    assert sorted_out(["train", "Valid", "cat"], "x") == {"train": "train", "valid": "Valid"}
    with pytest.raises(ValueError, match=r"^x has train/ and Training/, both a train part"):
        sorted_out(["train", "Training"], "x")
