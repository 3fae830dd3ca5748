"""Serve the bundle to browsers on this machine."""

import argparse
import functools
import http.server
from pathlib import Path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, with headers that let LiteRT.js use threads."""

    def guess_type(self, path):
        """Return the content type of a file, without the machine's own table."""
        types = {".js": "text/javascript", ".wasm": "application/wasm"}
        return types.get(Path(path).suffix) or super().guess_type(path)

    def end_headers(self):
        """End the headers of a response."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


def main():
    """Serve the folder above this file."""
    parser = argparse.ArgumentParser(description="Serve the bundle on http://127.0.0.1:PORT/web/")
    parser.add_argument("--port", type=int, default=8000, help="0 is any free port")
    bundle = Path(__file__).resolve().parent.parent
    handler = functools.partial(Handler, directory=str(bundle))
    with http.server.ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/web/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
