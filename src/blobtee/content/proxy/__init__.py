"""A store on the other side of a socket: containerd's content service, or blobtee's own.

Needs the extra `containerd`. `messages` is the form in which both sides write what they say.
"""

from blobtee.content.proxy.store import ProxyStore

__all__ = ["ProxyStore"]
