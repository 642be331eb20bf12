"""Label values: class indices from 0, and one value for pixels that are ignored. None of this needs JAX."""

from collections.abc import Iterable, Sequence

import numpy as np

IGNORED = 255  # pixels with this label count in neither the losses nor the scores


def flipped_classes(num_classes: int, flip_pairs: Iterable[Sequence[int]]) -> np.ndarray:
    """The class that each class becomes in a horizontally flipped image: int (num_classes,).

    flip_pairs: classes that swap, such as LIP's left and right arm.
    """
    flipped = np.arange(num_classes)
    for a, b in flip_pairs:
        flipped[[a, b]] = b, a
    return flipped
