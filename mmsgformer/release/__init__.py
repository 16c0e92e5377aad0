"""What makes a release: converted checkpoints, counted costs, the index of models."""
