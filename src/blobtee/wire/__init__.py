"""The messages of the services that blobtee speaks: containerd's content store, gRPC's health check, its own control.

Needs protobuf (the extra `containerd`). There is no .proto file and no generated code: `table` makes the classes of a
table of field numbers, which is all that a wire format is.
"""
