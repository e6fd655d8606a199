import shutil

import numpy as np
import pytest
from photograph_trees import BANNER, CLASSES, VARIANTS, photograph, write_aircraft, write_imagenet

from experiments.data import DataError, aircraft_files, imagenet_files

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs") / "imagenet"
    return folder, write_imagenet(folder)


@pytest.fixture(scope="module")
def aircraft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aircraft")
    return folder, write_aircraft(folder)


@pytest.fixture
def broken_imagenet(imagenet, tmp_path):
    return shutil.copytree(imagenet[0], tmp_path / "imagenet")


@pytest.fixture
def broken_aircraft(aircraft, tmp_path):
    shutil.copytree(aircraft[0], tmp_path, dirs_exist_ok=True)
    return tmp_path / "fgvc-aircraft-2013b" / "data"


@pytest.mark.parametrize(("part", "count"), [("train", 6), ("val", 4)])
def test_every_photograph_of_a_class_tree(imagenet, part, count):
    folder, pixels = imagenet
    files = imagenet_files(folder, part)
    assert len(files) == 3 * count
    assert files.classes == CLASSES
    assert repr(files) == f"ImageFiles(imagenet {part}, {3 * count} images)"
    np.testing.assert_array_equal(files.labels, np.repeat([0, 1, 2], count))
    assert files.labels.dtype == np.int32
    assert {f"{part}/{name}" for name in files.files} == {p for p in pixels if p.startswith(part)}
    for index, name in enumerate(files.files):
        element = files[index]
        assert name.startswith(CLASSES[files.labels[index]])
        assert files.labels.dtype == np.int32
        np.testing.assert_array_equal(element, pixels[f"{part}/{name}"])


def test_a_class_tree_one_level_above(imagenet):
    folder, _ = imagenet
    above = imagenet_files(folder.parent, "val")
    assert above.files == imagenet_files(folder, "val").files
    np.testing.assert_array_equal(above[3], imagenet_files(folder, "val")[3])


def test_other_files_are_passed_over(broken_imagenet):
    before = imagenet_files(broken_imagenet, "train").files
    (broken_imagenet / "train" / "n01" / "notes.txt").write_text("none")
    (broken_imagenet / "train" / ".cache").mkdir()
    (broken_imagenet / "train" / "LICENSE").write_text("none")
    assert imagenet_files(broken_imagenet, "train").files == before
    Image.new("RGB", (4, 4)).save(broken_imagenet / "train" / "n02" / "zz.png")
    assert len(imagenet_files(broken_imagenet, "train")) == len(before) + 1


@pytest.mark.parametrize("part", ["train", "val", "trainval", "test"])
def test_every_photograph_of_an_aircraft_list(aircraft, part):
    folder, pixels = aircraft
    files = aircraft_files(folder, part)
    assert files.classes == VARIANTS
    count = 16 if part == "trainval" else 8
    np.testing.assert_array_equal(files.labels, np.arange(count) % len(VARIANTS))
    data = folder / "fgvc-aircraft-2013b" / "data"
    listed = (data / f"images_variant_{part}.txt").read_text().splitlines()
    for index, line in enumerate(listed):
        number, variant = line.split(" ", 1)
        element = files[index]
        assert VARIANTS[files.labels[index]] == variant
        np.testing.assert_array_equal(element, pixels[number][:-BANNER])
    for place in (data, data.parent):
        assert aircraft_files(place, part).files == files.files


def test_indices_out_of_range(imagenet):
    files = imagenet_files(imagenet[0], "val")
    for index in (12, -1):
        with pytest.raises(IndexError, match=f"no image {index} in imagenet val, which has 12"):
            files[index]


@pytest.mark.parametrize("read", [imagenet_files, aircraft_files])
def test_unknown_parts(read, tmp_path):
    with pytest.raises(ValueError, match="part is 'valid'; known are train, val"):
        read(tmp_path, "valid")


@pytest.mark.parametrize(
    ("read", "home"), [(imagenet_files, "image-net.org"), (aircraft_files, "robots.ox.ac.uk")]
)
@pytest.mark.parametrize("name", ["", "nowhere"])
def test_folders_without_the_data_set(read, home, name, tmp_path):
    with pytest.raises(DataError, match=f"is not in this folder; expected .*{home}"):
        read(tmp_path / name, "train")


def test_two_class_trees_are_one_too_many(imagenet, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(imagenet[0], tmp_path / name)
    with pytest.raises(DataError, match="2 folders in it have them: name one"):
        imagenet_files(tmp_path, "train")


@pytest.mark.parametrize(("lacking", "asked"), [("train", "train"), ("val", "train")])
def test_a_class_in_one_part_only(broken_imagenet, lacking, asked):
    shutil.rmtree(broken_imagenet / lacking / "n02")
    with pytest.raises(DataError, match=rf"{lacking}.n02: no such folder; train and val must"):
        imagenet_files(broken_imagenet, asked)


def test_a_class_without_images(broken_imagenet):
    for file in (broken_imagenet / "val" / "n03").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"val.n03: holds no image; expected files that end in"):
        imagenet_files(broken_imagenet, "val")


def test_a_part_that_is_not_sorted_by_class(broken_imagenet):
    for folder in list((broken_imagenet / "val").iterdir()):
        for file in folder.iterdir():
            file.rename(broken_imagenet / "val" / file.name)
        folder.rmdir()
    with pytest.raises(DataError, match=r"val: no folder in it; expected one for each class"):
        imagenet_files(broken_imagenet, "train")


def test_a_damaged_photograph(broken_imagenet):
    files = imagenet_files(broken_imagenet, "train")
    path = broken_imagenet / "train" / files.files[7]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=rf"{path.name}: cannot be read as an image"):
        files[7]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("variants.txt", None, r"variants\.txt: cannot be read"),
        ("variants.txt", "\n", r"variants\.txt: is empty"),
        ("variants.txt", b"\xff\xfe", r"variants\.txt: is no text"),
        ("variants.txt", "707-320\nA300B4\nF/A-18\n", "'Cessna 172', which variants.txt lacks"),
        ("images_variant_train.txt", None, r"images_variant_train\.txt: cannot be read"),
        ("images_variant_train.txt", "0000001\n", "line 1 is '0000001'; expected an image's"),
        ("images_variant_train.txt", "one F/A-18\n", "line 1 is 'one F/A-18'"),
        ("images_variant_train.txt", "0000001 F/A-18\n" * 2, "names image 0000001 twice"),
        ("images_variant_train.txt", "0000001 F/A-18\n", "no image of variant 707-320, A300B4"),
    ],
)
def test_damaged_lists(broken_aircraft, file, text, message):
    if text is None:
        (broken_aircraft / file).unlink()
    else:
        (broken_aircraft / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        aircraft_files(broken_aircraft, "train")


def test_a_list_that_names_a_missing_photograph(broken_aircraft):
    (broken_aircraft / "images" / "0001003.jpg").unlink()
    assert len(aircraft_files(broken_aircraft, "train")) == 8
    with pytest.raises(DataError, match=r"0001003\.jpg: no such file; images_variant_val\.txt"):
        aircraft_files(broken_aircraft, "val")


def test_a_photograph_that_is_all_banner(broken_aircraft):
    path = broken_aircraft / "images" / "0000002.jpg"
    Image.fromarray(photograph(0, BANNER, 30)).save(path, format="PNG")
    with pytest.raises(DataError, match=r"0000002\.jpg: has 20 rows; expected more than 20"):
        aircraft_files(broken_aircraft, "train")[2]
