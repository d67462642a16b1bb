"""Serve the page of this folder and bundles beside it: python -m edgeslim.runtime.web.serve BUNDLE...

A page gets threads and fine timers only where it is cross-origin isolated, which two headers of the server decide
(https://developer.mozilla.org/docs/Web/API/Window/crossOriginIsolated). Needs Python's standard library alone.
"""

import argparse
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PAGE = Path(__file__).parent
BUNDLES = "bundles"
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:",
    "Cache-Control": "no-cache",
}


class Handler(SimpleHTTPRequestHandler):
    """Files of the page under `/`, those of each bundle under `/bundles/NAME/`, their names under `/bundles.json`."""

    extensions_map = {  # noqa: RUF012  # the base class's
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".json": "application/json",
    }

    def __init__(self, *arguments: Any, bundles: Mapping[str, Path], quiet: bool, **options: Any) -> None:
        self._bundles, self._quiet = bundles, quiet
        super().__init__(*arguments, directory=str(PAGE), **options)

    def do_GET(self) -> None:
        if urlsplit(self.path).path == f"/{BUNDLES}.json":
            body = json.dumps(list(self._bundles)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            super().do_GET()

    def translate_path(self, path: str) -> str:
        first, _, rest = unquote(urlsplit(path).path).lstrip("/").partition("/")
        name, _, file = rest.partition("/")
        if first != BUNDLES:
            return super().translate_path(path)
        inside = self._bundles.get(name)
        if inside is None or Path(file).is_absolute() or ".." in Path(file).parts:
            return str(PAGE / "no such file")
        return str(inside / file)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        if not self._quiet:
            super().log_message(format, *arguments)


def make_server(bundles: Mapping[str, Path], *, port: int = 0, quiet: bool = True) -> ThreadingHTTPServer:
    """Return a server on loopback for the page and `bundles`, by the names they get; port 0 takes a free one."""
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, bundles=bundles, quiet=quiet))


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m edgeslim.runtime.web.serve", description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="a bundle folder")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if missing := [str(bundle) for bundle in given.bundles if not (bundle / "model.onnx").is_file()]:
        parser.error(f"{missing[0]}: not a bundle: it has no model.onnx")
    if not (PAGE / "node_modules").is_dir():
        parser.error(f"{PAGE}: onnxruntime-web is not installed there; run: npm ci --ignore-scripts --prefix {PAGE}")
    with make_server({b.resolve().name: b.resolve() for b in given.bundles}, port=given.port, quiet=False) as server:
        print(f"http://127.0.0.1:{server.server_port}/")
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
