"""Weights on a grid of small integers, as pure tensor mathematics: a pruned weight in, integers and scales out."""
