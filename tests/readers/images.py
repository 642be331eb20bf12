"""Readers of images and labels."""

import functools
import io
from random import Random

import mutations
import numpy as np
from PIL import Image

from readers.base import Reader, Refused
from readers.samples import jpegs, others, pngs, tiffs, webps_and_bmps


class Photographs(Reader):
    """The images that isnet_jax.predict reads."""

    mutate = staticmethod(mutations.mutate_image)

    def make_seeds(self) -> list[bytes]:
        return [*jpegs(), *pngs(), *webps_and_bmps(), *list(tiffs())[:6], *others()]

    def read(self, content: bytes) -> None:
        from isnet_jax.datasets import decoding

        path = self.write("photo.jpg", content)
        header = decoding.read_header(path)
        pixels = decoding.decode(path, header)
        assert pixels.shape == (*header.size, 3) and pixels.dtype == np.uint8


class DataImages(Reader):
    """Image files of a data set being prepared."""

    mutate = staticmethod(mutations.mutate_image)

    def make_seeds(self) -> list[bytes]:
        return [*jpegs(), *pngs(), *webps_and_bmps(), *list(tiffs())[:6], *others()]

    def read(self, content: bytes) -> None:
        from isnet_jax.datasets import image_files

        path = self.write("image.png", content)
        size, orientation, *_ = image_files.check_image(path)
        assert len(size) == 2 and min(size) > 0 and isinstance(orientation, int)
        record = image_files.record_image(path, upright=False)
        assert image_files.decode_image(record).shape == (*size, 3)  # what is accepted can be decoded in training


class DataLabels(Reader):
    """Label files of a data set being prepared."""

    mutate = staticmethod(mutations.mutate_image)

    def make_seeds(self) -> list[bytes]:
        return [*list(pngs())[2:], *list(tiffs())[:6], *list(webps_and_bmps())[3:]]

    def read(self, content: bytes) -> None:
        from isnet_jax.datasets import image_files, label_files, label_values

        path = self.write("label.png", content)
        label = label_files.read_label(path)
        assert label.shape == label_files.label_size(path)
        table, colors = np.r_[np.arange(250) % 200, [-1] * 5, 255], {color: color % 7 for color in range(0, 2**24, 999)}
        label_values.evidence(label, table, colors)
        if label.palette is not None:
            assert label_values.used_palette(label) is not None
        if label.values is None:
            raise Refused("it is a colour image")
        ids = label_values.values_to_ids(label.values, table, path)
        assert image_files.count_ids(ids, 200).sum() == ids.size
        assert np.array_equal(image_files.decode_label(image_files.encode_label(ids)), ids)


class Records(Reader):
    """Images and labels of prepared data: (image, label, index), decoded as in training and in evaluation."""

    def make_seeds(self) -> list[bytes]:
        from isnet_jax import config

        self.config = config.default().augment
        self.config.update(resize=(64, 40), crop_size=(32, 40), rotate_probability=0.5)
        return [*list(jpegs())[:4], *pngs()]

    @staticmethod
    @functools.cache
    def label(size: tuple[int, int]) -> bytes:
        """A valid label of (height, width)."""
        from isnet_jax.datasets import image_files

        return image_files.encode_label(np.arange(size[0] * size[1]).reshape(size).astype(np.uint8) % 9)

    def valid_inputs(self) -> list[tuple[bytes, bytes, int]]:
        return [(self.seeds[0], self.label((22, 29)), 0)]

    def mutant(self, rng: Random) -> tuple[bytes, bytes, int]:
        image = rng.choice(self.seeds)
        label = self.label(Image.open(io.BytesIO(image)).size[::-1])
        damaged = rng.randrange(3)  # 0: the image; 1: the label; 2: both
        return (
            mutations.mutate_image(image, rng, self.seeds) if damaged != 1 else image,
            mutations.mutate_image(label, rng, [label]) if damaged else label,
            rng.randrange(100),
        )

    def read(self, content: tuple[bytes, bytes, int]) -> None:
        from isnet_jax.input import augment, records

        image_data, label_data, index = content
        image, label = np.zeros((32, 40, 3), np.uint8), np.full((32, 40), 255, np.uint8)
        with records.Records([{}]).decoding(0):
            augment.augment(image_data, label_data, (0, 0, index), self.config, image, label)
        with records.Records([{}]).decoding(0):
            augment.decode_image(image_data), augment.decode_label(label_data)
            augment.decode_image(image_data, upright=True)
