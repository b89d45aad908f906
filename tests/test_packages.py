"""The packages as they are installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_another_package_of_the_name_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "data_tools").mkdir()
    (tmp_path / "data_tools" / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import qwen_megatron"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"data_tools is imported from {tmp_path}/data_tools/__init__.py, which is not qwen-megatron's" in done.stderr
