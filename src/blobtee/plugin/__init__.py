"""What containerd loads: the content service over gRPC, for one or several containerds, and what keeps it running.

Needs the extra `containerd`.
"""
