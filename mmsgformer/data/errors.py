"""What is raised where data is bad."""


class DataError(RuntimeError):
    """Training data that cannot be listed or loaded; the message names the files."""
