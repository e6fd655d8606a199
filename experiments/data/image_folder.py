"""Photographs in the folders of ImageNet and FGVC-Aircraft."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Int32, UInt8

from experiments.data.errors import data_error, read_bytes
from experiments.data.photographs import read_photograph

IMAGENET_HOME = "https://www.image-net.org/download.php"
AIRCRAFT_HOME = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"

IMAGENET_PARTS = ("train", "val")
AIRCRAFT_PARTS = ("train", "val", "trainval", "test")

_ENDINGS = (".jpeg", ".jpg", ".png")
# Rows at the bottom of every photograph of FGVC-Aircraft that name its owner.
_BANNER = 20
# Bytes of a list of them, ten times those that are published.
_MOST_LIST = 1 << 22


@dataclass(frozen=True, eq=False, repr=False)
class ImageFiles:
    """Photographs that are decoded one at a time, with their labels.

    Element `i` is uint8 (h, w, 3), not writable; its label is `labels[i]`.

    Args:
        name: of the data set and its part, for messages.
        folder: what the files' names are relative to.
        files: their names.
        labels: the class of each, int32 (n,).
        classes: names of the classes, by label.
        home: where the data set is published, for messages.
        banner: rows that are cut off at the bottom.
    """

    name: str
    folder: str
    files: Sequence[str]
    labels: Int32[np.ndarray, "n"]
    classes: Sequence[str]
    home: str
    banner: int = 0

    def __len__(self) -> int:
        """The number of photographs."""
        return len(self.files)

    def __repr__(self) -> str:
        """The name and the number of photographs."""
        return f"ImageFiles({self.name}, {len(self)} images)"

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """One photograph.

        Raises IndexError for an index out of range, DataError for a file that is missing or
        damaged, ImportError without Pillow.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"no image {index} in {self.name}, which has {len(self)}")
        path = Path(self.folder, self.files[index])
        pixels = read_photograph(path, self.home)
        rows = len(pixels) - self.banner
        if rows < 1:
            raise data_error(
                path, f"has {len(pixels)} rows; expected more than {self.banner}", self.home
            )
        return pixels[:rows]


def imagenet_files(folder: str | Path, part: str) -> ImageFiles:
    """The photographs of a tree as ImageNet's: a folder for each part, in it one for each class.

    Classes are the names of their folders, sorted; labels count them from 0. Files that do not end
    in .JPEG, .jpg or .png, in whatever case, are ignored. Nothing is decoded yet.

    Args:
        folder: the folder that holds `train` and `val`, or the only one in it that does.
        part: "train" or "val".

    Returns:
        The photographs of the part, class by class, sorted by name.

    Raises:
        ValueError: another part.
        DataError: the tree is not there, has no classes, a class in one part only, or a class
            without images in the part.

    Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015.
    """
    _check_part(part, IMAGENET_PARTS)
    root = _imagenet_root(Path(folder))
    train, val = (_class_names(root / name) for name in IMAGENET_PARTS)
    for name, own, other in (("train", train, val), ("val", val, train)):
        lacking = sorted(set(other) - set(own))
        if lacking:
            raise data_error(
                root / name / lacking[0],
                f"no such folder; train and val must have the same classes, {name} lacks "
                f"{len(lacking)} of them",
                IMAGENET_HOME,
            )
    files, counts = [], []
    for name in train:
        # Among hidden files are those that macOS lays beside others under the same ending.
        inside = sorted(
            file
            for file in _names(root / part / name)
            if file.lower().endswith(_ENDINGS) and not file.startswith(".")
        )
        if not inside:
            raise data_error(
                root / part / name,
                f"holds no image; expected files that end in {', '.join(_ENDINGS)}",
                IMAGENET_HOME,
            )
        files += [f"{name}/{file}" for file in inside]
        counts.append(len(inside))
    labels = np.repeat(np.arange(len(train), dtype=np.int32), counts)
    return ImageFiles(
        f"imagenet {part}", str(root / part), files, labels, tuple(train), IMAGENET_HOME
    )


def aircraft_files(folder: str | Path, part: str) -> ImageFiles:
    """The photographs of FGVC-Aircraft with their variants, without the banner at the bottom.

    Labels count the variants in the order of `variants.txt` from 0. Nothing is decoded yet.

    Args:
        folder: `data` with `images`, `variants.txt` and the lists in it, or `fgvc-aircraft-2013b`
            that holds it, or the folder that holds that.
        part: "train", "val", "trainval" (both of them) or "test".

    Returns:
        The photographs in the order of the part's list.

    Raises:
        ValueError: another part.
        DataError: the tree or a list is not there, a list is damaged, names an image that is not
            there or one twice, names an unknown variant, or lacks one.

    Source: Maji et al., "Fine-Grained Visual Classification of Aircraft", 2013, arXiv 1306.5151.
    """
    _check_part(part, AIRCRAFT_PARTS)
    root = _aircraft_root(folder)
    variants = _lines(root / "variants.txt")
    path = root / f"images_variant_{part}.txt"
    numbers, names = [], []
    for count, line in enumerate(_lines(path), start=1):
        number, _, variant = line.partition(" ")
        if not number.isdecimal() or not variant.strip():
            _refuse(path, f"line {count} is {line!r}; expected an image's number and a variant")
        numbers.append(number)
        names.append(variant.strip())
    _check_list(path, numbers, names, variants)
    present = set(_names(root / "images"))
    files = [f"{number}.jpg" for number in numbers]
    for file in files:
        if file not in present:
            _refuse(root / "images" / file, f"no such file; {path.name} names it")
    label_of = {variant: label for label, variant in enumerate(variants)}
    labels = np.array([label_of[name] for name in names], np.int32)
    return ImageFiles(
        f"fgvc_aircraft {part}",
        str(root / "images"),
        files,
        labels,
        tuple(variants),
        AIRCRAFT_HOME,
        _BANNER,
    )


def _imagenet_root(folder: Path) -> Path:
    candidates = [folder]
    if folder.is_dir():
        candidates += sorted(place for place in folder.iterdir() if place.is_dir())
    found = [c for c in candidates if all((c / part).is_dir() for part in IMAGENET_PARTS)]
    if not found or (found[0] != folder and len(found) > 1):
        several = f"; {len(found)} folders in it have them: name one" if found else ""
        raise data_error(
            folder,
            f"ImageNet is not in this folder; expected train and val in it{several}",
            IMAGENET_HOME,
        )
    return found[0]


def _aircraft_root(folder: str | Path) -> Path:
    places = [Path(folder), Path(folder, "data"), Path(folder, "fgvc-aircraft-2013b", "data")]
    for place in places:
        if (place / "images").is_dir():
            return place
    raise data_error(
        folder,
        "FGVC-Aircraft is not in this folder; expected images, variants.txt and "
        "images_variant_*.txt, in it or in fgvc-aircraft-2013b/data",
        AIRCRAFT_HOME,
    )


def _class_names(folder: Path) -> list[str]:
    names = sorted(f for f in _names(folder) if not f.startswith(".") and (folder / f).is_dir())
    if not names:
        raise data_error(
            folder, "no folder in it; expected one for each class, with its images", IMAGENET_HOME
        )
    return names


def _check_list(
    path: Path, numbers: Sequence[str], names: Sequence[str], variants: Sequence[str]
) -> None:
    seen: set[str] = set()
    for number, name in zip(numbers, names, strict=True):
        if name not in variants:
            _refuse(path, f"image {number} is of variant {name!r}, which variants.txt lacks")
        if number in seen:
            _refuse(path, f"names image {number} twice")
        seen.add(number)
    absent = sorted(set(variants) - set(names))
    if absent:
        _refuse(path, f"has no image of variant {', '.join(absent[:3])}; expected some of each")


def _lines(path: Path) -> list[str]:
    try:
        text = read_bytes(path, AIRCRAFT_HOME, _MOST_LIST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise data_error(path, f"is no text ({error.reason})", AIRCRAFT_HOME) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        _refuse(path, "is empty; expected a line for each")
    return lines


def _names(folder: Path) -> list[str]:
    return [place.name for place in folder.iterdir()]


def _check_part(part: str, known: Sequence[str]) -> None:
    if part not in known:
        raise ValueError(f"part is {part!r}; known are {', '.join(known)}")


def _refuse(path: Path, problem: str) -> NoReturn:
    raise data_error(path, problem, AIRCRAFT_HOME)
