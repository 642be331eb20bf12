"""Every reader of untrusted input, each with valid inputs: the fuzzers damage them, the bombs replace them.

READERS is the list that test_fuzz.py, test_bombs.py and test_security.py share. Every new reader is added to it.
"""

from readers.annotations import CocoFiles, CvatFiles, LabelmeFiles
from readers.base import Reader
from readers.checkpoints import Checkpoints, PthLegacy, PthZip, Safetensors
from readers.configs import CommandLines, RecordedConfigs
from readers.data_sets import Journals, Matrices, Prepared
from readers.evaluations import Cards, Evaluations, Progress
from readers.exports import Exports
from readers.images import DataImages, DataLabels, Photographs, Records

READERS: dict[str, type[Reader]] = {
    reader.__name__: reader
    for reader in (
        Photographs,
        DataImages,
        DataLabels,
        Records,
        Matrices,
        Journals,
        Prepared,
        CocoFiles,
        LabelmeFiles,
        CvatFiles,
        RecordedConfigs,
        CommandLines,
        Evaluations,
        Progress,
        Cards,
        Checkpoints,
        PthZip,
        PthLegacy,
        Safetensors,
        Exports,
    )
}
