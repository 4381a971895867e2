"""An S3 store on this machine (moto), reached through a proxy that fails, dawdles and breaks off as told.

    with object_store.running() as store:          # or the fixture `object_store` of conftest.py, one a module
        address = store.put("bucket", {"mine/a.png": data})        # "s3://bucket"
        store.trouble("503", times=2, match=r"GET .*a\\.png")       # the next two such requests
        ... store.requests, store.count(r"GET ") ...

The environment is that of a user: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_DEFAULT_REGION.
"""

import contextlib
import http.client
import http.server
import os
import re
import threading
import time

KEY, SECRET = "somebodys-key", "nobodys-secret-4711"
"""The credentials in the environment. The proxy refuses other keys; SECRET must appear in no message, file or log."""

ANSWERS = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "403": (403, "AccessDenied", "Access Denied"),
    "key": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    "secret": (403, "SignatureDoesNotMatch", "The request signature we calculated does not match."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "region": (400, "AuthorizationHeaderMalformed", "The region 'us-east-1' is wrong; expecting 'eu-central-1'"),
}
"""Kind of trouble -> status, code and message of the answer; besides "cut", "slow" and "hang"."""


class Trouble:
    """What happens to requests that match.

    Attributes:
        kind: A key of `ANSWERS`; "cut": the body breaks off in its middle; "slow": it comes in pieces, over `seconds`;
            "hang": no answer for `seconds`.
        left: Number of requests that it still happens to.
    """

    def __init__(self, kind, times, match, seconds):
        assert kind in ANSWERS or kind in ("cut", "slow", "hang")
        self.kind, self.left, self.match, self.seconds = kind, times, re.compile(match), seconds


class Store:
    """The store.

    Attributes:
        endpoint: Address of the proxy.
        direct: Address of moto itself, without trouble and without the proxy's cost.
        requests: "METHOD path?query" of every request through the proxy, in order.
        known: Access keys that are accepted.
    """

    def __init__(self, endpoint, direct):
        self.endpoint, self.direct = endpoint, direct
        self.requests, self.known, self._troubles, self._lock = [], {KEY}, [], threading.Lock()

    @property
    def environment(self):
        """The variables that a user sets."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self):
        """A client of another library, which is not the one under test, and which meets no trouble."""
        import boto3

        return boto3.client("s3", endpoint_url=self.direct, region_name="us-east-1",
                            aws_access_key_id=KEY, aws_secret_access_key=SECRET)  # fmt: skip

    def put(self, bucket, files):
        """Write objects into a bucket, which is made if it is missing; returns its address."""
        client = self.client()
        client.create_bucket(Bucket=bucket)
        for key, data in files.items():
            client.put_object(Bucket=bucket, Key=key, Body=data)
        client.close()
        return f"s3://{bucket}"

    def put_folder(self, bucket, folder, prefix=""):
        """Write a folder's files into a bucket, below a prefix such as "mine/"; returns the address of that."""
        files = {f"{prefix}{path.relative_to(folder).as_posix()}": path.read_bytes()
                 for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip
        return f"{self.put(bucket, files)}/{prefix}".rstrip("/")

    def content(self, bucket, prefix=""):
        """All objects of a bucket: key -> data."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
        found = {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
        client.close()
        return found

    def trouble(self, kind, *, times=1, match="", seconds=0.0):
        """Let the next requests that match (a regular expression for "METHOD path?query") meet trouble."""
        with self._lock:
            self._troubles.append(Trouble(kind, times, match, seconds))

    def heal(self):
        """Forget all trouble that has not happened yet, and all requests."""
        with self._lock:
            self._troubles.clear()
            self.requests.clear()

    def count(self, match=""):
        """Number of requests that match a regular expression."""
        return sum(re.search(match, request) is not None for request in self.requests)

    def met(self, request):
        """Log a request; returns the trouble that it meets, if any."""
        with self._lock:
            self.requests.append(request)
            for trouble in self._troubles:
                if trouble.left > 0 and trouble.match.search(request):
                    trouble.left -= 1
                    return trouble
        return None


def _handler(store, host, port):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one(self):
            body = self._body()
            trouble = store.met(f"{self.command} {self.path}")
            key = re.search(r"Credential=([^/]*)/", self.headers.get("Authorization", ""))
            kind = trouble.kind if trouble else None
            if key and key[1] not in store.known:
                kind = "key"
            if kind == "hang":
                time.sleep(trouble.seconds)
                self.close_connection = True
                return
            if kind in ANSWERS:
                self._refuse(*ANSWERS[kind])
                return
            connection = http.client.HTTPConnection(host, port)
            headers = {name: value for name, value in self.headers.items()
                       if name.lower() not in ("transfer-encoding", "expect", "connection")}  # fmt: skip
            if body:
                headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body=body or None, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            self._answer(answer, data, kind, trouble)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815  # as the base class calls them

        def _body(self):
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _refuse(self, status, code, message):
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _answer(self, answer, data, kind, trouble):
            self.send_response(answer.status)
            length = None
            for name, value in answer.getheaders():
                if name.lower() == "content-length":
                    length = value  # of a HEAD, that of the body that is not sent
                elif name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            with contextlib.suppress(ConnectionError):  # the client has had enough
                if kind == "cut":
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                elif kind == "slow":
                    step = max(1, len(data) // 10)
                    for place in range(0, len(data), step):
                        self.wfile.write(data[place : place + step])
                        time.sleep(trouble.seconds / 10)
                else:
                    self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    return Handler


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that was killed, or had enough, is no error."""


@contextlib.contextmanager
def running():
    """Start the store and set the environment, for as long as the block lasts."""
    import logging

    import fsspec
    from moto.server import ThreadedMotoServer  # here, because it imports for seconds

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    store = Store("", f"http://{host}:{port}")
    proxy = _Server(("127.0.0.1", 0), _handler(store, host, port))
    proxy.daemon_threads = True
    store.endpoint = f"http://127.0.0.1:{proxy.server_port}"
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    before = {name: os.environ.get(name) for name in (*store.environment, "AWS_PROFILE", "AWS_SESSION_TOKEN")}
    os.environ.update(store.environment)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)
    system = fsspec.get_filesystem_class("s3")
    system.clear_instance_cache()
    try:
        yield store
    finally:
        system.clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        moto.stop()
