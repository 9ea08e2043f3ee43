"""blobtee beside Go's path on one machine, in one run: `make bench-peers`."""
