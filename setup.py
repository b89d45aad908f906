"""Builds the C++ extension ``data_tools._native``; all other metadata stands in pyproject.toml."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp"))

setup(
    ext_modules=[
        Pybind11Extension(
            "data_tools._native",
            SOURCES,
            depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall", "-Wextra", "-pthread"],
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
