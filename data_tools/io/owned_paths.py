"""What may become part of a path, and what may be removed: names are plain, and removal stays below a folder of ours.

Names come from configurations, manifests and other files, and so from anybody. Joined to a path unchecked, `../x` or
`/x` leads out of the folder that a run writes to.
"""

import re
import shutil
from pathlib import Path

from data_tools.errors import PathError
from data_tools.io.atomic_file import refuse_link

PLAIN_NAME_RULE = (
    "must be a plain name: no / and no control characters in it, no dot at its beginning, 200 bytes at most"
)
# A file system's limit is 255, and endings are added.
_LONGEST_NAME_BYTES = 200


def is_plain_name(name: object) -> bool:
    """Whether ``name`` can be the name of one file or folder, or the stem of several, and nothing else."""
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or not name.isprintable():
        return False
    return len(name.encode()) <= _LONGEST_NAME_BYTES


def is_plain_path(path: object) -> bool:
    """Whether ``path`` is one plain name or several, each below the one before."""
    return isinstance(path, str) and all(map(is_plain_name, path.split("/")))


def require_plain_name(name: object, where: str) -> str:
    """``name``, if it is a plain one.

    Args:
        name: out of a file.
        where: file and key, for the message.
    Raises:
        PathError: it is not.
    """
    if not is_plain_name(name):
        raise PathError(f"{where}={_shown(name)} {PLAIN_NAME_RULE}")
    return str(name)


def require_plain_path(path: object, where: str) -> str:
    """``path``, if it leads from a folder to something below it by plain names; see `require_plain_name`."""
    if not is_plain_path(path):
        raise PathError(f"{where}={_shown(path)} must be plain names, joined by /: no .. and no absolute path")
    return str(path)


def require_below(path: Path, root: Path) -> None:
    """Lets ``path`` pass, which need not exist, if with all links followed it is ``root`` or below it.

    Raises:
        PathError: a link leads out, or the path itself does.
    """
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise PathError(f"{path}: is really {real}, outside of {root}; remove the link, nothing outside is touched")


def remove_tree(folder: Path, root: Path) -> None:
    """Removes ``folder``, if it exists, with everything in it; links in it are removed, not followed.

    Args:
        folder: what goes.
        root: a folder of ours, which it must lie below.
    Raises:
        PathError: ``folder`` is a symbolic link, or it does not lie below ``root``.
        OSError: something cannot be removed.
    """
    refuse_link(folder)
    require_below(folder, root)
    if folder.resolve() == root.resolve():
        raise PathError(f"{folder}: is the folder that things are removed from, and stays itself")
    if folder.exists():
        shutil.rmtree(folder)


def temporary_of(name_pattern: str) -> re.Pattern[str]:
    """Names of the temporary files that `atomic_file` makes for files of these names.

    Args:
        name_pattern: regular expression of the whole name.
    """
    return re.compile(rf"\.(?:{name_pattern})\.[a-z0-9_]{{8}}\.tmp")


def remove_files(folder: Path, names: re.Pattern[str]) -> None:
    """Removes the files (and links, not what they point to) of ``folder`` whose whole name matches ``names``."""
    for path in folder.iterdir():
        if names.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
            path.unlink(missing_ok=True)


def _shown(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
