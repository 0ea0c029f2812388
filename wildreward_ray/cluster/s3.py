"""S3 as far as it differs from other filesystems: endpoints, patience with throttling, and uploads that are whole or not there.

pyarrow reads. It can't abandon an upload: a writer that fails is closed, and closing completes what there is, while parts that
fail leave a dangling multipart upload. boto3 aborts such uploads, so it writes.
"""

from __future__ import annotations

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pyarrow import fs as pafs

# A store that throttles or drops a connection is asked again, each time after a longer pause, for about two minutes in all;
# then the run stops and can be resumed.
_ATTEMPTS = 10
_CONNECT_S, _REQUEST_S = 10, 60

Options = tuple[tuple[str, str], ...]


def parse(uri: str) -> tuple[str, str, Options]:
    """(URI without options, bucket and key, options) of `s3://bucket/key?endpoint_override=…&scheme=…&region=…`.

    Without an endpoint in the URI, `AWS_ENDPOINT_URL` names it; without a region `AWS_REGION`, or the bucket's own.

    Raises:
        ValueError: no bucket, or an option that isn't known.
        OSError: the bucket's region can't be found out.
    """
    parts = urlsplit(uri)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = sorted(options.keys() - {"endpoint_override", "scheme", "region"})
    if unknown:
        raise ValueError(f"option {unknown[0]!r} is not known (known: endpoint_override, region, scheme)")
    if not parts.netloc:
        raise ValueError("the URI names no bucket")
    # pyarrow's constructor, unlike boto3, doesn't look at these.
    endpoint = options.get("endpoint_override") or os.environ.get(
        "AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")
    )
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        options["endpoint_override"] = endpoint
    elif not region:
        region = pafs.resolve_s3_region(parts.netloc)
    if region:
        options["region"] = region
    return uri.partition("?")[0], (parts.netloc + parts.path).rstrip("/"), tuple(sorted(options.items()))


@lru_cache(maxsize=16)
def filesystem(options: Options) -> pafs.S3FileSystem:
    """The filesystem that reads. One a process: pickling one loses how patient it is."""
    return pafs.S3FileSystem(
        **dict(options),
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        connect_timeout=_CONNECT_S,
        request_timeout=_REQUEST_S,
        allow_delayed_open=True,
    )


def put_bytes(options: Options, path: str, data: Any) -> None:
    """Write an object in one go: it is there when it is whole, and a failed upload leaves no parts behind.

    Args:
        path: bucket and key.
        data: a bytes-like object.

    Raises:
        OSError: the store refused it, or could not be reached for long.
    """
    _upload(options, path, io.BytesIO(data))


def put_file(options: Options, path: str, file: Path) -> None:
    """Write a local file as an object, in parts where it is large; see `put_bytes`."""
    with file.open("rb") as source:
        _upload(options, path, source)


def _upload(options: Options, path: str, source: Any) -> None:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = path.partition("/")
    try:
        _client(options).upload_fileobj(source, bucket, key)
    except (Boto3Error, BotoCoreError, ClientError) as e:
        raise OSError(f"writing s3://{path}: {e}") from e


@lru_cache(maxsize=16)
def _client(options: Options) -> Any:
    import boto3
    from botocore.config import Config

    given = dict(options)
    endpoint = given.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
    patience = Config(
        retries={"mode": "standard", "max_attempts": _ATTEMPTS}, connect_timeout=_CONNECT_S, read_timeout=_REQUEST_S
    )
    return boto3.client("s3", endpoint_url=endpoint, region_name=given.get("region"), config=patience)
