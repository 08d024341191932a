"""One member back out of a packed file, from the file alone: no checkpoints, no code of the model's."""
