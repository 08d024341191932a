"""Time an artifact against what its user would run instead, side by side, outputs compared first."""
