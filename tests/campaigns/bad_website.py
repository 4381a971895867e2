"""A web server on this machine that refuses, forgets, breaks off and dawdles."""

import http.server
import os
import time


def forever(root, told):
    """Serve until killed; writes the port to the pipe `told`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            photo = (root / "photos" / "good.jpg").read_bytes()
            path = self.path.partition("?")[0]
            if path in ("/403.jpg", "/404.jpg", "/500.jpg"):
                self.send_error(int(path[1:4]))
            elif path == "/page.html":
                self.answer(b"<html>no photo</html>" * 10, "text/html")
            elif path == "/empty.jpg":
                self.answer(b"", "image/jpeg")
            elif path == "/cut.jpg":
                self.answer(photo, "image/jpeg", sent=len(photo) // 2)
            elif path == "/ftp.jpg":
                self.redirect("ftp://127.0.0.1/x.jpg")
            elif path == "/file.jpg":
                self.redirect("file:///etc/passwd")
            elif path == "/round.jpg":
                self.redirect("/round.jpg")
            elif path == "/endless.jpg":
                self.send_response(200)
                self.end_headers()
                while True:
                    self.wfile.write(bytes(1 << 20))
            elif path == "/slow.jpg":
                self.send_response(200)
                self.end_headers()
                while True:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.2)
            elif path == "/good.jpg":
                self.answer(photo, "image/jpeg")
            else:
                self.send_error(404)

        def answer(self, body, kind, sent=None):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:sent])
            self.close_connection = True

        def redirect(self, place):
            self.send_response(302)
            self.send_header("Location", place)
            self.end_headers()

        def handle(self):
            try:
                super().handle()
            except OSError:  # the client has left
                self.close_connection = True

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    os.write(told, str(server.server_port).encode())
    os.close(told)
    server.serve_forever()
