"""Pairs of image and label files, by patterns."""

from data_sets import write_uniform


def find_pairs(tree, images, labels, list_file=None):
    """(pairs, problems)."""
    from isnet_jax.datasets import pairing

    problems = []
    return pairing.find_pairs(tree, images, labels, problems, list_file), problems


def test_find_pairs_matches_the_stars_of_both_patterns(tmp_path):
    tree = tmp_path / "a [*] tree"  # the path of the tree is not part of the pattern
    write_uniform(
        tree,
        ["x/1/left_a.b.jpg", "x/2/left_a.b.jpg", "x/2/.left_c.jpg", "x/right_d.jpg", "x/2/left_e.JPEG"],
        ["y/1/a.b_id.png", "y/2/a.b_id.png", "y/2/e_id.png", "y/2/a.b_color.png"],
    )
    pairs, problems = find_pairs(tree, "x/*/left_*", "y/*/*_id.png")
    assert not problems
    assert [
        (pair.name, pair.image.relative_to(tree).as_posix(), pair.label.relative_to(tree).as_posix()) for pair in pairs
    ] == [
        ("a.b", "x/1/left_a.b.jpg", "y/1/a.b_id.png"),
        ("a.b", "x/2/left_a.b.jpg", "y/2/a.b_id.png"),
        ("e", "x/2/left_e.JPEG", "y/2/e_id.png"),
    ]
    (tree / "y/1/a.b_id.png").unlink()
    pairs, problems = find_pairs(tree, "x/*/left_*", "y/*/*_id.png")
    assert len(pairs) == 2
    assert problems == [f"{tree}/x/1/left_a.b.jpg has no label a.b_id.png in {tree}/y/1."]


def test_find_pairs_takes_special_characters_literally(tmp_path):
    write_uniform(tmp_path, ["i[1]/a+.jpg"], ["l(1)/a+.png"])
    for images, labels in (("i[1]", "l(1)/"), ("i[1]/*+.jpg", "l(1)/*+.png"), (str(tmp_path / "i[1]"), "l(1)/*")):
        pairs, problems = find_pairs(tmp_path, images, labels)
        assert len(pairs) == 1 and not problems


def test_find_pairs_reports_a_list_file_that_is_not_text(tmp_path):
    write_uniform(tmp_path, ["i/a.jpg"], ["l/a.png"])
    pairs, problems = find_pairs(tmp_path, "i", "l", list_file="i/a.jpg")
    assert not pairs and problems[0].startswith(f"{tmp_path}/i/a.jpg cannot be read")
