"""Extended attributes of a layer's entries, put on files: which ones, and what happens where that is not possible."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping

from blobtee.errors import CorruptData

_NOT_OURS = ("security.selinux", "system.nfs4_acl", "trusted.overlay.", "user.overlay.")
"""Belong to a machine or to a mount, not to a tree: labels of its policy; and orders to overlayfs, which would obey
them when the tree is one of its layers."""

_IMPOSSIBLE = (errno.E2BIG, errno.ERANGE, errno.EINVAL)


def put(target: int | bytes, xattrs: Mapping[str, bytes], path: str, *, as_root: bool) -> int:
    """Set `xattrs` on an open file, or on what is at a path, links not followed. How many could not be set.

    Those that the file system does not have, that this kind of file cannot have, or that only root may set are passed
    over and counted. `CorruptData`: one that no file system takes. `path` is the entry's, for errors.
    """
    left_out = 0
    for name, value in xattrs.items():
        if name.startswith(_NOT_OURS):
            continue
        raw = name.encode("utf-8", "surrogateescape")
        if not raw or b"\0" in raw:
            raise CorruptData(f"{path[:200]!r}: an extended attribute without a proper name: {name[:100]!r}")
        try:
            if isinstance(target, int):
                os.setxattr(target, raw, value)
            else:
                os.setxattr(target, raw, value, follow_symlinks=False)
        except OSError as error:
            if error.errno in _IMPOSSIBLE:
                raise CorruptData(
                    f"{path[:200]!r}: the extended attribute {name[:100]!r} cannot be set: {error.strerror}"
                ) from error
            # Links and devices have no `user.` attributes (xattr(7)).
            is_refused = error.errno in (errno.EPERM, errno.EACCES) and (not as_root or name.startswith("user."))
            if error.errno != errno.ENOTSUP and not is_refused:
                raise
            left_out += 1
    return left_out


def clear(fd: int, keep: Iterable[str], *, as_root: bool) -> None:
    """Take those attributes off an open file that a layer could have given to it, but for the names in `keep`."""
    kept = {name.encode("utf-8", "surrogateescape") for name in keep}
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return
        raise
    for name in names:
        is_ours = name.startswith(("user.", "trusted.")) or name == "security.capability"
        if is_ours and not name.startswith(_NOT_OURS) and os.fsencode(name) not in kept:
            try:
                os.removexattr(fd, name)
            except PermissionError:
                if as_root:
                    raise
