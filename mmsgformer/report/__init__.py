"""One page on a run: what was trained on what, curves, metrics, mistakes, and where the model looks."""
