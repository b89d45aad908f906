"""Builds the C++ extensions; all other metadata stands in pyproject.toml."""

import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

# torch ships the OpenMP runtime of GNU on Linux: its threads serve the kernels too.
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []


def extension(name: str, folder: str, *options: str) -> Pybind11Extension:
    """An extension made of the sources directly in a folder."""
    return Pybind11Extension(
        name,
        sorted(str(path) for path in Path(folder).glob("*.cpp")),
        depends=sorted(str(path) for path in Path(folder).glob("*.h")),
        include_dirs=[folder],
        cxx_std=17,
        extra_compile_args=["-O3", "-Wall", "-Wextra", "-pthread", *options],
        extra_link_args=["-pthread", *options],
    )


# As many compilers as there are cores; the sources are some fifty.
ParallelCompile(default=0).install()

setup(
    ext_modules=[
        extension("data_tools._native", "csrc"),
        extension("qwen_megatron._kernels", "csrc/kernels", *OPENMP),
    ],
    cmdclass={"build_ext": build_ext},
)
