"""Every reader of images and labels, each with sound files to start from: what test_fuzz.py damages."""

import functools
import io

import mutations
import numpy as np
from PIL import Image

from isnet_jax.errors import UserError


class Refused(UserError):
    """Raised here where a reader reports what is wrong in another way than by UserError."""


class Reader:
    """A kind of file. Made in an empty folder; `sound` and `mutant` give what `read` takes."""

    runs = ()  # files of Python that it runs by design

    def __init__(self, folder):
        self.folder = folder
        self.seeds = self.make_seeds()

    def sound(self):
        return self.seeds

    def mutant(self, rng):
        return self.change(rng.choice(self.seeds), rng, self.seeds)

    def put(self, name, content):
        (self.folder / name).write_bytes(content)
        return self.folder / name


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3)).repeat(4, 0).repeat(4, 1)[:height, :width]
    return Image.fromarray(np.clip(coarse + rng.integers(-9, 9, coarse.shape), 0, 255).astype(np.uint8))


def encoded(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def bmp_in_runs():
    """An 8-bit BMP in run lengths: runs, literals, ends of lines and a jump."""
    data = b"".join(b"\x05\x01\x00\x04\x02\x03\x04\x05\x00\x00" for _ in range(8)) + b"\0\2\3\1\x04\x07\0\1"
    head = encoded(noise(10, 12).convert("P"), "BMP")
    start = int.from_bytes(head[10:14], "little")
    return head[:30] + b"\1\0\0\0" + len(data).to_bytes(4, "little") + head[38:start] + data


def jpegs():
    photo, exif = noise(22, 29), Image.Exif()
    exif[274], exif[271] = 6, "maker"
    yield encoded(photo, "JPEG", quality=90, exif=exif, icc_profile=bytes(300), comment=b"hello")
    yield encoded(photo, "JPEG", progressive=True, subsampling=0)
    yield encoded(photo.convert("L"), "JPEG", restart_marker_blocks=1)
    yield encoded(photo.convert("CMYK"), "JPEG")
    yield encoded(photo, "MPO", save_all=True, append_images=[noise(22, 29, 1)])


def pngs():
    from PIL import PngImagePlugin

    photo, exif, info = noise(13, 18), Image.Exif(), PngImagePlugin.PngInfo()
    exif[274] = 3
    info.add_text("a", "b" * 50, zip=True)
    info.add_itxt("c", "d" * 50, zip=True)
    whole = encoded(photo, "PNG", exif=exif, pnginfo=info, icc_profile=bytes(300), dpi=(72, 72))
    parts = mutations.png_parts(whole)
    yield whole
    yield mutations.png(
        [part for part in parts if part[0] != b"eXIf"][:-1] + [(b"eXIf", bytes(exif.tobytes())), parts[-1]]
    )
    yield encoded(photo.convert("P"), "PNG", transparency=3)
    yield encoded(photo.convert("L"), "PNG")
    yield encoded(photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=4), "PNG", bits=2)
    yield encoded(photo.convert("1"), "PNG")
    yield encoded(photo.convert("RGBA"), "PNG")
    yield encoded(Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 250), "PNG")
    yield encoded(photo, "PNG", save_all=True, append_images=[noise(13, 18, 1)])


def others():
    photo = noise(17, 23)
    yield encoded(photo, "WEBP", exif=Image.Exif(), icc_profile=bytes(30), xmp=b'tiff:Orientation="6"')
    yield encoded(photo.convert("RGBA"), "WEBP", lossless=True)
    yield encoded(photo, "WEBP", save_all=True, append_images=[noise(17, 23, 1)])
    yield encoded(photo, "BMP")
    yield encoded(photo.convert("P"), "BMP")
    yield encoded(photo.convert("1"), "BMP")
    yield bmp_in_runs()


class Photographs(Reader):
    """What isnet_jax.predict reads."""

    change = staticmethod(mutations.image)

    def make_seeds(self):
        return [*jpegs(), *pngs(), *others()]

    def read(self, content):
        from isnet_jax import decoding

        path = self.put("photo.jpg", content)
        header = decoding.read_header(path)
        pixels = decoding.decode(path, header)
        assert pixels.shape == (*header.size, 3) and pixels.dtype == np.uint8


class DataImages(Reader):
    """Image files of a data set that is prepared."""

    change = staticmethod(mutations.image)

    def make_seeds(self):
        return [*jpegs(), *pngs()]

    def read(self, content):
        from isnet_jax.datasets import files

        size, orientation, errors = files.check_image(self.put("image.png", content))
        assert len(size) == 2 and min(size) > 0 and isinstance(orientation, int)
        if errors:
            raise Refused(" ".join(errors))
        if "16" not in errors:
            assert files.decode_image(content).shape == (*size, 3)  # what is accepted can be decoded in training


class DataLabels(Reader):
    """Label files of a data set that is prepared."""

    change = staticmethod(mutations.image)

    def make_seeds(self):
        return [*list(pngs())[2:]]

    def read(self, content):
        from isnet_jax.datasets import files

        path = self.put("label.png", content)
        size = files.label_size(path)
        assert files.is_palette(path) in (True, False)
        label = files.read_index_label(path)
        assert label.shape == size
        ids = files.to_train_ids(label, np.r_[np.arange(250) % 200, [-1] * 5, 255], path)
        assert files.count_ids(ids, 200).sum() == ids.size
        assert np.array_equal(files.decode_label(files.encode_label(ids)), ids)


class Records(Reader):
    """Images and labels of prepared data, decoded as in training and in evaluation."""

    def make_seeds(self):
        from isnet_jax import config

        self.config = config.default().augment
        self.config.update(resize=(64, 40), crop_size=(32, 40), rotate_probability=0.5)
        return [*list(jpegs())[:4], *pngs()]

    @staticmethod
    @functools.cache
    def label(size):
        from isnet_jax.datasets import files

        return files.encode_label(np.arange(size[0] * size[1]).reshape(size).astype(np.uint8) % 9)

    def sound(self):
        return [(self.seeds[0], self.label((22, 29)), 0)]

    def mutant(self, rng):
        content = rng.choice(self.seeds)
        label = self.label(Image.open(io.BytesIO(content)).size[::-1])
        what = rng.randrange(3)
        return (
            mutations.image(content, rng, self.seeds) if what != 1 else content,
            mutations.image(label, rng, [label]) if what else label,
            rng.randrange(100),
        )

    def read(self, content):
        from isnet_jax import augment, records

        image_data, label_data, index = content
        image, label = np.zeros((32, 40, 3), np.uint8), np.full((32, 40), 255, np.uint8)
        with records.Records([{}]).decoding(0):
            augment.augment(image_data, label_data, (0, 0, index), self.config, image, label)
        with records.Records([{}]).decoding(0):
            augment.decode_image(image_data), augment.decode_label(label_data)


class Matrices(Reader):
    """MATLAB files, in which COCO-Stuff 10k has its labels."""

    def make_seeds(self):
        import scipy.io

        content, seeds = (
            {"S": np.arange(30).reshape(5, 6).astype(np.uint8), "names": np.array(["a"], object), "captions": "abc"},
            [],
        )
        for options in {}, {"do_compression": True}, {"format": "4"}:
            stream = io.BytesIO()
            scipy.io.savemat(stream, {"S": content["S"]} if "format" in options else content, **options)
            seeds.append(stream.getvalue())
        return seeds

    @staticmethod
    def change(data, rng, seeds):
        import zlib

        if data[128:132] == b"\x0f\0\0\0" and rng.random() < 0.7:  # compressed: change what is inside
            inside = mutations.damaged(zlib.decompress(data[136:]), rng)
            packed = zlib.compress(inside)
            return data[:132] + len(packed).to_bytes(4, "little") + packed
        return mutations.damaged(data, rng, seeds)

    def read(self, content):
        from isnet_jax.datasets import mat

        matrix = mat.read_mat(self.put("label.mat", content), "S")
        assert matrix.ndim == 2 and matrix.dtype.kind in "iu"
