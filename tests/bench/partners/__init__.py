"""What `bench_partners.py` prepares and runs: checkpoints of random weights, stock bundles, llama.cpp files."""
