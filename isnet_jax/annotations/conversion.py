"""From annotations to a folder of images, label images and a config, which the data set `folder` reads."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm

from isnet_jax.annotations import coco, cvat, drawing, images, labelme, writing
from isnet_jax.annotations.findings import Findings
from isnet_jax.annotations.model import Annotations, Item
from isnet_jax.datasets import decoding
from isnet_jax.errors import UserError, translating_disk_and_memory_errors
from isnet_jax.labels import IGNORED
from isnet_jax.runtime import files, interrupts, limits
from isnet_jax.runtime.console import aligned, say, warn
from isnet_jax.runtime.threads import map_in_order

READERS = {"coco": coco.read, "labelme": labelme.read, "cvat": cvat.read}


class _Checked(NamedTuple):
    """An item whose image fits its annotations, and the files to write."""

    item: Item
    fit: images.Fit
    image_file: Path
    label_file: Path


class _Totals:
    """Sums over the images of a split."""

    def __init__(self, num_classes: int):
        self.num_images = 0
        self.objects: Counter[int] = Counter()
        self.images_with_class = np.zeros(num_classes, np.int64)
        self.pixels = np.zeros(256, np.int64)
        self.num_contested = 0

    def add(self, drawn: drawing.Drawing) -> None:
        """Counts an image."""
        pixels = np.bincount(drawn.label.ravel(), minlength=256)
        self.num_images += 1
        self.objects += drawn.objects
        self.images_with_class += pixels[: len(self.images_with_class)] > 0
        self.pixels += pixels
        self.num_contested += drawn.num_contested

    def table(self, split: str, classes: Sequence[str]) -> str:
        """An aligned text table of the classes."""
        labelled, total = max(1, self.pixels[:IGNORED].sum()), max(1, self.pixels.sum())
        rows = [["  id  class", "objects", "images", "share %"]]
        for i, name in enumerate(classes):
            objects = str(self.objects[i]) if i or self.objects[i] else "-"
            share = f"{100 * self.pixels[i] / labelled:.2f}"
            rows.append([f"{i:4d}  {name}", objects, str(self.images_with_class[i]), share])
        ignored = f"{100 * self.pixels[IGNORED] / total:.2f} % of the pixels ignored"
        return f"{split}: {self.num_images} images, {ignored}; of the others\n{aligned(rows)}"


def convert(kind: str, source: str, output: str) -> None:
    """Writes OUTPUT/labels/SPLIT/NAME.png, links OUTPUT/images/SPLIT/NAME.EXT and OUTPUT/config.py.

    kind: one of READERS; source: the folder of annotations and images, which stays as it is. Equal annotations give
    equal files, and those of an earlier, perhaps interrupted, run are replaced one by one; config.py is the last.
    Prints a table of the classes. Raises UserError for annotations that cannot be used.
    """
    source_folder, output_folder = (Path(path).expanduser().resolve() for path in (source, output))
    if not source_folder.is_dir():
        raise UserError(f"The source {source_folder} is not a folder: give the one that holds annotations and images.")
    writing.check_output(source_folder, output_folder)
    interrupts.install("from the first image")
    findings = Findings()
    try:
        annotations = READERS[kind](source_folder, findings)
        splits = check_images(annotations, findings)
        findings.require_none(source_folder)
    finally:
        findings.report()
    writing.check_foreign_files(
        output_folder, {file for items in splits.values() for _, _, *pair in items for file in pair}
    )
    with translating_disk_and_memory_errors(f"Writing {output_folder}", "--output", "from the first image", ""):
        text = _config_text(kind, annotations, splits, output_folder)
        _set_config_aside(output_folder / "config.py", text)
        totals = _write(annotations, splits, output_folder, findings)
        findings.require_none(source_folder)
        with files.atomic_write(output_folder / "config.py") as partial:
            partial.write_bytes(text.encode())
    _report(annotations, totals, output)


def check_images(annotations: Annotations, findings: Findings) -> dict[str, list[_Checked]]:
    """The items of each split whose images fit their annotations; the others are problems.

    Raises UserError for a split without images, and if no object can be drawn.
    """
    headers = _read_headers(annotations)
    told = {images.tells(header, item.size) for item, header in headers if not isinstance(header, str)} - {None}
    if len(told) == 2:
        findings.problems.add(
            "sets in which some images were annotated as EXIF turns them, and others as they are stored: save them "
            "turned, without EXIF (mogrify -auto-orient), where annotations fit them so. In splits",
            ", ".join(annotations.splits),
        )
    is_upright = told == {True} if len(told) == 1 else annotations.is_upright
    checked: dict[str, list[_Checked]] = {}
    upcoming = iter(headers)
    for split, items in annotations.splits.items():
        checked[split], seen = [], set()
        for name, (item, header) in zip(writing.file_names(item.name for item in items), upcoming):
            fit = header if isinstance(header, str) else _fit(item, header, is_upright)
            if isinstance(header, str) or isinstance(fit, str):
                findings.problems.add(str(fit), item.name)
                continue
            if item.image in seen:
                findings.problems.add(f"images of {split} that are annotated twice", item.name)
            seen |= {item.image} - {None}
            image_place, label_place = writing.places(split)
            image_file = Path(image_place, name + _suffix(item, header))
            checked[split].append(_Checked(item, fit, image_file, Path(label_place, f"{name}.png")))
        if not items:
            findings.problems.add("splits without an image on disk", split)
    if not any(item.objects for items in annotations.splits.values() for item in items):
        findings.problems.add("annotations without an object that can be drawn, in splits", ", ".join(checked))
    return checked


def _read_headers(annotations: Annotations) -> list[tuple[Item, images.Header | str]]:
    """All items in their order, with the header of the image, or the kind of problem with it."""

    def read(item: Item) -> images.Header | str:
        try:
            return images.read_header(item.image or labelme.embedded_image(item.annotation))
        except images.ImageError as error:
            return str(error)

    items = [item for items in annotations.splits.values() for item in items]
    bar = tqdm.tqdm(map_in_order(read, items), "checking images", len(items), unit=" images", disable=None)
    return list(zip(items, bar))


def _fit(item: Item, header: images.Header, is_upright: bool) -> images.Fit | str:
    try:
        return images.fit(header, item.size, is_upright)
    except images.ImageError as error:
        return str(error)


def _suffix(item: Item, header: images.Header) -> str:
    suffix = item.image.suffix if item.image else ""
    return suffix if suffix.lower() in decoding.SUFFIXES else header.suffix


def draw(checked: _Checked) -> drawing.Drawing | str:
    """The drawing of an item, or the kind of problem with it."""
    try:
        return drawing.draw(checked.item.objects, *checked.fit.size)
    except drawing.ShapeError as error:
        return str(error)


def _write(
    annotations: Annotations, splits: dict[str, list[_Checked]], output: Path, findings: Findings
) -> dict[str, _Totals]:
    """Writes labels and images; shapes that cannot be drawn are problems."""
    for split in splits:
        for place in writing.places(split):
            files.require_inside(output, output / place)
            (output / place).mkdir(parents=True, exist_ok=True)

    def write(checked: _Checked) -> drawing.Drawing | str:
        drawn = draw(checked)
        if not isinstance(drawn, str):
            writing.write_label(output / checked.label_file, drawn.label, annotations.palette)
            image = checked.item.image or labelme.embedded_image(checked.item.annotation)
            writing.write_image(output / checked.image_file, image)
        return drawn

    totals = {split: _Totals(len(annotations.classes)) for split in splits}
    with tqdm.tqdm(total=sum(map(len, splits.values())), desc="drawing", unit=" images", disable=None) as bar:
        for split, items in splits.items():
            drawings = map_in_order(
                write, items, lambda item: item.fit.size[0] * item.fit.size[1], 2 * limits.MAX_PIXELS
            )
            for checked, drawn in zip(items, drawings):
                bar.update()
                if isinstance(drawn, str):
                    findings.problems.add(drawn, checked.item.name)
                else:
                    totals[split].add(drawn)
    return totals


def _config_text(kind: str, annotations: Annotations, splits: dict[str, list[_Checked]], output: Path) -> str:
    fits = [checked.fit for items in splits.values() for checked in items]
    height, width = np.median([fit.size for fit in fits], axis=0).astype(int).tolist()
    exif = all(fit.is_turned is not False for fit in fits)
    return writing.config_text(
        kind, output.name, annotations.classes, annotations.palette, list(splits), (height, width), exif
    )


def _set_config_aside(path: Path, text: str) -> None:
    """Renames a config of other content before labels are replaced, which may mean other classes then."""
    if path.is_file() and path.read_bytes() != text.encode():
        path.replace(path.with_name("config.previous.py"))
        warn("note: config.py had other content, which is config.previous.py now")


def _report(annotations: Annotations, totals: dict[str, _Totals], output: str) -> None:
    """Prints the tables, what they mean and the next command."""
    for split, total in totals.items():
        say(total.table(split, annotations.classes) + "\n")
    for line in _remarks(annotations, totals):
        say(line)
    config = Path(output, "config.py")
    command = ["python", "-m", "isnet_jax.prepare", f"--config={config}", f"--config.data.source={output}"]
    say(f"prepare with: {shlex.join(command)}")


def _remarks(annotations: Annotations, totals: dict[str, _Totals]) -> Iterator[str]:
    yield f"Class 0, {annotations.classes[0]}, is every pixel that no object covers."
    contested = sum(total.num_contested for total in totals.values())
    if contested:
        share = 100 * contested / sum(total.pixels.sum() for total in totals.values())
        yield f"Objects of different classes overlap in {share:.2g} % of the pixels: {annotations.order}."
    if len(totals) == 1:
        (split,) = totals
        shares = {"train": (*writing.places(split), 0.9), "val": (*writing.places(split), 0.1)}
        yield (
            f"There is one split, {split}: config.py trains and evaluates on the same images. To hold out a tenth "
            f"of them, write in place of its lines of splits, train_split and eval_split: "
            f"c.data.folder.splits = {shares!r}"
        )
