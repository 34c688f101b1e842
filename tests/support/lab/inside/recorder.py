"""Web server that prints who fetched what, run inside a namespace: recorder.py PORT

One JSON array [time, peer, path] for each request.
"""

import http.server
import json
import sys
import time


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        print(json.dumps([time.time(), self.client_address[0], self.path]), flush=True)
        body = f"{self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


with http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), _Handler) as server:
    print("ready", flush=True)
    server.serve_forever()
