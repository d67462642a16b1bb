"""What tests of the kernels share: the library, random matrices in every form, and builds of the native programs."""

import os
import shutil
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from edgeslim.runtime.library import KernelLibrary, kernel_library

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "runtime" / "native"
PROGRAMS = (
    "kernels_test",
    "sequences_test",
    "engine_test",
    "fuzz",
    "fuzz_bundle",
    "builtin_test",
    "fuzz_graph",
    "fuzz_load",
    "soak",
    "tokens",
    "edgeslim-bench",
)


@pytest.fixture(scope="session")
def library() -> KernelLibrary:
    found = kernel_library()
    if found is None:
        pytest.skip("no kernel library: edgeslim was installed without a compiler; `make native` builds it")
    return found


SANITIZED = pytest.StashKey[Future[Path]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begins the sanitized build where a test will ask for it: it takes two minutes, in which other tests run."""
    asked = any("sanitized" in getattr(item, "fixturenames", ()) for item in session.items)
    if asked and not session.config.option.collectonly:
        session.config.stash[SANITIZED] = ThreadPoolExecutor(1).submit(_build_sanitized)


def _build_sanitized() -> Path:
    cmake, folder = shutil.which("cmake"), ROOT / "build" / "sanitize"
    if cmake is None:
        pytest.skip("no cmake to build the native programs with")
    configure = [cmake, "-S", SOURCE, "-B", folder, "-DEDGESLIM_SANITIZE=ON", "-DEDGESLIM_TESTS=ON"]
    build = [cmake, "--build", folder, "-j", "2", "--target", *PROGRAMS]
    for command in (configure, build):
        done = subprocess.run(["nice", "-n", "19", *command], capture_output=True, text=True)
        if "sanit" in done.stderr.lower() and "cannot find" in done.stderr:
            pytest.skip("the compiler comes without sanitizers")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler")
    return found


@pytest.fixture(scope="session")
def sanitized(compiler: str, request: pytest.FixtureRequest) -> Path:
    """The folder of the native programs, built under AddressSanitizer and UndefinedBehaviorSanitizer."""
    return request.config.stash[SANITIZED].result()
