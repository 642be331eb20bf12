"""What every reader under test has in common."""

from pathlib import Path
from random import Random
from typing import Any

from isnet_jax.errors import UserError


class Refused(UserError):
    """Raised by `Reader.read` where the code under test rejects a file by other means than a UserError."""


class Reader:
    """One reader of untrusted input, with valid inputs to mutate.

    It is made in an empty folder. `read` takes what `valid_inputs` and `mutant` return; it must return, or raise
    UserError. The name of the class seeds its mutants.
    """

    trusted_scripts: tuple[str, ...] = ()  # Python files in the folder that the reader runs by design

    def __init__(self, folder: Path):
        self.folder = folder
        self.seeds = self.make_seeds()

    def make_seeds(self) -> list:
        """Valid inputs to mutate."""
        raise NotImplementedError

    def mutate(self, data: Any, rng: Random, seeds: list) -> Any:
        """A mutant of one of the seeds."""
        raise NotImplementedError

    def read(self, content: Any) -> None:
        """Calls the code under test, and checks what it returns."""
        raise NotImplementedError

    def valid_inputs(self) -> list:
        """Inputs that are read without an error."""
        return self.seeds

    def mutant(self, rng: Random) -> Any:
        """A damaged input, which depends on `rng` alone."""
        return self.mutate(rng.choice(self.seeds), rng, self.seeds)

    def write(self, name: str, content: bytes) -> Path:
        """Writes a file in the folder."""
        (self.folder / name).write_bytes(content)
        return self.folder / name
