module blobtee/benchmarks/peers

go 1.22
