"""What is raised where a model cannot be exported; the message names what and says what to do."""


class ExportError(RuntimeError):
    """A model, a pipeline or a size that the export does not know."""
