"""Tiny ImageNet in its own layout."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Literal

from counterdoor.component import Place
from counterdoor.sources.base import FileSource, ImageSet, image_set, read_files


class TinyImagenet(FileSource):
    """Tiny ImageNet as unpacked: 100,000 training and 10,000 validation images, 64x64, 200 classes.

    The validation images are the test part; those of ``test/`` have no labels. Classes are
    ordered by their WordNet number and named by the first of their words.

    Attributes:
        path: the folder that holds ``wnids.txt``, ``words.txt``, ``train`` and ``val``.
    """

    name: Literal["tiny_imagenet"] = "tiny_imagenet"
    path: Place = "data/00_external/tiny-imagenet-200"

    def __call__(self) -> ImageSet:
        """Read and decode both parts.

        Raises:
            ValueError: if a file of the layout is missing, names an unknown class, or a
                file is damaged and these are not skipped.
        """
        root = Path(self.path)
        wnids = sorted(line for line in self._lines("wnids.txt") if line)
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        words = dict(line.split("\t", 1) for line in self._lines("words.txt") if "\t" in line)
        train = [
            (file, label)
            for wnid, label in labels.items()
            for file in sorted((root / "train" / wnid / "images").glob("*.JPEG"))
        ]
        test = []
        for number, line in enumerate(self._lines("val/val_annotations.txt"), start=1):
            file, wnid = [*line.split("\t"), "", ""][:2]
            if wnid not in labels:
                raise ValueError(
                    f"{root}/val/val_annotations.txt, line {number}: {wnid!r} is no class of "
                    "wnids.txt; unpack the archive again"
                )
            test.append((root / "val" / "images" / file, labels[wnid]))
        read = partial(read_files, form=self.form, root=self.path, on_corrupt=self.on_corrupt)
        return image_set(class_names(wnids, words), read(train), read(test))

    def _lines(self, name: str) -> list[str]:
        try:
            return (Path(self.path) / name).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ValueError(
                f"Tiny ImageNet has no {name} in {self.path} ({error.strerror}); unpack "
                "tiny-imagenet-200.zip and set ingest.source.path to the folder that it makes"
            ) from error


def class_names(wnids: list[str], words: dict[str, str]) -> tuple[str, ...]:
    """The first word of each class, with the number behind it where two have the same."""
    first = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    counts = Counter(first)
    return tuple(
        word if counts[word] == 1 else f"{word} ({wnid})"
        for word, wnid in zip(first, wnids, strict=True)
    )
