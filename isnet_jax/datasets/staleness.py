"""Whether the original files of a prepared data set have changed since."""

from collections.abc import Callable
from pathlib import Path

from isnet_jax.datasets.common import SegmentationBuilder
from isnet_jax.datasets.problems import listed
from isnet_jax.errors import UserError
from isnet_jax.runtime.console import warn


def check(builder: SegmentationBuilder, open_builder: Callable[[], SegmentationBuilder], refuse: bool) -> None:
    """Warns if the original files of a prepared data set are at hand and have changed; raises UserError if `refuse`.

    `open_builder` gives another builder of the same data set.
    """
    changes = _changes(builder, open_builder())
    if not changes:
        return
    text = (
        f"{builder.data_path} was prepared from {builder.info.metadata['source']}, which has changed since: {changes}. "
        "The records are of before; isnet_jax.prepare --overwrite prepares them again"
    )
    if refuse:
        raise UserError(f"{text}.")
    warn(text)


def _changes(builder: SegmentationBuilder, fresh: SegmentationBuilder) -> str:
    """What differs between the records and the original files, "" if nothing does, or the files are not at hand."""
    metadata = builder.info.metadata
    try:
        stamps, source = metadata["stamps"], metadata["source"]
    except KeyError:  # prepared by an earlier version
        return ""
    if not (isinstance(stamps, dict) and source and Path(source).is_dir()):
        return ""
    fresh.source = Path(source)
    parts = []
    for split, stamp in stamps.items():
        pairs = fresh.pairs(fresh.source, split)
        before = {name for name, *_ in metadata["examples"][split]}
        now = {pair.name for pair in pairs}
        try:
            if not stamp or fresh.split_stamp(pairs) == stamp:
                continue
        except OSError:  # a file vanishes meanwhile
            pass
        differences = [_count(now - before, "new"), _count(before - now, "gone")]
        parts.append(f"{split}: {', '.join(filter(None, differences)) or 'files were written or touched'}")
    return "; ".join(parts)


def _count(names: set[str], word: str) -> str:
    return f"{len(names)} {word} ({listed(sorted(names))})" if names else ""
