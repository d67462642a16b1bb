"""Small scripts for a device's POSIX shell. What varies goes in as arguments, never into the text."""

from collections.abc import Sequence

_LIST = 'cd "$1" 2>/dev/null || exit 0; stat -c "%s %n" -- .[!.]* * 2>/dev/null; exit 0'


def script(text: str, *arguments: str) -> list[str]:
    """Return the argv that runs `text` with ``$1``, ``$2`` … being `arguments`."""
    return ["sh", "-c", text, "sh", *arguments]


def list_argv(folder: str) -> Sequence[str]:
    """Return the argv that prints bytes and name of everything in `folder`, a line each."""
    return script(_LIST, folder)


def parse_list(text: str) -> dict[str, int]:
    """Return name → bytes of what `list_argv` printed."""
    found = {}
    for line in text.splitlines():
        size, _, name = line.strip().partition(" ")
        if size.isdigit() and name:
            found[name] = int(size)
    return found


def remove_argv(path: str) -> Sequence[str]:
    """Return the argv that removes `path` with all below it."""
    return ["rm", "-rf", "--", path]
