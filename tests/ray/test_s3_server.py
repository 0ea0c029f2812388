"""The S3 endpoint for tests gives back what it was given, and breaks exactly what it is told to break."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError, ConnectionClosedError, IncompleteReadError, ResponseStreamingError

from tests.ray.s3 import S3Server
from tests.ray.s3_proxy import Faults

MB = 1 << 20
NO_RETRIES = {"retries": {"mode": "standard", "total_max_attempts": 1}}


def content(size: int) -> bytes:
    """Bytes in which no piece is like another, so that a lost or swapped one shows."""
    return hashlib.shake_256(b"content").digest(size)


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    return s3.make_bucket("bytes").removeprefix("s3://")


@pytest.fixture
def plain(s3: S3Server) -> Any:
    """A client of the proxy that never tries again."""
    return s3.client(endpoint=s3.endpoint, **NO_RETRIES)


@pytest.fixture(autouse=True)
def no_faults(s3: S3Server) -> Iterator[None]:
    s3.configure()
    yield
    assert s3.counts.errors == []
    s3.configure()


def raw_request(endpoint: str, request: str) -> bytes:
    """What the proxy sends back to these very bytes, until it closes or is silent for a second."""
    with socket.create_connection(("127.0.0.1", int(endpoint.rsplit(":", 1)[1])), timeout=1) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        received = b""
        try:
            while piece := connection.recv(1 << 16):
                received += piece
        except TimeoutError:
            pass
        return received


def test_an_object_goes_through_unchanged_in_one_put(s3: S3Server, plain: Any, bucket: str) -> None:
    data = content(MB)
    plain.put_object(Bucket=bucket, Key="one", Body=data)
    assert s3.counts.operations == {"PutObject": 1}
    assert s3.client().get_object(Bucket=bucket, Key="one")["Body"].read() == data
    assert plain.get_object(Bucket=bucket, Key="one")["Body"].read() == data
    assert plain.head_object(Bucket=bucket, Key="one")["ContentLength"] == MB
    assert s3.counts.methods == {"PUT": 1, "GET": 1, "HEAD": 1}


def test_an_object_of_several_parts_goes_through_unchanged(
    s3: S3Server, plain: Any, bucket: str, tmp_path: Path
) -> None:
    data = content(12 * MB)
    source = tmp_path / "source"
    source.write_bytes(data)
    parts = TransferConfig(multipart_threshold=5 * MB, multipart_chunksize=5 * MB)
    plain.upload_file(str(source), bucket, "parts", Config=parts)
    assert s3.counts.operations == {"CreateMultipartUpload": 1, "UploadPart": 3, "CompleteMultipartUpload": 1}
    plain.download_file(bucket, "parts", str(tmp_path / "back"), Config=parts)
    assert (tmp_path / "back").read_bytes() == data


def test_a_chunked_body_reaches_s3_whole_and_the_connection_stays_usable(s3: S3Server, bucket: str) -> None:
    connection = http.client.HTTPConnection(s3.endpoint.removeprefix("http://"), timeout=5)
    pieces = [content(n) for n in (1, 70_000, 300_000)]
    # moto shows a private object to nobody unnamed, and checks no signature.
    named = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, Signature=0"}
    connection.request("PUT", f"/{bucket}/chunked", body=iter(pieces), encode_chunked=True, headers=named)
    assert connection.getresponse().read() == b""
    opened = connection.sock
    connection.request("GET", f"/{bucket}/chunked", headers=named)
    assert connection.getresponse().read() == b"".join(pieces)
    assert connection.sock is opened
    connection.close()


def test_go_ahead_for_a_body_comes_only_when_the_request_is_not_refused(s3: S3Server, bucket: str) -> None:
    head = f"PUT /{bucket}/waiting HTTP/1.1\nHost: x\nContent-Length: 3\nExpect: 100-continue\n\n"
    assert raw_request(s3.endpoint, head).split(b"\r\n")[0] == b"HTTP/1.1 100 Continue"
    s3.configure(Faults(slow_down_every=1))
    assert raw_request(s3.endpoint, head).split(b"\r\n")[0] == b"HTTP/1.1 503 Service Unavailable"


def test_a_refused_body_is_not_taken_for_the_next_request(s3: S3Server, bucket: str) -> None:
    s3.configure(Faults(slow_down_every=2))
    put = f"PUT /{bucket}/k HTTP/1.1\nHost: x\nContent-Length: 4\n\nDATA"
    get = f"GET /{bucket}/nothing HTTP/1.1\nHost: x\n\n"
    # Three requests at once on one connection: bytes left over from the second would spoil the third.
    received = raw_request(s3.endpoint, get + put + get)
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"404", b"503", b"404"]


def test_every_nth_request_is_answered_slow_down(s3: S3Server, plain: Any, bucket: str) -> None:
    plain.put_object(Bucket=bucket, Key="k", Body=b"v")
    s3.configure(Faults(slow_down_every=3))
    codes = []
    for _ in range(7):
        try:
            codes.append(plain.get_object(Bucket=bucket, Key="k")["Body"].read())
        except ClientError as e:
            codes.append(e.response["Error"]["Code"])
    assert codes == [b"v", b"v", "SlowDown", b"v", b"v", "SlowDown", b"v"]
    assert s3.counts.faults == {"slow_down": 2}
    assert s3.counts.methods == {"GET": 7}


def test_every_nth_body_is_cut_in_its_middle(s3: S3Server, plain: Any, bucket: str) -> None:
    data = content(MB)
    plain.put_object(Bucket=bucket, Key="k", Body=data)
    s3.configure(Faults(drop_every=2))
    received = []
    for _ in range(4):
        stream = plain.get_object(Bucket=bucket, Key="k")["Body"]
        got = b""
        try:
            for piece in stream.iter_chunks(1 << 14):
                got += piece
        except (IncompleteReadError, ResponseStreamingError):
            assert data.startswith(got)
        received.append(len(got))
    assert received[::2] == [MB, MB]
    assert all(0 < n <= MB // 2 for n in received[1::2])
    assert s3.counts.faults == {"drop": 2}


@pytest.mark.parametrize(
    ("failure", "error"), [("error", "InternalError"), ("reset", ConnectionClosedError)], ids=["error", "reset"]
)
def test_puts_after_the_kth_fail_and_other_requests_do_not(
    s3: S3Server, plain: Any, bucket: str, failure: Any, error: Any
) -> None:
    s3.configure(Faults(fail_puts_after=1, put_failure=failure))
    plain.put_object(Bucket=bucket, Key="first", Body=b"v")
    for _ in range(2):
        if isinstance(error, str):
            with pytest.raises(ClientError, match=error):
                plain.put_object(Bucket=bucket, Key="second", Body=b"v")
        else:
            with pytest.raises(error):
                plain.put_object(Bucket=bucket, Key="second", Body=b"v")
    assert plain.get_object(Bucket=bucket, Key="first")["Body"].read() == b"v"
    assert s3.counts.faults == {"put": 2}


def test_read_only_refuses_what_writes_and_allows_what_reads(s3: S3Server, plain: Any, bucket: str) -> None:
    plain.put_object(Bucket=bucket, Key="kept", Body=b"v")
    s3.configure(Faults(read_only=True))
    writes: list[Callable[[], Any]] = [
        lambda: plain.put_object(Bucket=bucket, Key="kept", Body=b"new"),
        lambda: plain.create_multipart_upload(Bucket=bucket, Key="kept"),
        lambda: plain.delete_object(Bucket=bucket, Key="kept"),
    ]
    for write in writes:
        with pytest.raises(ClientError, match="AccessDenied"):
            write()
    assert plain.get_object(Bucket=bucket, Key="kept")["Body"].read() == b"v"
    assert s3.counts.faults == {"read_only": 3}


def test_an_unknown_key_may_not_even_read(s3: S3Server, plain: Any, bucket: str) -> None:
    s3.configure(Faults(unknown_key=True))
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        plain.list_objects_v2(Bucket=bucket)
    with pytest.raises(ClientError, match="403"):
        plain.head_bucket(Bucket=bucket)


def test_boto3_with_standard_retries_survives_slow_downs(s3: S3Server, bucket: str) -> None:
    s3.configure(Faults(slow_down_every=3))
    patient = s3.client(endpoint=s3.endpoint, retries={"mode": "standard", "total_max_attempts": 5})
    data = content(50_000)
    for i in range(4):
        patient.put_object(Bucket=bucket, Key=f"patient-{i}", Body=data)
        assert patient.get_object(Bucket=bucket, Key=f"patient-{i}")["Body"].read() == data
    assert s3.counts.faults["slow_down"] >= 3
