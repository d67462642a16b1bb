"""Text that every machine with Python has: the documentation of its standard library and of its installed packages.

A document is what one module says in its docstrings (read from the syntax tree, nothing is imported) or one topic of
``help()``. Which split a document belongs to follows from a hash of its name alone, so a module keeps its split from
one Python version to the next. The training and calibration texts lose every paragraph that the held-out text also
has: modules copy docstrings from each other.
"""

import ast
import hashlib
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Split = Literal["train", "calibration", "heldout"]

SEPARATOR = "\n\n\n"
"""What stands between two documents; inside a document, paragraphs are one empty line apart."""

# Of 100 buckets. Calibration is the large one: 128 windows of 2048 tokens need about a megabyte.
_FIRST_BUCKET: dict[Split, int] = {"heldout": 0, "calibration": 10, "train": 70}
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"})
_HOLDS_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BETWEEN_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*?(?=[^\n])")


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text and how to name it in a report.

    `description` reads like "standard library documentation of Python 3.11.7 (heldout split), 0.3 MB, sha256 06db19cb".
    """

    text: str
    description: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Document:
    name: str
    paragraphs: tuple[str, ...]

    @property
    def split(self) -> Split:
        bucket = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big") % 100
        return max((first, split) for split, first in _FIRST_BUCKET.items() if first <= bucket)[1]


def standard_library_text(split: Split) -> Text:
    """Return one split of the standard library's docstrings and help topics, its documents `SEPARATOR` apart.

    The three splits share no document, and the other two share no paragraph with "heldout".
    """
    taken = frozenset[str]() if split == "heldout" else _heldout_paragraphs()
    documents = _without_repeats((d for d in _standard_library() if d.split == split), taken)
    return _text(documents, f"standard library documentation of Python {platform.python_version()} ({split} split)")


def installed_packages_text(folder: Path | None = None) -> Text:
    """Return the docstrings of the packages installed in `folder` (default: this environment), for training only.

    Paragraphs that the held-out split has, and paragraphs seen before, are left out. Reading a large environment takes
    a minute.
    """
    folder = folder or Path(sysconfig.get_path("purelib"))
    documents = _without_repeats(_modules(folder, skipped=frozenset({"__pycache__"})), _heldout_paragraphs())
    return _text(documents, f"docstrings of the packages installed beside Python {platform.python_version()}")


def paragraphs(text: str) -> list[str]:
    """Split `text` at empty lines; lines lose their trailing blanks, paragraphs without a letter are dropped."""
    lines = "\n".join(line.rstrip() for line in text.expandtabs().splitlines())
    return [part for part in _BETWEEN_PARAGRAPHS.split(lines.strip("\n")) if any(c.isalpha() for c in part)]


@cache
def _standard_library() -> tuple[_Document, ...]:
    folder = Path(sysconfig.get_path("stdlib"))
    return (*_modules(folder, _SKIPPED_FOLDERS), *_topics(folder / "pydoc_data" / "topics.py"))


@cache
def _heldout_paragraphs() -> frozenset[str]:
    return frozenset(p for d in _standard_library() if d.split == "heldout" for p in d.paragraphs)


def _modules(folder: Path, skipped: frozenset[str]) -> Iterator[_Document]:
    """Yield the documents of the Python files under `folder`, by name; files that do not parse are passed over."""
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder).with_suffix("")
        if skipped.isdisjoint(relative.parts) and (found := _docstrings(path)):
            name = ".".join(part for part in relative.parts if part != "__init__")
            yield _Document(name=name, paragraphs=found)


def _docstrings(path: Path) -> tuple[str, ...]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return ()
    found = (ast.get_docstring(node) for node in _statements(tree) if isinstance(node, _DOCUMENTED))
    return tuple(part for docstring in found if docstring for part in paragraphs(docstring))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield `node` and the statements in it in source order; expressions hold no docstrings."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _HOLDS_STATEMENTS):
            yield from _statements(child)


def _topics(path: Path) -> Iterator[_Document]:
    """Yield the texts of ``help("TOPIC")``, which stand in `path` as one dictionary of literals."""
    if not path.is_file():
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            for name, text in sorted(topics.items()):
                yield _Document(name=f"topic {name}", paragraphs=tuple(paragraphs(text)))


def _without_repeats(documents: Iterable[_Document], taken: frozenset[str]) -> Iterator[_Document]:
    """Yield `documents` without the paragraphs in `taken` or in an earlier document."""
    seen = set(taken)
    for document in documents:
        kept = tuple(p for p in dict.fromkeys(document.paragraphs) if p not in seen)
        seen.update(kept)
        if kept:
            yield _Document(name=document.name, paragraphs=kept)


def _text(documents: Iterable[_Document], description: str) -> Text:
    text = SEPARATOR.join("\n\n".join(d.paragraphs) for d in documents)
    data = text.encode("utf-8", "replace")
    digest = hashlib.sha256(data).hexdigest()
    described = f"{description}, {len(data) / 1e6:.1f} MB, sha256 {digest[:12]}"
    return Text(text=data.decode(), description=described, sha256=digest)
