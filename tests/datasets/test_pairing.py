"""Pairs of image and label files, by patterns."""

import unicodedata

import pytest
from data_sets import write_uniform


def find_pairs(tree, images, labels, list_file=None):
    """(pairs, findings)."""
    from isnet_jax.datasets import pairing

    findings = pairing.Findings()
    return pairing.find_pairs(tree, images, labels, findings, list_file), findings


def names(pairs):
    return [pair.name for pair in pairs]


def test_find_pairs_matches_the_stars_of_both_patterns(tmp_path):
    tree = tmp_path / "a [*] tree"  # the path of the tree is not part of the pattern
    write_uniform(
        tree,
        ["x/1/left_a.b.jpg", "x/2/left_a.b.jpg", "x/2/.left_c.jpg", "x/right_d.jpg", "x/2/left_e.JPEG"],
        ["y/1/a.b_id.png", "y/2/a.b_id.png", "y/2/e_id.png", "y/2/a.b_color.png"],
    )
    pairs, findings = find_pairs(tree, "x/*/left_*", "y/*/*_id.png")
    assert not findings.problems and not findings.warnings
    assert [
        (pair.name, pair.image.relative_to(tree).as_posix(), pair.label.relative_to(tree).as_posix()) for pair in pairs
    ] == [
        ("1_a.b", "x/1/left_a.b.jpg", "y/1/a.b_id.png"),  # a.b alone would be the name of two
        ("2_a.b", "x/2/left_a.b.jpg", "y/2/a.b_id.png"),
        ("2_e", "x/2/left_e.JPEG", "y/2/e_id.png"),
    ]
    (tree / "y/1/a.b_id.png").unlink()
    pairs, findings = find_pairs(tree, "x/*/left_*", "y/*/*_id.png")
    assert names(pairs) == ["a.b", "e"]
    assert list(map(str, findings.problems)) == [f"{tree}/x/1/left_a.b.jpg has no label a.b_id.png in {tree}/y/1."]


def test_find_pairs_takes_special_characters_literally(tmp_path):
    write_uniform(tmp_path, ["i[1]/a+.jpg"], ["l(1)/a+.png"])
    for images, labels in (("i[1]", "l(1)/"), ("i[1]/*+.jpg", "l(1)/*+.png"), (str(tmp_path / "i[1]"), "l(1)/*")):
        pairs, findings = find_pairs(tmp_path, images, labels)
        assert len(pairs) == 1 and not findings.problems


def test_find_pairs_reports_a_list_file_that_is_not_text(tmp_path):
    write_uniform(tmp_path, ["i/a.jpg"], ["l/a.png"])
    pairs, findings = find_pairs(tmp_path, "i", "l", list_file="i/a.jpg")
    assert not pairs and findings.problems == [f"{tmp_path}/i/a.jpg is not a text file in UTF-8: save it as one."]


@pytest.mark.parametrize(
    "images, labels",
    [("i/**/*.jpg", "l/**/*.png"), ("i/**", "l/**"), ("i/**/*", "l/**/*.png")],
)
def test_two_stars_match_folders_of_any_depth(tmp_path, images, labels):
    places = ["a", "s/b", "s/t/c", "t/b"]
    write_uniform(tmp_path, [f"i/{place}.jpg" for place in places], [f"l/{place}.png" for place in places])
    pairs, findings = find_pairs(tmp_path, images, labels)
    assert not findings.problems and names(pairs) == ["a", "s_b", "s_t_c", "t_b"]
    (tmp_path / "l/s/t/c.png").unlink()
    _, findings = find_pairs(tmp_path, images, labels)
    assert "i/s/t/c.jpg has no label c.png in" in str(findings.problems[0]) and "l/s/t" in str(findings.problems[0])


def test_images_that_a_pattern_does_not_match_are_counted(tmp_path):
    write_uniform(tmp_path, ["i/a.jpg", "i/b.png", "i/c.BMP", "i/notes.txt.jpg"], ["l/a.png"])
    pairs, findings = find_pairs(tmp_path, "i/a*.jpg", "l/a*.png")
    assert not pairs and "There is no file" in findings.problems[0]
    pairs, findings = find_pairs(tmp_path, "i/*.jpg", "l/*.png")
    assert names(pairs) == ["a"] and "2 images in" in findings.notes[0] and "b.png, c.BMP" in findings.notes[0]


def test_links_to_folders_are_followed_once(tmp_path):
    write_uniform(tmp_path, ["real/a.jpg"], ["l/inner/a.png"])
    (tmp_path / "i").mkdir()
    (tmp_path / "i/inner").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "real")
    (tmp_path / "i/up").symlink_to(tmp_path / "i")
    (tmp_path / "i/zz").symlink_to(tmp_path / "real")
    pairs, findings = find_pairs(tmp_path, "i/**/*.jpg", "l/**/*.png")
    assert names(pairs) == ["a"] and not findings.problems


def test_deeper_images_are_counted(tmp_path):
    write_uniform(tmp_path, ["i/a.jpg", "i/s/b.jpg", "i/s/t/c.jpg", "i/s/.d.jpg"], ["l/a.png"])
    pairs, findings = find_pairs(tmp_path, "i", "l")
    assert names(pairs) == ["a"] and not findings.problems
    (warning,) = findings.warnings
    assert warning.startswith(f"2 images lie in deeper folders of {tmp_path}/i than i reaches") and "s/b.jpg" in warning


@pytest.mark.parametrize(
    "images, labels, files, expected",
    [
        ("d/*.png", "d/*_mask.png", ["a.png", "a_mask.png", "b.png", "b_mask.png"], ["a", "b"]),
        ("d", "d", ["a.jpg", "a.png", "b.jpg", "b.png"], ["a", "b"]),
        ("d/*.jpg", "d/*.png", ["a.jpg", "a.png"], ["a"]),
        ("d/*_image.png", "d/*.png", ["a_image.png", "a.png"], ["a"]),
        ("d/im_*", "d/gt_*", ["im_a.png", "gt_a.png"], ["a"]),
    ],
)
def test_masks_beside_images(tmp_path, images, labels, files, expected):
    write_uniform(tmp_path, [f"d/{file}" for file in files])
    pairs, findings = find_pairs(tmp_path, images, labels)
    assert not findings.problems and names(pairs) == expected
    assert all(pair.image != pair.label for pair in pairs)


@pytest.mark.parametrize(
    "text",
    [
        "a\nc\n",
        "\ufeffa\r\n\r\nc\r\n",  # as Windows writes it
        "a.jpg\nc.jpg\n",
        "i/a.jpg\n./i/c.jpg",
        "i/a.jpg l/a.png\ni/c.jpg l/c.png\n",  # as PaddleSeg writes it
        "a  1\nc -1\n",  # as VOC's lists of a class
    ],
)
def test_lists_of_names_decide_which_pairs_count(tmp_path, text):
    write_uniform(tmp_path, ["i/a.jpg", "i/b.jpg", "i/c.jpg", "i/unlabelled.jpg"], ["l/a.png", "l/b.png", "l/c.png"])
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    pairs, findings = find_pairs(tmp_path, "i", "l", "list.txt")
    assert names(pairs) == ["a", "c"] and not findings.problems


def test_lists_name_files_in_subfolders_and_with_their_endings(tmp_path):
    write_uniform(tmp_path, ["i/x/a_img.jpg", "i/y/a_img.jpg"], ["l/x/a_gt.png", "l/y/a_gt.png"])
    for line in "x/a", "i/x/a_img.jpg", "x/a_img.jpg", "l/x/a_gt.png", "/data/i/x/a_img.jpg":
        (tmp_path / "list.txt").write_text(line)
        pairs, findings = find_pairs(tmp_path, "i/*/*_img.jpg", "l/*/*_gt.png", "list.txt")
        assert [pair.image.parent.name for pair in pairs] == ["x"] and not findings.problems


def test_lists_name_files_of_the_same_name_in_folders_of_any_depth(tmp_path):
    places = "1", "a/1", "b/1"
    write_uniform(tmp_path, [f"i/{place}.jpg" for place in places], [f"l/{place}.png" for place in places])
    for text in "a/1\nb/1", "i/a/1.jpg\ni/b/1.jpg":
        (tmp_path / "list.txt").write_text(text)
        pairs, _ = find_pairs(tmp_path, "i/**/*.jpg", "l/**/*.png", "list.txt")
        assert [pair.image.parent.name for pair in pairs] == ["a", "b"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("A.JPG.gz\n", "that list.txt lists; its first line is 'A.JPG.gz'."),
        ("", "that list.txt lists; it is empty."),
        ("a", "save it as one"),
    ],
)
def test_lists_that_match_nothing_show_why(tmp_path, text, message):
    write_uniform(tmp_path, ["i/a.jpg"], ["l/a.png"])
    (tmp_path / "list.txt").write_text(text, encoding="utf-16" if text == "a" else "utf-8")
    _, findings = find_pairs(tmp_path, "i", "l", "list.txt")
    assert message in str(findings.problems[0])


def test_words_after_a_name_are_no_reason_to_take_another(tmp_path):
    write_uniform(tmp_path, ["i/c.jpg"], ["l/c.png"])
    (tmp_path / "list.txt").write_text("c\nc 1.jpg")
    _, findings = find_pairs(tmp_path, "i", "l", "list.txt")
    assert "lists c 1.jpg, but there is no" in str(findings.problems[0])


def test_names_are_compared_in_one_unicode_form(tmp_path):
    """macOS decomposes the names of files."""
    composed, decomposed = (unicodedata.normalize(form, "straße_é") for form in ("NFC", "NFD"))
    write_uniform(tmp_path, [f"i/{decomposed}.jpg"], [f"l/{composed}.png"])
    pairs, findings = find_pairs(tmp_path, "i", "l")
    assert names(pairs) == [composed] and not findings.problems


def test_suffixes_in_patterns_match_in_any_case(tmp_path):
    write_uniform(tmp_path, ["i/a.JPG", "i/b.jpg"], ["l/a.png", "l/b.PNG"])
    assert names(find_pairs(tmp_path, "i/*.jpg", "l/*.png")[0]) == ["a", "b"]


def test_record_names_are_all_different(tmp_path):
    places = "c", "a/b_c", "a_b/c"
    write_uniform(tmp_path, [f"i/{place}.jpg" for place in places], [f"l/{place}.png" for place in places])
    pairs, _ = find_pairs(tmp_path, "i/**", "l/**")
    assert len(set(names(pairs))) == 3


def test_photographs_that_cannot_be_read_are_counted(tmp_path):
    write_uniform(tmp_path, ["i/a.jpg"], ["l/a.png"])
    for name in "b.heic", "c.MOV":
        (tmp_path / "i" / name).write_bytes(b"")
    _, findings = find_pairs(tmp_path, "i", "l")
    assert "2 files in" in findings.warnings[0] and "b.heic, c.MOV" in findings.warnings[0]


def test_files_of_other_tools_are_passed_over(tmp_path):
    write_uniform(tmp_path, ["i/a.jpg"], ["l/a.png", "l/a_labelTrainIds.png", "l/b_labelTrainIds.png", "l/a_x.png"])
    pairs, findings = find_pairs(tmp_path, "i", "l")
    assert names(pairs) == ["a"]
    assert findings.notes == [f"1 files *_labelTrainIds in {tmp_path}/l are passed over: they are of other tools."]
    assert [problem.text.split(" ")[3] for problem in findings.problems] == [
        "a_x{.jpg,.png,...}",
        "b_labelTrainIds{.jpg,.png,...}",
    ]


def test_empty_folders_say_what_they_hold(tmp_path):
    write_uniform(tmp_path, ["i/a.jpg"])
    (tmp_path / "l").mkdir()
    for file in "a.json", "b.json", "c.txt":
        (tmp_path / "l" / file).write_text("")
    _, findings = find_pairs(tmp_path, "i", "l")
    assert "There is no file" in findings.problems[0] and "holds 2 .json, 1 .txt" in findings.problems[0]
    assert "--from=coco" in findings.problems[0]
