"""Structured pruning by measured loss: whole blocks, and heads of Mamba-2 mixers, leave a checkpoint for good."""
