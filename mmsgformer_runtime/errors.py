"""What is raised where a model file or an input is bad; the messages name it and say what to do."""


class ModelError(RuntimeError):
    """A model file that cannot be run."""


class InputError(ValueError):
    """An input that a model does not take."""
