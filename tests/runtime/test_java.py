"""The Java binding on this machine's JDK: the same tokens as Python, cancelling, errors by their codes, flat memory."""

import json
import os
import shutil
import subprocess
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from edgeslim.runtime.library import find_library
from edgeslim.runtime.native_library import is_available, native_library, onnxruntime_library
from edgeslim.runtime.native_session import NativeSampling, NativeSession
from edgeslim.runtime.native_text import NativeTokenizer, extensions_library

pytestmark = pytest.mark.skipif(not is_available(), reason="no kernel library: installed without a compiler")

ROOT = Path(__file__).parents[2]
PROMPT = [5, 60, 7, 200, 11, 9]
JVM = ("-Xms64m", "-Xmx64m", "-XX:+AlwaysPreTouch", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xcheck:jni")
"""A heap that is taken whole at the start, so that growth is the library's; faults of the glue end the process."""


@pytest.fixture(scope="session")
def java(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs a case of Check.java with the binding, built from its sources."""
    compiler, javac, machine = shutil.which(os.environ.get("CXX", "c++")), shutil.which("javac"), shutil.which("java")
    if javac is None or machine is None or compiler is None:
        pytest.skip(f"no {'javac' if javac is None else 'java' if machine is None else 'C++ compiler'}")
    home, folder = Path(javac).resolve().parents[1], tmp_path_factory.mktemp("java")
    if not (home / "include" / "jni.h").is_file():
        pytest.skip(f"no jni.h in {home}/include")
    library, glue = find_library(), folder / "libedgeslim_jni.so"
    assert library is not None
    sources = [*(ROOT / "runtime/java/edgeslim/src/main/java/org/edgeslim").glob("*.java")]
    platform = next(path.parent for path in (home / "include").glob("*/jni_md.h"))
    for command in (
        [javac, "--release", "11", "-Xlint:all", "-Werror", "-d", folder, *sources],
        [javac, "-d", folder, "-cp", folder, ROOT / "tests/runtime/java/Check.java"],
        [
            *(compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-shared", "-fPIC"),
            *("-I", ROOT / "runtime/native", "-I", home / "include", "-I", platform),
            *(ROOT / "runtime/native/jni/edgeslim_jni.cc", "-o", glue),
            *(library, f"-Wl,-rpath,{library.parent}"),
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return [machine, *JVM, f"-Dedgeslim.library={glue}", "-cp", str(folder), "Check"]


def check(java: list[str], case: str, bundle: Path, library: Path | None = None, preload: str = "") -> dict[str, str]:
    """Run a case of Check.java, with ONNX Runtime or another library, and return what it says, by name."""
    command = [*java, case, bundle, library or onnxruntime_library() or ""]
    environment = {**os.environ, **({"LD_PRELOAD": preload} if preload else {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr  # of -Xcheck:jni
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


def words(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def test_a_bundle_loads_and_says_what_it_is(java, exported):
    said = check(java, "load", exported.bundle)

    session = NativeSession(exported.bundle, threads=1, max_length=64)
    first, _ = session.generate(PROMPT, 1, eos_ids=[])
    assert int(said["vocab"]) == session.config.vocab_size
    assert said["runtime"] == native_library().version
    assert (said["position"], said["threads"], said["packed"]) == ("6", "1", "false")
    assert int(said["room"]) == (session.context_length or 0)
    assert said["likeliest"] == said["drawn"] == words(first)
    assert said["onnxruntime"] in ("", version("onnxruntime"))  # "": it ran without


def test_tokens_stream_one_by_one_and_are_those_of_python(java, exported):
    session = NativeSession(exported.bundle, threads=1)
    greedy, _ = session.generate(PROMPT, 24, eos_ids=[])
    session.reset()
    sampling = NativeSampling(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=5)
    drawn, _ = session.generate(PROMPT, 24, sampling, eos_ids=[])

    said = check(java, "stream", exported.bundle)

    assert said["greedy"] == words(greedy)
    assert said["drawn"] == words(drawn)
    assert said["positions"] == words(list(range(6, 30)))
    assert said["end"] == "LENGTH"
    assert (said["stopped"], said["heard"]) == ("LISTENER", "3")
    assert said["at token"] == "TOKEN"
    assert said["thrown"] == f"of the listener {greedy[0]}"
    full = NativeSession(exported.bundle, threads=1, max_length=20).generate(PROMPT, 40, eos_ids=[])
    assert (said["full"], int(said["fitted"])) == (full[1].upper(), len(full[0]))


def test_a_cancelled_session_stops_and_goes_on_once_resumed(java, exported):
    expected, _ = NativeSession(exported.bundle, threads=1).generate(PROMPT, 40, eos_ids=[])

    said = check(java, "cancel", exported.bundle)

    assert (said["code"], said["later"]) == ("CANCELLED", "CANCELLED")
    assert said["position"] == "10"  # the fifth token was drawn and not fed
    assert said["text"] == words(expected)


def test_every_fault_is_an_exception_with_its_code(java, exported):
    said = check(java, "errors", exported.bundle)

    assert said.pop("message") == "/не/туда/\N{GRINNING FACE}: no such bundle folder"
    assert said == {
        "no folder": "BAD_BUNDLE",
        "no runtime": "RUNTIME_UNAVAILABLE",
        "outside": "INVALID_ARGUMENT",
        "threads": "INVALID_ARGUMENT",
        "nothing to sample": "WRONG_ORDER",
        "no logits": "IllegalStateException",
        "token": "INVALID_ARGUMENT",
        "no tokens": "INVALID_ARGUMENT",
        "null tokens": "INVALID_ARGUMENT",
        "too many": "CONTEXT_FULL",
        "room": "INVALID_ARGUMENT",
        "temperature": "INVALID_ARGUMENT",
        "state": "BAD_STATE",
        "null state": "BAD_STATE",
        "from the listener": "IllegalStateException",
        "closed by the listener": "IllegalStateException",
        "whole after all": "6",
    }


def test_closing_in_any_order_and_from_any_thread_is_safe(java, exported):
    assert check(java, "closing", exported.bundle) == {
        "open of a closed model": "IllegalStateException",
        "model closed first": "6",
        "closed": "IllegalStateException",
        "closing waits": "8",
        "and closes": "IllegalStateException",
    }


def test_a_saved_state_goes_on_in_another_session(java, exported):
    said = check(java, "saved", exported.bundle)

    assert said["first"] == said["second"]
    assert len(said["first"].split()) == 20


def test_a_profile_is_the_object_that_python_prints(java, llama):
    profile = json.loads(check(java, "profile", llama.bundle)["profile"])

    assert (profile["prompt_tokens"], profile["new_tokens"], profile["repeats"]) == (4, 3, 2)
    assert profile["decode_tok_s_p50"] > 0


def test_a_thousand_sessions_leave_no_memory_behind(java, exported):
    said = check(java, "memory", exported.bundle)

    # A session that stayed is 50 kB or more, a model more; what the virtual machine itself adds was below 1 MB.
    assert int(said["sessions grew by kB"]) < 4000
    assert int(said["models grew by kB"]) < 4000


@pytest.fixture(scope="session")
def extensions() -> tuple[Path, str]:
    """onnxruntime-extensions' library, and what a process that is not Python must load before: the PyPI package is also
    a module of Python's. The AAR for Android has a library of its own."""
    found = extensions_library()
    if found is None:
        pytest.skip("no onnxruntime-extensions")
    python = Path(sysconfig.get_config_var("LIBDIR") or "") / (sysconfig.get_config_var("LDLIBRARY") or "")
    if not python.is_file() or python.suffix == ".a":
        pytest.skip("onnxruntime-extensions' package needs Python's library, and this Python has none")
    return found, str(python)


def test_text_goes_to_tokens_and_back_as_in_python(java, extensions):
    bundle = ROOT / "examples" / "models" / "tiny-llama"

    said = check(java, "text", bundle, *extensions)

    assert said == {
        "none": "RUNTIME_UNAVAILABLE",
        "no bundle": "BAD_BUNDLE",
        "tokens": words(NativeTokenizer(bundle).encode("naïve — 漢字 \N{SLIGHTLY SMILING FACE}")),
        "bare": str(len(said["tokens"].split())),
        "decoded": "true",
        "negative": "INVALID_ARGUMENT",
        "zero": "IllegalArgumentException",
        "null text": "INVALID_ARGUMENT",
        "streamed": "true",
        "closed decoder": "IllegalStateException",
        "closed": "IllegalStateException",
    }


def test_tokenizers_and_decoders_leave_no_memory_behind(java, extensions):
    said = check(java, "text memory", ROOT / "examples" / "models" / "tiny-llama", *extensions)

    # A tokenizer that stayed is 0.7 MB or more, forty thousand decoders are 7.8 MB.
    assert int(said["decoders grew by kB"]) < 2000
    assert int(said["tokenizers grew by kB"]) < 8000
