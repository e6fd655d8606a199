"""Stratified choices of examples: each class keeps its share."""

import numpy as np
from jaxtyping import Float, Int


def stratified_split(
    labels: Int[np.ndarray, "n"], share: float, seed: int
) -> tuple[Int[np.ndarray, "t"], Int[np.ndarray, "v"]]:
    """Split examples in two so that both parts have the classes in the same shares.

    `round(share * n)` examples are held out; each class gives `share` of its own, rounded down or
    up (largest remainder), so that no class is off by one example or more.

    Args:
        labels: class of each example.
        share: share of the examples to hold out, between 0 and 1, both excluded.
        seed: seed of the choice; equal arguments give equal parts.

    Returns:
        Sorted indices of the examples that stay and of those that are held out: together all
        examples, each once.

    Raises:
        ValueError: `share` is not between 0 and 1, or a part would be empty.

    Source: largest remainder method (Hamilton's apportionment).
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share is {share}; expected a number between 0 and 1, both excluded")
    size = round(share * len(labels))
    if not 0 < size < len(labels):
        raise ValueError(
            f"share {share} of {len(labels)} examples holds out {size} of them: a part is empty"
        )
    held_out = _choose(labels, share, size, seed)
    return np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True), held_out


def stratified_subset(
    labels: Int[np.ndarray, "n"], size: int, seed: int
) -> Int[np.ndarray, " size"]:
    """Choose `size` examples so that the classes keep their shares.

    Args:
        labels: class of each example.
        size: number of examples to choose, 1 to n.
        seed: seed of the choice; equal arguments give equal choices.

    Returns:
        Sorted indices of the chosen examples.

    Raises:
        ValueError: `size` is below 1 or above the number of examples.

    Source: largest remainder method (Hamilton's apportionment).
    """
    if not 1 <= size <= len(labels):
        raise ValueError(f"size {size} asked of {len(labels)} examples; expected 1 to that number")
    return _choose(labels, size / len(labels), size, seed)


def _choose(
    labels: Int[np.ndarray, "n"], share: float, size: int, seed: int
) -> Int[np.ndarray, " size"]:
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, _largest_remainder(share * counts, size), strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _largest_remainder(quotas: Float[np.ndarray, "k"], total: int) -> Int[np.ndarray, "k"]:
    counts = np.floor(quotas).astype(np.int64)
    largest_first = np.argsort(counts - quotas, kind="stable")
    counts[largest_first[: total - counts.sum()]] += 1
    return counts
