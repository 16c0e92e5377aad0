"""What is raised, or reported, where data is bad."""

from typing import NamedTuple


class DataError(RuntimeError):
    """Training data that cannot be listed or loaded; the message names the files."""


class Problem(NamedTuple):
    """What is wrong with a file or an option and what to do; a note if training goes on as it should."""

    file: str
    text: str
    is_error: bool = True
