"""Member graph -> batched graph. `docs/batching.md` explains the parts and how to add a rule."""
