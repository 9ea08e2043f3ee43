"""blobtee serve beside Go servers over containerd's own store, in one run: `make bench-plugin`."""
