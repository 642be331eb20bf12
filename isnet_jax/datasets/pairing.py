"""Which label belongs to which image, and which files lack a partner."""

from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    name: str  # the stem
    image: Path
    label: Path


def find_pairs(images, labels, problems, image_suffixes=('.jpg', '.jpeg', '.png'), label_suffixes=('.png',)):
    """Matches the files of two folders by their stems.

    Args:
      images, labels: the folders, Path. Hidden files and files of other suffixes (in any case) are passed over.
      problems: list, gets a sentence for each missing folder and each file without its partner.

    Returns:
      A list of Pair sorted by name.
    """
    found = []
    for folder, suffixes in (images, image_suffixes), (labels, label_suffixes):
        if not folder.is_dir():
            problems.append(f'The folder {folder} is missing.')
            return []
        files = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in suffixes and not path.name.startswith('.'):
                if path.stem in files:
                    problems.append(f'{files[path.stem]} and {path.name} beside it have the same name.')
                files[path.stem] = path
        found.append(files)
    image_files, label_files = found
    for stem in sorted(image_files.keys() ^ label_files.keys()):
        if stem in image_files:
            problems.append(f'{image_files[stem]} has no label {stem}{label_suffixes[0]} in {labels}.')
        else:
            problems.append(f'{label_files[stem]} has no image {stem}{{{",".join(image_suffixes)}}} in {images}.')
    if not (image_files or label_files):
        problems.append(f'{images} holds no images.')
    return [Pair(stem, image_files[stem], label_files[stem])
            for stem in sorted(image_files.keys() & label_files.keys())]
