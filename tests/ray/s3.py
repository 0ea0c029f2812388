"""A real S3 endpoint that fails on demand: moto in its own process, and in front of it the proxy that injects faults.

The proxy runs in threads of the test's own process. A pyarrow output stream that is dropped there without `close()` writes
its rest while it holds the interpreter lock, so the proxy can't answer until the client gives up: close it, or do that in a child.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import IO, Any

from tests.ray.helpers import free_port
from tests.ray.s3_proxy import Counts, Faults, Proxy

REGION = "us-east-1"
ACCESS_KEY, SECRET_KEY = "test", "test"
MOTO_STARTS_IN = 60.0
# Ends with the process that started it, however that one ends: its standard input is closed then.
MOTO = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from moto.server import main
main(sys.argv[1:])
"""


class S3Server:
    """moto and the proxy before it, for as long as the context lasts. No fault is set at first.

    Attributes:
        endpoint: URL of the proxy: what the program under test is given.
        direct: URL of moto itself: for preparing and inspecting without faults.
    """

    def __init__(self) -> None:
        self._port = free_port()
        self.direct = f"http://127.0.0.1:{self._port}"
        self._proxy = Proxy(("127.0.0.1", self._port))
        self.endpoint = f"http://127.0.0.1:{self._proxy.server_port}"
        self._moto: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._proxy.serve_forever, daemon=True)

    def __enter__(self) -> S3Server:
        log = tempfile.TemporaryFile()
        command = [sys.executable, "-c", MOTO, "-H", "127.0.0.1", "-p", str(self._port)]
        self._moto = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        self._thread.start()
        try:
            _wait_for(self._moto, self._port, log)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        if self._moto is not None:
            self._moto.terminate()
            try:
                self._moto.wait(10)
            except subprocess.TimeoutExpired:
                self._moto.kill()
                self._moto.wait(10)

    @property
    def counts(self) -> Counts:
        """What has been seen since the faults were last set."""
        return self._proxy.counts

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead any S3 client of a child process to the proxy."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            # Without it the SDKs ask a cloud machine's metadata address, and wait seconds for nobody.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def configure(self, faults: Faults | None = None) -> None:
        """Set the faults (none by default) and start counting anew."""
        self._proxy.configure(faults or Faults())

    def client(self, *, endpoint: str | None = None, **settings: Any) -> Any:
        """A boto3 client of moto itself, or of `endpoint`; `settings` go to `botocore.config.Config`."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=endpoint or self.direct,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(**settings),
        )

    def make_bucket(self, name: str) -> str:
        """Make an empty bucket and give its URI."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


def _wait_for(moto: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + MOTO_STARTS_IN
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if moto.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise RuntimeError(f"moto does not answer on port {port}: {log.read().decode(errors='replace')[-2000:]}")
        time.sleep(0.05)
