"""What an artifact carries so that its members can be taken out and replaced without checkpoints and model code."""
