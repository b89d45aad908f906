"""What a kind of machine can do, from a hardware file."""

from __future__ import annotations

import importlib.resources
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from data_tools.settings.words import closest
from qwen_megatron.errors import ConfigError

FOLDER = "qwen_megatron.planning.hardware"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One kind of GPU (or processor), and what connects those of a job.

    Attributes:
        name: Of the file.
        memory_bytes: Of a device.
        peak_tflops: 10^12 operations a second, dense, of the precision trained in.
        memory_gb_per_second: 10^9 bytes a second from and to its memory.
        link_gb_per_second: To the others of its node, one direction.
        network_gb_per_second: To other nodes, for each device.
        ranks_per_node: Devices of a node.
        reserved_bytes: What context and collectives take of the memory.
        price_per_hour: Of a device, US$.
        product_efficiency: Share of the peak that a matrix product reaches, by its operations; between two sizes it
            goes with the logarithm.
        attention_efficiency, memory_efficiency, link_efficiency, network_efficiency: Shares of their peaks.
        latency_us: Microseconds of a collective or a transfer without content.
        launch_us: Microseconds that an operation of the engine costs besides; None for the engine's own.
        kernels: `fused`, `torch` or `cpu`; see `config.arithmetic.kept`.
        pass_factor: How many times the bytes of fused kernels the others move.
    """

    name: str
    memory_bytes: int
    peak_tflops: float
    memory_gb_per_second: float
    link_gb_per_second: float
    network_gb_per_second: float
    ranks_per_node: int
    reserved_bytes: int
    price_per_hour: float
    product_efficiency: Mapping[float, float]
    attention_efficiency: float
    memory_efficiency: float
    link_efficiency: float
    network_efficiency: float
    latency_us: float
    launch_us: float | None = None
    kernels: str = "fused"
    pass_factor: float = 1.0

    def product_rate(self, flops: float) -> float:
        """Operations a second of a product with so many."""
        sizes = sorted(self.product_efficiency)
        place = min(max(flops, sizes[0]), sizes[-1])
        for low, high in itertools.pairwise(sizes):
            if place <= high:
                part = math.log(place / low) / math.log(high / low)
                low_share, high_share = self.product_efficiency[low], self.product_efficiency[high]
                return (low_share + part * (high_share - low_share)) * self.peak_tflops * 1e12
        return self.product_efficiency[sizes[-1]] * self.peak_tflops * 1e12

    @property
    def attention_rate(self) -> float:
        """Operations a second of attention."""
        return self.attention_efficiency * self.peak_tflops * 1e12

    @property
    def memory_rate(self) -> float:
        """Bytes a second of kernels that only move them."""
        return self.memory_efficiency * self.memory_gb_per_second * 1e9

    def wire_rate(self, span: int) -> float:
        """Bytes a second of one rank in a collective over ranks that lie within `span` consecutive ones."""
        if span <= self.ranks_per_node:
            return self.link_efficiency * self.link_gb_per_second * 1e9
        return self.network_efficiency * self.network_gb_per_second * 1e9


def machines() -> dict[str, Path]:
    """The files of the package by name."""
    folder = Path(str(importlib.resources.files(FOLDER)))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_machine(name: str) -> Machine:
    """The machine of a file of the package, or of a file by its path.

    Raises:
        ConfigError: if there is no such file, or something in it is wrong.
    """
    known = machines()
    path = known.get(name) or Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"--gpu {name}: is not known; the closest one is {closest(name, tuple(known))} (or name a YAML file)"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--gpu {path}: cannot be read: {error}") from error
    return machine_of(path, content)


def machine_of(path: Path, content: Any) -> Machine:
    """Checks the content of a hardware file.

    Raises:
        ConfigError: naming the file and every key that is wrong.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold settings of a machine; see those of the package for an example")
    required = {field.name: str(field.type) for field in fields(Machine) if field.name != "name"}
    optional = ("launch_us", "kernels", "pass_factor")
    problems = [
        f"{path}: {key}: unknown key; the closest known one is {closest(str(key), tuple(required))}"
        for key in content
        if key not in required
    ]
    problems += [f"{path}: {key}: is needed" for key in required if key not in content and key not in optional]
    for key, value in content.items():
        if key == "kernels":
            if value not in ("fused", "torch", "cpu"):
                problems.append(f"{path}: kernels={value}: must be fused, torch or cpu")
        elif key == "product_efficiency":
            problems += check_table(path, value)
        elif key in required and not is_positive(value) and not (key in optional or key == "price_per_hour"):
            problems.append(f"{path}: {key}={value}: must be a number above 0")
    if problems:
        raise ConfigError(problems)
    return Machine(name=path.stem, **content)


def check_table(path: Path, table: Any) -> list[str]:
    """Problems of `product_efficiency`."""
    if (
        isinstance(table, dict)
        and table
        and all(is_positive(key) and is_positive(value) for key, value in table.items())
    ):
        return []
    return [
        f"{path}: product_efficiency: must map numbers of operations to shares of the peak, such as {{1.0e+9: 0.1}}"
    ]


def is_positive(value: Any) -> bool:
    """A number above 0, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
