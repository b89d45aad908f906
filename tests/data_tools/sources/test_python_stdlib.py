"""Which files of a standard library are read."""

from pathlib import Path

from data_tools.sources.python_stdlib import source_files


def test_modules_come_in_order_without_what_is_left_out(tmp_path: Path) -> None:
    kept = ["a.py", "json/__init__.py", "json/z.py", "test.py", "tests.py"]
    left_out = ["site-packages/b.py", "json/tests/c.py", "test/deep/d.py", "lib-dynload/e.so", "json/__pycache__/f.py"]
    for name in [*left_out, *kept]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "json")
    assert [path.relative_to(tmp_path).as_posix() for path in source_files(tmp_path)] == kept
