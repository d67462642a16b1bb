"""Pruning as pure tensor mathematics: statistics of a layer's inputs in, a pruned weight out."""
