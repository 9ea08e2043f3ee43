"""The part of the build that pyproject.toml cannot say: the C extension, and one wheel for all Pythons from 3.11 on."""

from setuptools import setup

setup(
    cffi_modules=["csrc/build_core.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
