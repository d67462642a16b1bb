"""Bundles in a page: headless Chromium runs onnxruntime-web in a worker and must write what Python writes.

Needs chromium and the packages of runtime/web (npm ci); `make browser` runs all of it.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from browser import Page, page
from families import save_tiny

from edgeslim.exporters import export_checkpoint
from edgeslim.runtime.generate import GREEDY, generate
from edgeslim.runtime.profiler import Profile
from edgeslim.runtime.session import OrtSession
from edgeslim.runtime.text import TextCodec
from edgeslim.runtime.web.serve import PAGE, make_server

ROOT = Path(__file__).parents[2]
PROMPTS = ("Return a list of", "Once upon a time", "def main():\n    ")
TEXTS = ("", "Hello, world", "  two  spaces\n\ttab", "naïve café — 漢字 🙂", "x" * 300)

# Installed once a page: what the tests call, with the model kept between calls.
_HARNESS = """(async () => {
  const { Model } = await import('/client.js');
  window.models = {};
  window.open_ = async (name, options) => (models[name] ??= await Model.open(`/bundles/${name}/`, options)).about;
  window.write = async (name, prompt, count, abortAfter = Infinity) => {
    await open_(name);
    const stop = new AbortController(), pieces = [];
    const stream = models[name].generate(prompt, { maxNewTokens: count, signal: stop.signal });
    for (;;) {
      const { value, done } = await stream.next();
      if (done) return { ...value, pieces };
      pieces.push(value);
      if (pieces.length >= abortAfter) stop.abort();
    }
  };
  window.fault = promise => promise.then(() => 'no fault', fault => `${fault.name}: ${fault.message}`);
})()"""


class Site:
    """A page with the harness above, and the bundles that its server offers."""

    def __init__(self, view: Page, address: str, bundles: dict[str, Path]) -> None:
        self.view, self.address, self._bundles = view, address, bundles

    def add(self, name: str, bundle: Path) -> None:
        self._bundles[name] = bundle

    def do(self, expression: str, *arguments: Any) -> Any:
        """Return the awaited value of a JavaScript function called with `arguments`."""
        given = ", ".join(json.dumps(argument) for argument in arguments)
        return self.view.evaluate(f"({expression})({given})", seconds=240)


@contextmanager
def _site() -> Iterator[Site]:
    if not (PAGE / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("needs onnxruntime-web, which is not installed; run: make browser")
    bundles: dict[str, Path] = {}
    with page() as view, make_server(bundles) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        view.open(f"{address}/index.html")
        view.evaluate(_HARNESS)
        yield Site(view, address, bundles)
        server.shutdown()


@pytest.fixture(scope="module")
def site(exports: Any) -> Iterator[Site]:
    with _site() as found:
        for family, made in exports.items():
            found.add(family, made.bundle)
        yield found


def _python_tokens(bundle: Path, prompt: list[int], count: int) -> list[int]:
    session = OrtSession(bundle, threads=1)
    return list(islice(generate(session, prompt, count, GREEDY, session.config.eos_ids), count))


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_a_page_writes_the_tokens_and_the_text_that_python_writes(site: Site, exports: Any, family: str) -> None:
    bundle = exports[family].bundle
    codec = TextCodec(bundle)
    written = site.do("write", family, "Once upon a time", 24)
    tokens = _python_tokens(bundle, codec.encode("Once upon a time"), 24)
    assert written["tokens"] == tokens
    assert "".join(written["pieces"]) == "".join(codec.detokenizer().stream(tokens))


def test_two_threads_write_what_one_writes(site: Site) -> None:
    script = """async () => {
      const { Model } = await import('/client.js');
      const model = await Model.open('/bundles/llama/', { threads: 2 });
      const stream = model.generate('Once upon a time', { maxNewTokens: 24 });
      for (;;) {
        const { value, done } = await stream.next();
        if (done) return model.close(), [model.about.threads, value.tokens];
      }
    }"""
    assert site.do(script) == [2, site.do("write", "llama", "Once upon a time", 24)["tokens"]]


def test_text_becomes_the_same_tokens_as_in_python(site: Site, exports: Any) -> None:
    codec = TextCodec(exports["llama"].bundle)
    script = """async (texts) => {
      const { readBundle } = await import('/bundle.js'), { TextCodec } = await import('/text.js');
      const codec = await TextCodec.open(await readBundle('/bundles/llama/'));
      return texts.map(text => [codec.encode(text), codec.decode(codec.encode(text))]);
    }"""
    for text, (tokens, decoded) in zip(TEXTS, site.do(script, TEXTS), strict=True):
        assert tokens == codec.encode(text) and decoded == codec.decode(tokens), text


def test_a_character_of_several_tokens_is_streamed_whole(site: Site, exports: Any) -> None:
    codec = TextCodec(exports["llama"].bundle)
    tokens = codec.encode("漢🙂字")
    script = """async (ids) => {
      const { readBundle } = await import('/bundle.js'), { TextCodec, Detokenizer } = await import('/text.js');
      const codec = await TextCodec.open(await readBundle('/bundles/llama/'));
      const stream = new Detokenizer(list => codec.decode(list));
      return [...ids.map(id => stream.push(id)), stream.flush()];
    }"""
    pieces = site.do(script, tokens)
    assert len(tokens) > 3 and "".join(pieces) == "漢🙂字" and not any("\ufffd" in piece for piece in pieces)
    cut = site.do(script, tokens[:-1])
    assert "".join(cut).startswith("漢🙂") and "\ufffd" not in "".join(cut)


def test_text_streams_and_a_stopped_generation_leaves_the_next_one_right(site: Site) -> None:
    whole = site.do("write", "llama", "Once upon", 60)
    stopped = site.do("write", "llama", "Once upon", 60, 2)
    assert len(whole["pieces"]) > 10 and not whole["cancelled"]
    assert stopped["cancelled"] and len(stopped["tokens"]) < len(whole["tokens"])
    assert stopped["tokens"] == whole["tokens"][: len(stopped["tokens"])]
    assert site.do("write", "llama", "Once upon", 60) == whole


def test_a_seed_repeats_its_draw_and_temperature_zero_is_the_largest(site: Site) -> None:
    script = """async () => {
      const { chooser } = await import('/generate.js');
      const logits = Float32Array.from({ length: 50 }, (_, n) => Math.sin(n * 7.1) * 3);
      const draws = choose => Array.from({ length: 400 }, () => choose(logits));
      const warm = seed => ({ temperature: 1, seed });
      return [{}, warm(5), warm(5), warm(6), { ...warm(5), topK: 2 }].map(chooser).map(draws);
    }"""
    greedy, first, again, other, two = site.do(script)
    assert len(set(greedy)) == 1 and first == again != other
    assert len(set(first)) > 10 and len(set(two)) == 2 and greedy[0] in two


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("fault(open_('none'))", "expected a folder of `edgeslim export`"),
        ("fault(write('llama', [], 4))", "there is no token to feed"),
        ("fault(write('llama', [331], 4))", "token ids must be in [0, 331), got 331"),
        ("fault(write('llama', Array(300).fill(1), 4))", "300 tokens do not fit the model's context of 256"),
    ],
)
def test_a_fault_is_one_line_that_says_what_was_expected(site: Site, call: str, message: str) -> None:
    said = site.view.evaluate(call)
    assert said.startswith("BundleError: ") and message in said and "\n" not in said


def test_a_bundle_of_another_format_or_without_weights_is_refused(site: Site, bundle_copy: Path) -> None:
    site.add("spoilt", bundle_copy)
    manifest = bundle_copy / "edgeslim.json"
    content = json.loads(manifest.read_text())
    (bundle_copy / "model.onnx.data").unlink()
    assert "the server answers 404" in site.view.evaluate("fault(open_('spoilt'))")
    manifest.write_text(json.dumps({**content, "format": 99}))
    assert "has format 99, this page reads format 1" in site.view.evaluate("fault(open_('spoilt'))")


def test_the_profile_has_the_keys_of_pythons_and_goes_into_a_report(site: Site, tmp_path: Path) -> None:
    from edgeslim.reporting.report import write_report

    site.do("open_", "llama")
    measured = site.do("o => models.llama.profile(o)", {"promptTokens": 16, "newTokens": 8, "repeats": 2, "warmup": 1})
    assert measured.keys() - {"bundle"} <= Profile.from_json(measured).to_json().keys()
    assert measured["engine"].startswith("onnxruntime-web 1.") and measured["decode_tok_s_p50"] > 0
    assert measured["ttft_ms_p50"] <= measured["ttft_ms_p90"] and measured["load_s"] > 0
    write_report([measured], tmp_path / "report.md")
    assert "| llama |" in (tmp_path / "report.md").read_text()


def test_the_example_page_loads_writes_and_measures(site: Site) -> None:
    with _site() as fresh:
        fresh.add("llama", site._bundles["llama"])
        fresh.view.size(390, 844, phone=True)
        fresh.view.open(f"{fresh.address}/index.html")
        script = """async () => {
          const until = async test => { while (!test()) await new Promise(resolve => setTimeout(resolve, 20)) };
          const $ = id => document.getElementById(id), press = form => $(form).querySelector('button').click();
          await until(() => $('bundle').options.length);
          press('open');
          await until(() => $('status').textContent.includes('is ready'));
          $('count').value = 5; press('write');
          await until(() => $('status').textContent.includes('Written'));
          $('repeats').value = 1; $('promptTokens').value = 8; $('newTokens').value = 4; press('measure');
          await until(() => $('status').textContent === 'Measured.');
          return [$('text').textContent, $('figures').innerText, document.documentElement.scrollWidth];
        }"""
        text, figures, width = fresh.do(script)
        assert len(text) > len("Return a list of") and "not measured" in figures and "tok/s" in figures
        assert width <= 390 and fresh.view.log == []
        assert all(url.startswith((fresh.address, "data:", "blob:")) for url in fresh.view.requests)


def test_the_server_isolates_the_page_and_keeps_to_its_folders(site: Site) -> None:
    with urllib.request.urlopen(f"{site.address}/bundles/llama/config.json") as answer:
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert site.view.evaluate("crossOriginIsolated") is True
    for path in ("bundles/none/config.json", "bundles/llama/../llama/config.json", "bundles/llama/%2e%2e/x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{site.address}/{path}")


@pytest.mark.parametrize("form", ["gather", "int8 bodies"])
@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_blocks_and_packed_int8_by_function_bodies_write_pythons_tokens(
    site: Site, exports: Any, family: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, bundle, name = exports[family].checkpoint, tmp_path / "bundle", f"{family}-{form.split()[0]}"
    if form == "gather":
        checkpoint = _in_blocks(checkpoint, tmp_path / "pruned", rows=32)
    bundle.mkdir()
    lowering = (
        {"lowering": "gather", "weights": "fp32"} if form == "gather" else {"lowering": "kernel", "weights": "int8"}
    )
    export_checkpoint(checkpoint, bundle, library=False, **lowering)  # type: ignore[arg-type]
    site.add(name, bundle)
    monkeypatch.setenv("EDGESLIM_LIBRARY", "none")  # stock onnxruntime, as in the page
    codec, lengths = TextCodec(bundle), set()
    for prompt in PROMPTS:
        tokens = _python_tokens(bundle, codec.encode(prompt), 32)
        assert site.do("write", name, prompt, 32)["tokens"] == tokens, prompt
        lengths.add(len(tokens))
    assert 32 in lengths  # not all of them ended at once


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt_neox", "nemotron_h"])
def test_norms_of_queries_and_keys_and_other_functions_than_silu_write_pythons_tokens(
    site: Site, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    export_checkpoint(save_tiny(tmp_path / "c", family), bundle, library=False, lowering="kernel", weights="int8")
    site.add(family, bundle)
    monkeypatch.setenv("EDGESLIM_LIBRARY", "none")
    tokens = _python_tokens(bundle, TextCodec(bundle).encode(PROMPTS[1]), 16)
    assert site.do("write", family, PROMPTS[1], 16)["tokens"] == tokens


def _in_blocks(checkpoint: Path, folder: Path, rows: int) -> Path:
    """Prune a quarter of `checkpoint` so that `rows` outputs share their inputs."""
    from edgeslim import api

    text = str(ROOT / "README.md")  # magnitudes need none, but pruning asks for it
    given = {"method": "magnitude", "pattern": f"block:{rows}", "sparsity": 0.25, "samples": 2, "seqlen": 32}
    api.prune(checkpoint, folder, calib=text, **given)
    return folder


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled models as the README says to export them for a page, by name: float32, blocks, packed int8."""
    from edgeslim import api

    made, folder = {}, tmp_path_factory.mktemp("portable")
    for name in ("tiny-llama", "tiny-mamba2"):
        checkpoint = ROOT / "examples/models" / name
        blocks = _in_blocks(checkpoint, folder / f"{name}-blocks", rows=64)
        for form, source, lowering, weights in (
            ("float32", checkpoint, "dense", "fp32"),
            ("gather", blocks, "gather", "fp32"),
            ("int8", checkpoint, "kernel", "int8"),
        ):
            made[f"{name}-{form}"] = folder / f"{name}-{form}"
            api.export(source, made[f"{name}-{form}"], library=False, lowering=lowering, weights=weights)
    return made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bundled_models_write_the_same_tokens_in_a_page(
    portable: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESLIM_LIBRARY", "none")  # stock onnxruntime, as in the page
    with _site() as site:
        for name, bundle in portable.items():
            site.add(name, bundle)
            codec = TextCodec(bundle)
            for prompt in PROMPTS:
                tokens = _python_tokens(bundle, codec.encode(prompt), 48)
                assert site.do("write", name, prompt, 48)["tokens"] == tokens, (name, prompt)
            measured = site.do("(name, o) => models[name].profile(o)", name, {"repeats": 3})
            site.do("name => { models[name].close(); delete models[name] }", name)
            assert measured["decode_tok_s_p50"] > 0
            with capsys.disabled():
                print(f"\n{json.dumps(measured)}")
