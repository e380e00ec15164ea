"""Images of one's own: a folder a class."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from counterdoor.component import Place
from counterdoor.names import class_name, plain, shown
from counterdoor.sources.base import FileSource, ImageSet, OnCorrupt, Pixels, image_set
from counterdoor.sources.decoding import (
    Content,
    Decoded,
    Form,
    UnreadableError,
    common_size,
    read_images,
)
from counterdoor.sources.parts import TESTED, sorted_out

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}

JUNK = {
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information", "lost+found", "__macosx", "__pycache__"),
}
"""Folders that systems and tools leave behind, in lower case: neither classes nor in them."""

LARGEST, USUAL = 128, 64
"""Pixels a side, if nobody says what size images are to have: up to the first they stay as they
are, and all others are brought to the second."""

Item = tuple[str, Content, int]
"""An image's name, content and label."""

OUTSIDE = "it is a link that leads out of the folder"


class ImageFolder(FileSource):
    """Images in a folder a class, below train/ and test/ (or val/), or all below one folder.

    A class is named by its folder, and classes are ordered by that name; names that differ in
    how Unicode writes them alone are one class. Every file at any depth below it counts as an
    image, except hidden ones and folders that systems leave behind. Parts are known in their
    usual spellings (``Training``, ``test_set``, ``valid``), whatever the case. Of test,
    evaluation and validation part the first that has class folders is the test part; without
    a training part the class folders lie in ``path`` itself, and the test part is drawn from
    them. What is left out is told in the notes.

    Damaged files are left out by default, unlike in published data sets: in a folder of
    unknown origin they are to be expected, and they are listed and counted.

    Attributes:
        path: the folder.
        image_size: as of every source; or ``auto``: pictures of one size stay as they are, up to
            128 pixels a side, and all others are brought to 64x64, which the notes tell.
        follow_links: whether links are followed that lead out of the folder; those within
            always are.
    """

    name: Literal["image_folder"] = "image_folder"
    path: Place
    image_size: Pixels | tuple[Pixels, Pixels] | Literal["auto"] | None = None  # type: ignore[assignment]
    on_corrupt: OnCorrupt = "skip"
    follow_links: bool = False

    def __call__(self) -> ImageSet:
        """Read and decode all images.

        Raises:
            ValueError: if a folder is missing or cannot be listed, or leads out of the
                path, a class has no file or only damaged ones, the test part has a class
                that the training part has not, or the images differ in size and none is set.
        """
        root = Path(self.path)
        found = folders_in(root)
        parts = sorted_out(found, self.path)
        train, notes = root, []
        if "train" in parts:
            train = root / parts["train"]
        elif parts:
            raise ValueError(
                f"{shown(root)} has {shown(next(iter(parts.values())))}/ but no train/; add it. If "
                "these folders are classes, put all of them into a folder train/"
            )
        self._stay_inside(train)
        try:
            classes = classes_in(train)
        except ValueError as error:
            if train == root or len(found) == len(parts):
                raise
            raise ValueError(
                f"{error}. {shown(train.name)}/ is taken for the training part; if it is a class, "
                "put all class folders into a folder train/"
            ) from error
        names = tuple(classes)
        test, tested = root, dict[str, list[str]]()
        for part in TESTED if "train" in parts else ():
            if part not in parts:
                continue
            folder = root / parts[part]
            self._stay_inside(folder)
            if tested:
                notes.append(f"{shown(folder)} is left out: {shown(test)} is the test part")
            elif not folders_in(folder):
                notes.append(
                    f"{shown(folder)} is left out: it has no folder a class, so nobody knows the "
                    "labels of what is in it"
                )
            else:
                test, tested = folder, classes_in(folder)
                if part != "test":
                    notes.append(f"{shown(folder)} is read as the test part")
        if unknown := sorted(set(tested) - set(names)):
            raise ValueError(
                f"{shown(test)} has classes that {shown(train)} has not: "
                f"{', '.join(map(shown, unknown))}; give them training images, or take them out"
            )
        notes += [
            f"{shown(root / name)} is left out: it is beside the training part and no part itself"
            for name in found
            if parts and name not in parts.values()
        ]
        items, told = self._items(train, classes, names)
        form, sized = self._form_of(items)
        notes += [*told, *sized]
        read = self._decoded(items, form)
        if not tested:
            return replace(image_set(names, read, None), notes=(*notes, *read.notes))
        items, told = self._items(test, tested, names)
        checked = self._decoded(items, form)
        notes = [*notes, *told, *read.notes, *checked.notes]
        return replace(image_set(names, read, checked), notes=tuple(notes))

    @property
    def form(self) -> Form:
        """What every image is brought to; without size as long as that is to be found out."""
        if self.image_size == "auto":
            return self.model_copy(update={"image_size": None}).form
        return super().form

    def _form_of(self, items: Sequence[Item]) -> tuple[Form, list[str]]:
        """What images are brought to, and what somebody should know of it."""
        if self.image_size != "auto":
            return self.form, []
        size = common_size(content for _, content, _ in items)
        if size is not None and max(size) <= LARGEST:
            return replace(self.form, size=size), []
        reason = "differ in size" if size is None else f"are larger than {LARGEST} pixels"
        return replace(self.form, size=(USUAL, USUAL)), [
            f"the pictures {reason}, so all are brought to {USUAL}x{USUAL} pixels: "
            "ingest.source.image_size sets another size"
        ]

    def _decoded(self, items: Sequence[Item], form: Form) -> Decoded:
        return read_images(items, len(items), form, root=self.path, on_corrupt=self.on_corrupt)

    def _items(
        self, folder: Path, classes: Mapping[str, Sequence[str]], names: Sequence[str]
    ) -> tuple[list[Item], list[str]]:
        """The images of a part, and what somebody should know of its folders."""
        root = Path(self.path)
        items: list[Item] = []
        within = []
        for label, name in enumerate(names):
            inner: set[str] = set()
            for each in classes.get(name, ()):
                self._stay_inside(folder / each)
                for file, content in files_below(
                    folder / each, within=None if self.follow_links else root, strict=True
                ):
                    items.append((plain(file.relative_to(root).as_posix()), content, label))
                    inner.update(file.relative_to(folder / each).parts[:-1][:1])
            if name in classes:
                within.append(inner)
        notes = [
            f"{shown(folder)} has the folders {', '.join(map(shown, each))} for one class, "
            f"{name!r}: Unicode writes it in several ways"
            for name, each in classes.items()
            if len(each) > 1
        ]
        shared = sorted(set.intersection(*within)) if len(within) > 1 else []
        if len(shared) > 1:
            notes.append(
                f"every class in {shown(folder)} has pictures in {', '.join(map(shown, shared))}: "
                "all are read as its images; take out those that are none, such as masks"
            )
        if loose := [each for each in _files_in(folder) if Path(each).suffix.lower() in SUFFIXES]:
            notes.append(
                f"{len(loose):,} pictures lie in {shown(folder)} itself and in no class: left out, "
                f"the first is {shown(min(loose))}"
            )
        if len(names) == 1 and len(folders_in(folder / classes[names[0]][0])) > 1:
            inside = folder / classes[names[0]][0]
            remedy = (
                f"set ingest.source.path={shown(inside)}"
                if folder == root
                else f"move its folders up into {shown(folder)}"
            )
            notes.append(
                f"the only folder in {shown(folder)} is {shown(inside.name)}/, which has several "
                f"folders itself: if these are the classes or the parts, {remedy}"
            )
        if outside := sum(str(content).startswith(OUTSIDE) for _, content, _ in items):
            notes.append(
                f"{outside:,} links in {shown(folder)} lead out of {shown(root)} and are not "
                "followed; ingest.source.follow_links=true follows them"
            )
        return items, notes

    def _stay_inside(self, folder: Path) -> None:
        """Refuse a class or part that is a link to somewhere else: it would be missing."""
        root = Path(self.path)
        if folder != root and not self.follow_links and leads_out(folder, root):
            raise ValueError(
                f"{shown(folder)} is a link that leads out of {shown(root)}, to "
                f"{shown(folder.resolve())}; set ingest.source.follow_links=true to read it, or "
                "take it out"
            )


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in ``folder`` that are neither hidden nor junk, sorted.

    Raises:
        ValueError: if there is no such folder, or it cannot be listed.
    """
    try:
        found = [each.name for each in os.scandir(folder) if each.is_dir()]
    except (OSError, ValueError) as error:  # a path with a NUL in it is a ValueError
        raise ValueError(
            f"{shown(folder)} cannot be read ({getattr(error, 'strerror', None) or error}); set "
            "ingest.source.path to a folder that has a folder a class, or train/ and test/ with "
            "those"
        ) from error
    return sorted(name for name in found if not _is_junk(name))


def classes_in(folder: Path) -> dict[str, list[str]]:
    """Folders in ``folder`` by the name of their class, in the order of these names.

    Raises:
        ValueError: if there is no such folder, or no folder in it.
    """
    classes: dict[str, list[str]] = {}
    for name in folders_in(folder):
        classes.setdefault(class_name(name), []).append(name)
    if not classes:
        raise ValueError(
            f"{shown(folder)} has no folders in it; put the images in a folder a class"
        )
    return dict(sorted(classes.items()))


def files_below(
    folder: Path, *, within: Path | None = None, strict: bool = False
) -> list[tuple[Path, Content]]:
    """All files at any depth that are not hidden, sorted, each with its content.

    Links are followed, each folder once. A folder named as an image counts as a file: it
    will be rejected as one, and listed. So are links that lead out of ``within``, and folders
    that cannot be listed.

    Args:
        folder: where to look.
        within: links that lead out of this folder are not followed; ``None`` follows all.
        strict: a folder that cannot be listed is an error.

    Raises:
        ValueError: if there is no file, or a folder cannot be listed and that is an error.
    """
    found: list[tuple[Path, Content]] = []

    def fail(error: OSError) -> None:
        if strict:
            raise ValueError(
                f"{shown(error.filename)} cannot be listed ({error.strerror}); give yourself the "
                "permission, or take it out"
            ) from error
        found.append((Path(error.filename), UnreadableError(f"{error.strerror} (a folder)")))

    def content(file: Path) -> Content:
        outside = within is not None and leads_out(file, within)
        return UnreadableError(f"{OUTSIDE}, to {shown(file.resolve())}") if outside else file

    seen = set()
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        refused = [
            each
            for each in folders
            if not _is_junk(each)
            and (
                Path(each).suffix.lower() in SUFFIXES
                or (within is not None and leads_out(Path(place, each), within))
            )
        ]
        folders[:] = sorted(each for each in folders if not _is_junk(each) and each not in refused)
        kept = [Path(place, each) for each in (*files, *refused) if each[0] != "."]
        found += [(file, content(file)) for file in kept]
    if not found:
        raise ValueError(f"the class folder {shown(folder)} holds no file; fill it, or take it out")
    return sorted(found, key=lambda each: each[0])


def leads_out(path: Path, folder: Path) -> bool:
    """Whether ``path`` is a link to somewhere that is not below ``folder``.

    A link to nothing leads nowhere: it is told as that.
    """
    if not path.is_symlink() or not path.exists():
        return False
    return not path.resolve().is_relative_to(folder.resolve())


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in JUNK


def _files_in(folder: Path) -> list[str]:
    return [each.name for each in os.scandir(folder) if each.is_file() and each.name[0] != "."]
