"""Which form a model should take for its bytes: forms tried, measured, and chosen layer by layer."""
