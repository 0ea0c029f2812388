"""An HTTP proxy for tests that passes S3 requests on and breaks some of them.

Bytes go through as they are, in pieces, with HTTP/1.1 keep-alive, HEAD, chunked bodies and `Expect: 100-continue`. What it
breaks is told by a `Faults`, which can be replaced while clients are connected.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast
from urllib.parse import parse_qs, urlsplit

PIECE = 1 << 16
WRITES = ("PUT", "POST", "DELETE")

SLOW_DOWN = (503, "SlowDown", "Please reduce your request rate.")
INTERNAL_ERROR = (500, "InternalError", "We encountered an internal error. Please try again.")
ACCESS_DENIED = (403, "AccessDenied", "Access Denied")
INVALID_KEY = (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
Answer = tuple[int, str, str]


@dataclass(frozen=True)
class Faults:
    """What goes wrong from now on. The default is nothing.

    Attributes:
        slow_down_every: every n-th request is answered `503 SlowDown`; 0 for none.
        drop_every: every n-th response with a body is cut off in its middle; 0 for none.
        fail_puts_after: every PUT (objects, parts, copies) after this many is refused; None for none.
        put_failure: how it is refused: `500 InternalError`, or a connection reset before anything is answered.
        read_only: PUT, POST and DELETE are answered `403 AccessDenied`.
        unknown_key: every request is answered `403 InvalidAccessKeyId`, as for wrong credentials (moto checks none).
    """

    slow_down_every: int = 0
    drop_every: int = 0
    fail_puts_after: int | None = None
    put_failure: Literal["error", "reset"] = "error"
    read_only: bool = False
    unknown_key: bool = False


@dataclass
class Counts:
    """What the proxy has seen since its faults were set.

    Attributes:
        methods: requests by HTTP method.
        operations: the same by the S3 operation that writing consists of (`PutObject`, `UploadPart`, ...) or method.
        faults: faults injected, by name: `slow_down`, `drop`, `put`, `read_only`, `unknown_key`.
        bodies: responses with a body that came from S3.
        errors: what went wrong inside the proxy; a test should find none.
    """

    methods: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    bodies: int = 0
    errors: list[str] = field(default_factory=list)


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `upstream` and breaks some of them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.faults = Faults()
        self.counts = Counts()
        self._lock = threading.Lock()

    def configure(self, faults: Faults) -> None:
        """Replace the faults and start counting anew."""
        with self._lock:
            self.faults, self.counts = faults, Counts()

    def admit(self, method: str, operation: str) -> Answer | Literal["reset"] | None:
        """Count a request, and what to answer in S3's place, if anything."""
        with self._lock:
            faults, counts = self.faults, self.counts
            counts.methods[method] += 1
            counts.operations[operation] += 1
            if faults.unknown_key:
                counts.faults["unknown_key"] += 1
                return INVALID_KEY
            if faults.read_only and method in WRITES:
                counts.faults["read_only"] += 1
                return ACCESS_DENIED
            if (
                faults.fail_puts_after is not None
                and method == "PUT"
                and counts.methods["PUT"] > faults.fail_puts_after
            ):
                counts.faults["put"] += 1
                return "reset" if faults.put_failure == "reset" else INTERNAL_ERROR
            if faults.slow_down_every and counts.methods.total() % faults.slow_down_every == 0:
                counts.faults["slow_down"] += 1
                return SLOW_DOWN
        return None

    def drops_body(self) -> bool:
        """Count a response with a body, and whether it is to be cut off."""
        with self._lock:
            self.counts.bodies += 1
            if self.faults.drop_every == 0 or self.counts.bodies % self.faults.drop_every:
                return False
            self.counts.faults["drop"] += 1
            return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep an error for the test to see; a client that hangs up is none."""
        error = sys.exception()
        from_upstream = isinstance(error, ConnectionRefusedError | http.client.RemoteDisconnected)
        if from_upstream or not isinstance(error, ConnectionError):
            self.counts.errors.append(repr(error))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Header and body are separate small writes: with Nagle's algorithm each response would wait for a delayed ACK.
    disable_nagle_algorithm = True
    _continue_due = False

    @property
    def proxy(self) -> Proxy:
        return cast(Proxy, self.server)

    def handle_expect_100(self) -> bool:
        # S3 refuses a request before its body is sent, so the go-ahead waits until nothing speaks against it.
        self._continue_due = True
        return True

    def log_message(self, format: str, *args: Any) -> None:
        """A test's output has no room for a line per request."""

    def do_GET(self) -> None:
        answer = self.proxy.admit(self.command, operation(self.command, self.path, "x-amz-copy-source" in self.headers))
        if answer == "reset":
            self._reset()
        elif answer is not None:
            self._refuse(answer)
        else:
            self._pass_on()
        self._continue_due = False

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _pass_on(self) -> None:
        upstream = http.client.HTTPConnection(*self.proxy.upstream, timeout=60)
        with contextlib.closing(upstream):
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.putheader("Connection", "close")
            upstream.endheaders()
            if self._continue_due:
                self.send_response_only(100)
                self.end_headers()
            for piece in self._body():
                upstream.send(piece)
            self._answer_with(upstream.getresponse())

    def _answer_with(self, response: http.client.HTTPResponse) -> None:
        # `length` is None for a chunked body, and 0 where there is none, whatever the header says.
        length = response.length
        cut = length != 0 and self.proxy.drops_body()
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if cut:
            body = response.read()
            self._send_piece(body[: len(body) // 2], chunked=length is None)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        while piece := response.read(PIECE):
            self._send_piece(piece, chunked=length is None)
        if length is None:
            self.wfile.write(b"0\r\n\r\n")

    def _send_piece(self, piece: bytes, *, chunked: bool) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)

    def _body(self) -> Iterator[bytes]:
        """The request's body as it is on the wire, with the framing of a chunked one and its trailers."""
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            yield from self._read(int(self.headers.get("Content-Length", 0)))
            return
        while True:
            line = self.rfile.readline()
            yield line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            yield from self._read(size + len(b"\r\n"))
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            yield line
        yield b"\r\n"

    def _read(self, size: int) -> Iterator[bytes]:
        while size > 0:
            piece = self.rfile.read(min(size, PIECE))
            if not piece:
                raise ConnectionResetError("the client left before its body was complete")
            size -= len(piece)
            yield piece

    def _refuse(self, answer: Answer) -> None:
        status, code, message = answer
        if self._continue_due:
            # The client may or may not send the body now: only a new connection is sure to start with a request.
            self.close_connection = True
        else:
            for _ in self._body():
                pass
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>{message}</Message>"
            f"<RequestId>proxy</RequestId><HostId>proxy</HostId></Error>"
        ).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("x-amz-request-id", "proxy")
        self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(text)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _reset(self) -> None:
        """Close so that the client sees a reset, not an end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The reader and writer made of this socket would put its end off: it is closed beneath them.
        socket.close(self.connection.detach())


def operation(method: str, path: str, copies: bool) -> str:
    """The S3 operation of a write, or the method of anything else."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    is_object = "/" in parts.path.strip("/")
    if method == "PUT" and is_object:
        part = "UploadPart" if "partNumber" in query else "PutObject"
        return {"UploadPart": "UploadPartCopy", "PutObject": "CopyObject"}[part] if copies else part
    if method == "POST" and "uploads" in query:
        return "CreateMultipartUpload"
    if "uploadId" in query:
        return {"POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}.get(method, method)
    return method
