"""Readers of annotations: COCO's and labelme's JSON, CVAT's XML."""

import json
from random import Random

import annotation_trees as trees
import mutations
import numpy as np
from pycocotools import mask as coco_mask

from isnet_jax.errors import UserError
from readers.base import Reader
from readers.samples import noise

MAX_BYTES = 2**20  # in place of the bounds on files, so that the largest within them are read quickly
SHAPE_TEXTS = ["1,1;2", "nan,1;2,2;3,3", "1e300,1;2,2;3,3", "inf", "-1", "9" * 5000, "0," * 500, "1e9", "", "99999999"]


class CocoFiles(Reader):
    """COCO files, read and drawn."""

    KIND, FILE = "coco", "train.json"
    mutate = staticmethod(mutations.mutate_json)

    def make_seeds(self) -> list[bytes]:
        noise(trees.HEIGHT, trees.WIDTH).save(self.folder / "a.jpg")
        return [json.dumps(content).encode() for content in self.contents()]

    def contents(self) -> list:
        """The content of valid files."""
        mask = coco_mask.encode(np.asfortranarray(trees.filled((1, 5, 5, 9, 9))))
        size = [trees.HEIGHT, trees.WIDTH]
        segmentations = (
            [trees.box(1, 1, 9, 9), trees.box(12, 3, 15, 8)],
            {"size": size, "counts": mask["counts"].decode()},
            {"size": size, "counts": [20, 80, 500]},
            [],
        )
        objects = [trees.annotation(1, category, content) for category, content in zip((1, 3, 1, 3), segmentations)]
        objects[1]["iscrowd"] = 1
        return [trees.coco(["a.jpg"], objects, {1: "cat", 3: "dog"})]

    def read(self, content: bytes) -> None:
        from isnet_jax.annotations import coco, conversion, cvat, labelme
        from isnet_jax.annotations.findings import Findings

        coco.MAX_BYTES = labelme.MAX_BYTES = cvat.MAX_BYTES = MAX_BYTES
        self.write(self.FILE, content)
        findings = Findings()
        annotations = conversion.READERS[self.KIND](self.folder, findings)
        splits = conversion.check_images(annotations, findings)
        findings.require_none(self.folder)
        assert len(annotations.palette) == len(annotations.classes) == len(set(annotations.classes)) <= 255
        for checked in (checked for split in splits.values() for checked in split):
            assert not {"..", ""} & set(checked.label_file.parts) and len(checked.label_file.parts) == 3
            drawn = conversion.draw(checked)
            if isinstance(drawn, str):
                raise UserError(drawn)
            assert drawn.label.shape == checked.fit.size and drawn.label.dtype == np.uint8
            assert set(np.unique(drawn.label)) <= {*range(len(annotations.classes)), 255}


class LabelmeFiles(CocoFiles):
    """labelme's files, with masks and embedded images."""

    KIND, FILE = "labelme", "b.json"  # without an image beside it

    def contents(self) -> list:
        mask = np.tri(4, 5) > 0
        shapes = [
            ("cat", "polygon", [[1, 1], [9, 1], [5, 8]]),
            ("dog", "rectangle", [[12, 3], [15, 8]]),
            ("cat", "circle", [[20, 10], [24, 13]]),
            ("__ignore__", "mask", [[3, 4], [7, 7]]),
            ("dog", "line", [[3, 4], [7, 7]]),
        ]
        content = trees.labelme("a.jpg", shapes)
        content["shapes"][3]["mask"] = trees.base64_png(mask)
        embedded = trees.base64_png(np.ones((trees.HEIGHT, trees.WIDTH)))
        return [content, trees.labelme("gone.jpg", shapes[:2], imageData=embedded)]


class CvatFiles(CocoFiles):
    """CVAT's files."""

    KIND, FILE = "cvat", "annotations.xml"

    def make_seeds(self) -> list[bytes]:
        noise(trees.HEIGHT, trees.WIDTH).save(self.folder / "a.jpg")
        shapes = [
            trees.shape("polygon", "cat", points="1.00,1.00;5.00,1.00;5.00,4.00"),
            trees.shape("box", "dog", 2, xtl=10, ytl=2, xbr=20, ybr=6, rotation=30),
            trees.shape("ellipse", "cat", cx=22, cy=14, rx=6, ry=3),
            trees.shape("mask", "dog", -1, rle="1, 2, 2, 1", left=1, top=10, width=3, height=2),
            trees.shape("polyline", "cat", points="0,0;9,9"),
        ]
        return [trees.cvat({"a.jpg": shapes}, {"cat": "#ff0000", "dog": "#00ff00"}, a="Train").encode()]

    def mutate(self, data: bytes, rng: Random, seeds: list[bytes]) -> bytes:
        if rng.random() < 0.4:
            return mutations.mutate_bytes(data, rng, seeds)
        parts = data.split(b'"')  # the odd ones are values of attributes
        for _ in range(rng.choice([1, 1, 2, 4])):
            value = rng.choice([*SHAPE_TEXTS, *mutations.TEXTS, *map(str, mutations.NUMBERS)])
            parts[2 * rng.randrange(len(parts) // 2) + 1] = value.encode(errors="replace").translate(None, b'"<&')
        return b'"'.join(parts)
