"""A web server on this machine that breaks off, refuses and forgets as told."""

import contextlib
import http.server
import threading
import time


class Site:
    """What the server has and how it behaves.

    Attributes:
        files: Path -> content.
        cut_after: Bytes after which each of the next answers breaks off, one entry an answer; None is whole.
        ranges: Whether it can continue a file.
        status: An error to answer instead of a file, one entry an answer.
        drip: Seconds between the bytes of an answer after its headers; None sends at once.
        asked: (path, Range header) of every request.
    """

    def __init__(self, files):
        self.files = files
        self.cut_after, self.status, self.asked = [], [], []
        self.ranges, self.drip = True, None
        self.url = ""


@contextlib.contextmanager
def serve(files):
    """Serve files on the loopback interface."""
    site = Site(files)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            site.asked.append((self.path, wanted))
            status = site.status.pop(0) if site.status else None
            data = site.files.get(self.path)
            if status or data is None:
                self.send_error(status or 404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
            if start and start >= len(data):
                self.send_error(416)
                return
            cut = site.cut_after.pop(0) if site.cut_after else None  # before the client can ask for the next answer
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            body = data[start:] if cut is None else data[start : start + cut]
            with contextlib.suppress(ConnectionError):  # the client has had enough
                for place in range(0, len(body), 1 if site.drip else max(len(body), 1)):
                    self.wfile.write(body[place : place + 1] if site.drip else body)
                    time.sleep(site.drip or 0)
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
