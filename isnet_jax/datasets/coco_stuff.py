"""COCO-Stuff: COCO images labelled with things and stuff, in the first release of 10k images and the full one of 164k.

Both number 182 classes, of which 171 occur: 11 things of COCO have no segmentations.
"""

import io
import struct
import zlib

import numpy as np
import scipy.io

from isnet_jax.datasets import common, files, tables
from isnet_jax.datasets.pairing import find_pairs, locate
from isnet_jax.errors import UserError

NAMES = tables.names("""
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
    umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
    mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
    toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush,
    banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
    ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
    floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other,
    grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin,
    net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock,
    roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
    structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other,
    wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood""")
PALETTE = tables.distinct_colors(range(len(NAMES)))
CITATION = """\
@inproceedings{caesar2018cvpr,
  title     = {{COCO-Stuff}: Thing and stuff classes in context},
  author    = {Caesar, Holger and Uijlings, Jasper and Ferrari, Vittorio},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {1209--1218},
  year      = {2018}
}"""
NUMBERS = 'double', 'single', 'int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64'


class CocoStuff10k(common.FolderBuilder):
    """Label files (.mat, key S) hold 1..182, which become 0..181, and 0 or 255 where unlabelled, which become 255."""

    NAMES, PALETTE, CITATION = NAMES, PALETTE, CITATION
    DESCRIPTION = 'COCO-Stuff 10k v1.1, everyday scenes labelled with things and stuff.'
    HOMEPAGE = 'https://github.com/nightrome/cocostuff10k'
    LAYOUT = 'images/NAME.jpg, annotations/NAME.mat and imageLists/{train,test}.txt'
    TRAIN_IDS = np.r_[common.IGNORED, :182, [-1] * 72, common.IGNORED]
    COUNTS = {'train': 9000, 'test': 1000}

    def pairs(self, source):
        return {split: find_pairs(source, 'images', 'annotations', self.problems, f'imageLists/{split}.txt', ('.mat',))
                for split in self.COUNTS}

    def read_label(self, path):
        return read_mat(path, 'S')


class CocoStuff164k(common.FolderBuilder):
    """Label files (stuffthingmaps) hold 0..181, and 255 where unlabelled."""

    NAMES, PALETTE, CITATION = NAMES, PALETTE, CITATION
    DESCRIPTION = 'COCO-Stuff 164k, the training and validation images of COCO 2017 labelled with things and stuff.'
    HOMEPAGE = 'https://github.com/nightrome/cocostuff'
    LAYOUT = '{images,annotations}/{train2017,val2017}/NAME.{jpg,png}'
    TRAIN_IDS = np.r_[:182, [-1] * 73, common.IGNORED]
    COUNTS = {'train': 118287, 'val': 5000}

    def pairs(self, source):
        pairs = {}
        for split in self.COUNTS:
            folder = f'{split}2017'
            pairs[split] = find_pairs(
                source, locate(source, f'images/{folder}', folder),
                locate(source, f'annotations/{folder}', f'stuffthingmaps/{folder}',
                       f'stuffthingmaps_trainval2017/{folder}'), self.problems)
        return pairs


def read_mat(path, key):
    """Reads a matrix of whole numbers from a MATLAB file of version 4 to 7.

    Args:
      path: Path.
      key: the variable's name.

    Returns:
      Integers [height, width].

    Raises:
      UserError: the file cannot be read, or has no such matrix, or one of more than files.MAX_PIXELS.
    """
    try:
        data = _inflated(path.read_bytes())
        variables = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(io.BytesIO(data))}  # headers only
        shape, kind = variables.get(key, ((), None))
        if kind not in NUMBERS or len(shape) != 2 or not all(shape):
            raise UserError(f'{path} holds no matrix {key} of numbers, height x width.')
        if shape[0] * shape[1] > files.MAX_PIXELS:
            raise OverflowError
        matrix = scipy.io.loadmat(io.BytesIO(data), variable_names=[key])[key]
    except UserError:
        raise
    except OverflowError:
        raise UserError(f'{path} has more than {files.MAX_PIXELS // 10**6} megapixels, the most accepted.') from None
    except Exception as error:  # scipy raises a wide mix on damaged files, zlib.error and TypeError among them
        raise UserError(f'{path} is damaged or unreadable ({error}).') from None
    if matrix.dtype.kind == 'f' and (matrix == matrix.round()).all() and (abs(matrix) < 2**31).all():
        matrix = matrix.astype(np.int32)
    if matrix.dtype.kind not in 'iu':
        raise UserError(f'{path} holds numbers in {key} that are not whole.')
    return np.ascontiguousarray(matrix)  # it comes in columns


def _inflated(data):
    """Returns a MATLAB file without compression, which scipy would undo without limit; raises OverflowError."""
    order = {b'IM': '<', b'MI': '>'}.get(data[126:128])
    if not order:
        return data  # version 4 knows no compression
    parts, at, left = [data[:128]], 128, 8 * files.MAX_PIXELS
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f'{order}II', data, at)
        part = data[at:at + 8 + size]
        if kind == 15:  # miCOMPRESSED
            inflater = zlib.decompressobj()
            part = inflater.decompress(part[8:], left)
            left -= len(part)
            if left <= 0:
                raise OverflowError
        parts.append(part)
        at += 8 + size
    return b''.join(parts)
