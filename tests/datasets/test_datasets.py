"""The data sets: what a record holds, what is refused and in which words, and how hard the scenes are."""

import contextlib
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT, SHARED
from PIL import Image

from isnet_jax import datasets
from isnet_jax.errors import UserError

CAMVID = SHARED / "data/camvid"
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest forgets ours
SPLITS = "train", "val", "test"


def decode(data):
    return np.array(Image.open(io.BytesIO(data)))


def records(builder, split):
    from isnet_jax.datasets import common

    return builder.as_data_source(split, decoders=common.ENCODED)


def write_label(path, index, depth=8):
    """Writes a palette PNG whose colours say nothing about its indices."""
    label = Image.fromarray(index.astype(np.uint8)).convert("L")
    label.putpalette([(37 * i) % 256 for i in range(768)])  # 'L' becomes 'P', the indices stay
    label.save(path, bits=depth)


@pytest.fixture
def tree(tmp_path):
    """A CamVid tree with one pair a split, of 20 x 30: a JPEG in colour, a grey JPEG, a PNG."""
    rng = np.random.default_rng(0)
    for split, mode, suffix in zip(SPLITS, ("RGB", "L", "RGB"), (".jpg", ".JPG", ".png")):
        (tmp_path / "tree" / split / "images").mkdir(parents=True)
        (tmp_path / "tree" / split / "labels").mkdir()
        image = Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).convert(mode)
        image.save(tmp_path / "tree" / split / f"images/a{suffix}")
        write_label(tmp_path / "tree" / split / "labels/a.png", np.arange(600).reshape(20, 30) % 12)
    return tmp_path / "tree"


def refusal(tree, *parts):
    """Prepares the tree, expects a UserError and, in it or in what is told, these parts; then all of it again.

    Returns the lines that tell of problems.
    """
    data_dir = tree.parent / "data"
    texts = []
    for _ in range(2):
        with contextlib.redirect_stderr(io.StringIO()) as told, pytest.raises(UserError) as error:
            datasets.load("camvid", data_dir, tree)
        assert "\n" not in str(error.value)
        assert not (data_dir / "camvid/1.0.0").exists() and not list(data_dir.glob("camvid/incomplete*"))
        problems = [line for line in told.getvalue().splitlines() if line.startswith("problem: ")]
        texts.append([*problems, str(error.value)])
    assert texts[0] == texts[1]
    for part in parts:
        assert str(part) in "\n".join(texts[0]), texts[0]
    return texts[0][:-1]


def test_camvid_records(tree, capfd):
    builder = datasets.load("camvid", tree.parent / "data", tree)
    out, err = capfd.readouterr()  # no progress bar where standard error is no terminal
    assert not out and err.splitlines() == [
        f"warning: The split {split} has 1 images where the official one has {count}."
        for split, count in builder.COUNTS.items()
    ] + [
        f"note: 1 of 1 labels of {split} are palette PNGs: their indices are taken, not their colours."
        for split in SPLITS
    ]
    for split, file in zip(SPLITS, ("a.jpg", "a.JPG", "a.png")):
        source = records(builder, split)
        assert len(source) == 1
        record = source[0]
        assert record["image"] == (tree / split / "images" / file).read_bytes()
        label = decode(record["label"])
        expected = np.arange(600).reshape(20, 30) % 12
        np.testing.assert_array_equal(label, np.where(expected == 11, 255, expected))
        assert label.dtype == np.uint8
        assert (record["height"], record["width"], record["name"]) == (20, 30, b"a")
    metadata = builder.info.metadata
    assert metadata["source"] == str(tree) and len(metadata["names"]) == len(metadata["palette"]) == 11
    assert [list(example) for example in metadata["examples"]["val"]] == [["a", 20, 30]]
    assert builder.info.citation and builder.info.homepage and builder.info.description


def test_prepared_is_opened_without_source(tree, monkeypatch):
    data_dir = tree.parent / "data"
    datasets.load("camvid", data_dir, tree)
    again = datasets.load("camvid", data_dir, f"{tree}/../tree/")  # the same folder, spelt otherwise
    assert len(records(again, "val")) == 1
    opened = datasets.load("camvid", data_dir)
    assert opened.info.metadata["source"] == str(tree)
    assert pickle.loads(pickle.dumps(records(opened, "val")))[0]["name"] == b"a"  # as worker processes need it


def test_real_camvid(tmp_path):
    if not CAMVID.exists():
        pytest.skip(f"the real CamVid is not at {CAMVID}")
    counts = [len(list((CAMVID / split / "labels").iterdir())) for split in SPLITS]
    assert counts == [367, 101, 233]
    for split in SPLITS:
        for kind in "images", "labels":
            (tmp_path / "few" / split / kind).mkdir(parents=True)
            for path in sorted((CAMVID / split / kind).iterdir())[:3]:
                (tmp_path / "few" / split / kind / path.name).symlink_to(path)
    builder = datasets.load("camvid", tmp_path / "data", tmp_path / "few")
    for record in records(builder, "train"):
        name = record["name"].decode()
        index = np.array(Image.open(CAMVID / f"train/labels/{name}.png"))
        np.testing.assert_array_equal(decode(record["label"]), np.where(index == 11, 255, index))
        assert record["image"] == (CAMVID / f"train/images/{name}.jpg").read_bytes()


def test_label_bit_depths(tree):
    from isnet_jax.datasets import image_files

    index = np.arange(600).reshape(20, 30) % 12
    write_label(tree / "p4.png", index, depth=4)
    Image.fromarray(index.astype(np.uint16)).save(tree / "l16.png")
    for file in "p4.png", "l16.png":
        np.testing.assert_array_equal(image_files.read_index_label(tree / file), index)
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tree / "l1.png"), (index % 2).astype(np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1])
    np.testing.assert_array_equal(image_files.read_index_label(tree / "l1.png"), index % 2)


def test_unknown_name():
    with pytest.raises(UserError, match="'camvit'.*camvid, scenes"):
        datasets.load("camvit")


def test_not_prepared_and_no_source(tmp_path):
    with pytest.raises(UserError, match="config.data.source=DIR"):
        datasets.load("camvid", tmp_path)


def test_scenes_take_no_source(tmp_path):
    with pytest.raises(UserError, match="needs no source"):
        datasets.load("scenes", tmp_path, tmp_path)


def test_missing_source(tmp_path):
    refusal(tmp_path / "nowhere", tmp_path / "nowhere", "no folder")


def test_missing_split(tree):
    (tree / "val").rename(tree / "validation")
    refusal(tree, "1 problem,", tree / "val/images is missing")


def test_missing_partner(tree):
    (tree / "train/images/b.jpg").write_bytes((tree / "train/images/a.jpg").read_bytes())
    (tree / "test/labels/c.png").write_bytes((tree / "test/labels/a.png").read_bytes())
    refusal(tree, "2 problems", "train/images/b.jpg has no label b.png", "test/labels/c.png has no image c")


def test_same_name_twice(tree):
    (tree / "train/images/a.png").write_bytes((tree / "test/images/a.png").read_bytes())
    refusal(tree, "1 problem,", "a.png beside it have the same name")


@pytest.mark.parametrize("keep", [0, 10, 0.5, -40])
def test_damaged_files(tree, keep):
    files = tree / "train/images/a.jpg", tree / "val/labels/a.png", tree / "test/images/a.png"
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else keep])
    refusal(tree, "3 problems", *files)


def test_no_image_at_all(tree):
    (tree / "train/images/a.jpg").write_text("hello")
    refusal(tree, "1 problem,", "train/images/a.jpg is no readable JPEG or PNG file")


@pytest.mark.parametrize("side", [10_001, 20_000])  # below and above Pillow's own limit
def test_too_many_pixels(tree, side):
    Image.new("1", (side, side)).save(tree / "train/images/b.png")
    (tree / "train/labels/b.png").write_bytes((tree / "train/labels/a.png").read_bytes())
    refusal(tree, "train/images/b.png has more than 100 megapixels")


def test_sizes_differ(tree):
    write_label(tree / "val/labels/a.png", np.zeros((30, 20)))
    refusal(tree, "val/images/a.JPG is 20 x 30", "val/labels/a.png is 30 x 20")


def test_color_label(tree):
    Image.open(tree / "val/labels/a.png").convert("RGB").save(tree / "val/labels/a.png")
    refusal(tree, "val/labels/a.png is a colour image (RGB)")


def test_jpeg_label(tree):
    Image.new("L", (30, 20)).save(tree / "val/labels/a.png", "JPEG")
    refusal(tree, "val/labels/a.png is no readable PNG file")


def test_deep_image(tree):
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(tree / "test/images/a.png")
    refusal(tree, "test/images/a.png has more than 8 bits a channel")


@pytest.mark.parametrize("value", [12, 255])
def test_label_out_of_range(tree, value):
    index = np.zeros((20, 30))
    index[7, 9] = index[8, 2] = value
    write_label(tree / "test/labels/a.png", index)
    refusal(tree, tree / "test/labels/a.png", f"no labels: {value}, in 2 pixels, the first at row 7, column 9", "0..11")


def test_many_problems_are_all_told(tree):
    for i in range(30):
        (tree / f"val/images/x{i:02d}.png").write_bytes(b"")
        write_label(tree / f"val/labels/x{i:02d}.png", np.zeros((20, 30)))
    lines = refusal(tree, "has 30 problems")
    assert lines == [f"problem: {tree}/val/images/x{i:02d}.png is empty." for i in range(30)]


def test_another_source(tree):
    datasets.load("camvid", tree.parent / "data", tree)
    with pytest.raises(UserError, match=f"from {tree}, but the source is now {tree.parent}"):
        datasets.load("camvid", tree.parent / "data", tree.parent)


def test_damaged_data_set(tree):
    data_dir = tree.parent / "data"
    builder = datasets.load("camvid", data_dir, tree)
    for damage in "camvid-val.array_record*", "dataset_info.json", "*":
        for file in Path(builder.data_dir).glob(damage):
            file.unlink()
        with pytest.raises(UserError, match=f"{data_dir}/camvid.*delete it"):
            datasets.load("camvid", data_dir, tree)


def test_foreign_data_set(tree):
    builder = datasets.load("camvid", tree.parent / "data", tree)
    (Path(builder.data_dir) / "metadata.json").write_text('{"names": ["cat"], "source": "x"}')
    with pytest.raises(UserError, match="other classes"):
        datasets.load("camvid", tree.parent / "data")


def test_unwritable_data_dir(tree):
    (tree.parent / "data").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="data_dir"):
        datasets.load("camvid", tree.parent / "data", tree)


def test_import_is_light():
    code = 'import sys, isnet_jax.datasets; assert not {"tensorflow", "tensorflow_datasets"} & set(sys.modules)'
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The scenes as {split: (images [N, 96, 128, 3], labels [N, 96, 128])}."""
    builder = datasets.load("scenes", tmp_path_factory.mktemp("data"))
    return {
        split: tuple(
            np.stack([decode(record[key]) for record in records(builder, split)]) for key in ("image", "label")
        )
        for split in ("train", "val")
    }


def test_scenes_layout(scenes):
    for split, count in ("train", 360), ("val", 60):
        images, labels = scenes[split]
        assert images.shape == (count, 96, 128, 3) and images.dtype == np.uint8
        assert labels.shape == (count, 96, 128) and labels.max() == 7


def test_scenes_are_deterministic(tmp_path):
    from isnet_jax.datasets.scenes import Scenes

    first, second = Scenes(data_dir=tmp_path), Scenes(data_dir=tmp_path)
    items = first.items()
    for item in items["train"][0], items["train"][359], items["val"][0]:
        assert first.check(item)[:4] == second.check(item)[:4]
    assert first.check(items["train"][0]).image != first.check(items["val"][0]).image


def test_scenes_classes(scenes):
    _, labels = scenes["train"]
    for k in range(8):
        assert (labels == k).any((1, 2)).mean() > 0.2
        assert 0.01 < (labels == k).mean() < 0.45


def test_scenes_need_more_than_color(scenes):
    """A linear classifier of pixels by colour does little better than naming the commonest class everywhere."""

    def features(images):
        pixels = images[:, 1::3, 1::3].reshape(-1, 3) / 255
        return np.concatenate([pixels, pixels**2, np.ones((len(pixels), 1))], 1)

    def miou(predicted, truth):
        return np.mean(
            [
                ((predicted == k) & (truth == k)).sum() / max(((predicted == k) | (truth == k)).sum(), 1)
                for k in range(8)
            ]
        )

    (images, labels), (val_images, val_labels) = scenes["train"], scenes["val"]
    labels, val_labels = (x[:, 1::3, 1::3].ravel() for x in (labels, val_labels))
    weights = np.linalg.lstsq(features(images), np.eye(8)[labels], rcond=None)[0]
    linear = miou((features(val_images) @ weights).argmax(1), val_labels)
    commonest = miou(np.bincount(labels).argmax(), val_labels)
    print(f"mIoU: linear {linear:.3f}, commonest class {commonest:.3f}")
    assert linear < commonest + 0.1 < 0.2
