"""The report of what is wrong with the files of a data set."""

from pathlib import Path

import pytest
from data_sets import expanded

from isnet_jax.datasets.problems import FileProblem, Report


def reported(capfd, *findings):
    """The lines that a report of problems prints."""
    with Report("own") as report:
        report.add("problem", findings)
    assert report.num_problems == len(findings)
    return capfd.readouterr().err.splitlines()


def test_up_to_three_problems_of_a_kind_are_lines_of_their_own(capfd):
    findings = [FileProblem(f"{name}.png", f"is damaged (at byte {i}).") for i, name in enumerate("abc")]
    assert reported(capfd, *findings) == [f"problem: {finding}" for finding in findings]


def test_more_problems_of_a_kind_are_one_line_and_a_file(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    equal = [FileProblem(f"d/{i}.png", f"is damaged (at byte {i}).") for i in range(1000)]
    other = FileProblem("d/x.png", "is empty.")
    lines = reported(capfd, *equal[:500], other, "The folder d is small.", *equal[500:])
    (listing,) = tmp_path.iterdir()
    assert lines == [
        "problem: The folder d is small.",
        "problem: d/0.png is damaged (at byte 0). The same holds for 1.png, 2.png and 997 more; "
        f"{listing} lists all 1000.",
        "problem: d/x.png is empty.",
    ]
    assert listing.read_text().splitlines() == list(map(str, equal))
    assert len(expanded("\n".join(lines))) == 1002


def test_what_was_found_is_told_after_an_interrupt(capfd):
    with pytest.raises(KeyboardInterrupt), Report("own") as report:
        report.add("warning", [FileProblem(Path("a\x1b[2J.png"), "is empty.")])
        raise KeyboardInterrupt
    assert capfd.readouterr().err == "warning: a\\x1b[2J.png is empty.\n"


def test_a_full_disk_takes_the_list_only(capfd, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", fail)
    (line,) = reported(capfd, *[FileProblem(f"{i}.png", "is empty.") for i in range(5)])
    assert line == "problem: 0.png is empty. The same holds for 1.png, 2.png and 2 more."
