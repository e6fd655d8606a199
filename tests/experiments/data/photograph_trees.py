"""Small trees of photographs, as ImageNet and FGVC-Aircraft lay theirs out."""

import numpy as np

CLASSES = ("n01", "n02", "n03")
VARIANTS = ("707-320", "A300B4", "Cessna 172", "F/A-18")
BANNER = 20


def photograph(seed, height, width):
    """Random blocks: coarse enough that JPEG keeps them nearly."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])


def write_imagenet(folder, train=6, val=4):
    """Write a tree of three classes; the pixels of each file by its name, losslessly."""
    from PIL import Image

    pixels = {}
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                seed = 100 * label + 10 * number + (part == "val")
                image = photograph(seed, 24 + seed % 7, 30 - seed % 5)
                file = place / f"{name}_{number}.JPEG"
                # Pillow tells the format from the content: exact pixels under the usual ending.
                Image.fromarray(image).save(file, format="PNG")
                pixels[f"{part}/{name}/{file.name}"] = image
    return pixels


def write_aircraft(folder, each=2):
    """Write a tree of four variants, `each` of them in train, val and test; pixels by number."""
    from PIL import Image

    data = folder / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    (data / "variants.txt").write_text("".join(f"{name}\n" for name in VARIANTS))
    pixels, lists = {}, {"train": [], "val": [], "test": []}
    for place, lines in enumerate(lists.values()):
        for number in range(each * len(VARIANTS)):
            name = f"{1000 * place + number:07d}"
            pixels[name] = photograph(int(name), 26 + BANNER, 30)
            path = data / "images" / f"{name}.jpg"
            Image.fromarray(pixels[name]).save(path, format="PNG")
            lines.append(f"{name} {VARIANTS[number % len(VARIANTS)]}\n")
    lists["trainval"] = lists["train"] + lists["val"]
    for part, lines in lists.items():
        (data / f"images_variant_{part}.txt").write_text("".join(lines))
    return pixels
