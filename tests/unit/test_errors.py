"""The error tree is drawn at the top of its module; the drawing must not lie."""

import errno
import inspect

import pytest

from blobtee import errors

CLASSES = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, errors.BlobteeError) and member.__module__ == errors.__name__
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_is_in_the_drawing_with_its_code(cls: type[errors.BlobteeError]) -> None:
    assert errors.__doc__ is not None
    lines = [line for line in errors.__doc__.splitlines() if cls.__name__ in line.replace("─", " ").split()]
    assert lines, f"{cls.__name__} is not in the drawing"
    parents = [parent for parent in cls.__bases__ if issubclass(parent, errors.BlobteeError)]
    if "code" in cls.__dict__ and (not parents or parents[0].code != cls.code):
        assert cls.code in lines[0]


def test_only_a_locked_ref_is_unavailable_because_containerd_would_try_again_for_ever() -> None:
    assert [cls for cls in CLASSES if cls.code == "UNAVAILABLE"] == [errors.RefLocked]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, errors.StorageFull),
        (errno.EDQUOT, errors.StorageFull),
        (errno.EROFS, errors.PermissionDenied),
        (errno.ENOENT, errors.NotFound),
        (errno.EMFILE, errors.ResourceExhausted),
        (errno.EIO, errors.StorageError),
    ],
)
def test_a_file_systems_error_becomes_one_of_ours(number: int, expected: type[errors.BlobteeError]) -> None:
    error = errors.from_os_error(OSError(number, "reason"), "write the blob")
    assert type(error) is expected
    assert "cannot write the blob: reason" in str(error)


def test_mismatches_say_both_values() -> None:
    assert str(errors.SizeMismatch("layer", 3, 4)) == "layer: 4 bytes, expected 3"
    assert str(errors.DigestMismatch("layer", "sha256:a", "sha256:b")) == "layer: digest is sha256:b, expected sha256:a"
