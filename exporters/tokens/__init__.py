"""Token reduction inside a graph, in standard operators: what `edgeslim.tokens` computes, file by file."""
