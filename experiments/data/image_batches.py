"""Batches of photographs for a training loop, by grain: shuffled, augmented, sharded, resumable."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Float32, UInt8

from experiments.data.image_folder import ImageFiles
from experiments.data.views import evaluation_view, training_view

# Of ImageNet's training images, as shares of the range of a pixel; what published networks expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Train:
    size: int

    def __call__(
        self, element: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        return {**element, "image": training_view(element["image"], rng, self.size)}


@dataclass(frozen=True)
class _Evaluate:
    size: int
    resize: int

    def __call__(self, element: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**element, "image": evaluation_view(element["image"], self.size, self.resize)}


@dataclass(frozen=True)
class _Standardise:
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**batch, "image": self.standardised(batch["image"])}

    def standardised(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float32[np.ndarray, "b h w 3"]:
        scale = 1 / (255 * np.array(self.deviation))
        shift = -np.array(self.mean) / np.array(self.deviation)
        return images * scale.astype(np.float32) + shift.astype(np.float32)


def image_batches(
    files: ImageFiles,
    batch_size: int,
    *,
    train: bool,
    seed: int = 0,
    epochs: int | None = 1,
    size: int = 224,
    resize: int = 256,
    mean: Sequence[float] = IMAGENET_MEAN,
    deviation: Sequence[float] = IMAGENET_DEVIATION,
    shard: tuple[int, int] | None = None,
    threads: int = 8,
    num_workers: int = 0,
) -> Any:
    """Batches {"image": float32 (b, size, size, 3), "label": int32 (b,)}, made ahead of their use.

    With `train`, images come in another order and as other `training_view`s in every epoch, and an
    incomplete last batch of an epoch is left out; else in their own order, as `evaluation_view`s,
    and the last batch of an epoch may be smaller. Pixels are (pixel / 255 - mean) / deviation.

        dataset = image_batches(imagenet_files(folder, "train"), 256, train=True, epochs=None)
        iterator = iter(dataset)
        batch = next(iterator)
        state = iterator.get_state()  # for a checkpoint; iterator.set_state(state) goes on there

    The batches depend on the arguments alone, whatever `threads` and `num_workers`. An order and
    its views are those of `seed` and the epoch, whatever `shard`: each process takes every count-th
    image of the same order.

    Args:
        files: the photographs.
        batch_size: images of a batch of one process.
        train: training or evaluation, see above.
        seed: of the order and the views, 0 to 2**32 - 2.
        epochs: times that every image is given; None for no end.
        size: side of the images in pixels.
        resize: see `evaluation_view`.
        mean, deviation: of each channel as shares of the range of a pixel.
        shard: index and count of the processes that share the images; None for those of JAX. The
            same number of images goes to each: in training up to count - 1 of an epoch are left
            out, in evaluation they go to the first processes, and the others have one less.
        threads: batches that one process makes at once, and so many are held in memory.
        num_workers: processes that make batches; 0 makes them in this one. Others need absl's flags
            parsed, as `absl.app.run` or `absl.flags.FLAGS.mark_as_parsed()` leaves them.

    Returns:
        A `grain.IterDataset`, which may be iterated over any number of times.

    Raises:
        ValueError: a number is out of range, or in training there is less than one batch.
        RuntimeError: `num_workers` without absl's flags parsed.
        DataError: while iterating, for a photograph that is missing or damaged.
        ImportError: grain is not installed.

    Source: grain's documentation, https://google-grain.readthedocs.io.
    """
    index, count = (jax.process_index(), jax.process_count()) if shard is None else shard
    mean, deviation = tuple(mean), tuple(deviation)
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("epochs", 1 if epochs is None else epochs, 1),
        ("size", size, 1),
        ("threads", threads, 1),
        ("num_workers", num_workers, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")
    if not 0 <= seed < 2**32 - 1:
        raise ValueError(f"seed is {seed}; expected 0 to 2**32 - 2")
    if not 0 <= index < count:
        raise ValueError(f"shard is {index} of {count}; expected an index from 0 to count - 1")
    if resize < size and not train:
        raise ValueError(f"size is {size}, resize {resize}; expected size from 1 to resize")
    if not len(mean) == len(deviation) == 3 or not all(0 < d < np.inf for d in deviation):
        raise ValueError(
            f"mean {mean} and deviation {deviation}; expected three of both, deviations above 0"
        )
    if not np.isfinite(mean).all():
        raise ValueError(f"mean {mean} holds NaN or Inf")
    share = len(files) // count
    if (train and share < batch_size) or not share:
        raise ValueError(
            f"{files!r} gives each of {count} processes {share} images, less than one batch of "
            f"{batch_size}"
        )
    if num_workers and not flags.FLAGS.is_parsed():
        raise RuntimeError(
            f"num_workers is {num_workers}, but grain's processes need absl's flags parsed: call "
            "absl.flags.FLAGS.mark_as_parsed() before, or run under absl.app.run"
        )
    try:
        import grain
    except ImportError as error:
        raise ImportError("batches are made with grain: install tdjax[images]") from error

    dataset = grain.MapDataset.source(files)
    if train:
        dataset = dataset.shuffle(seed=seed).random_map(_Train(size), seed=seed + 1)
        # Processes that train together must see as many batches as each other.
        dataset = dataset.slice(slice(index, share * count, count))
    else:
        dataset = dataset.map(_Evaluate(size, resize)).slice(slice(index, None, count))
    dataset = dataset.batch(batch_size, drop_remainder=train).map(_Standardise(mean, deviation))
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    batches = dataset.repeat(epochs).to_iter_dataset(reading)
    if num_workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return batches
