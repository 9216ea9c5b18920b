"""S3 through s3fs, set up so that every failed request is logged and none waits forever."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.settings import Settings

log = logging.getLogger(__name__)

READ_TIMEOUT_S = 60.0  # of silence from S3


def s3_filesystem(settings: Settings, attempts: int, *, patient: bool) -> tuple[Any, tuple[type[Exception], ...]]:
    """An s3fs file system that tries each request `attempts` times, and the exceptions that it may raise.

    `patient`: wait a minute for an answer instead of ten seconds.
    """
    import aiobotocore.session as aio  # type: ignore[import-untyped]
    import aiohttp
    import botocore.exceptions as boto  # type: ignore[import-untyped]
    import s3fs

    connect, read = (10, READ_TIMEOUT_S) if patient else (5, 10)  # times in seconds
    config: dict[str, Any] = {"connect_timeout": connect, "read_timeout": read}
    config["retries"] = {"mode": "standard", "total_max_attempts": attempts}
    if settings.endpoint_url:  # MinIO and similar: the bucket in the path, no AWS-only checksum trailers
        config |= {"s3": {"addressing_style": "path"}, "request_checksum_calculation": "when_required"}
    keys = [key.get_secret_value() for key in (settings.access_key_id, settings.secret_access_key) if key]
    session = aio.get_session()
    session.register("before-sign.s3", _expect_no_go_ahead)
    session.register("response-received.s3", _tell_of_failure)
    files = s3fs.S3FileSystem(
        session=session,
        **dict(zip(("key", "secret"), keys, strict=False)),
        endpoint_url=settings.endpoint_url,
        client_kwargs={"region_name": settings.region} if settings.region else {},
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    files.retries = 1  # it would retry silently; botocore and the store retry instead
    return files, (OSError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError)


@contextmanager
def uploading(fs: Any, uri: str) -> Iterator[Any]:
    """An S3 upload that completes if the block succeeds and is aborted if it raises."""
    file = fs.open(uri, "wb")
    try:
        yield file
        file.close()
    except BaseException:
        file.closed = True  # first, or the destructor would complete the upload
        file.discard()
        raise


def _tell_of_failure(
    event_name: str, response_dict: Any, exception: Exception | None, context: dict[str, Any], **_: Any
) -> None:
    """Log each request that an outage made fail, whether botocore will send it again or has given up."""
    status = response_dict["status_code"] if response_dict else 0
    if exception is not None or status >= 500 or status == 429:
        what = type(exception).__name__ if exception else f"HTTP {status}"
        attempt = context.get("retries", {}).get("attempt", 1)
        log.warning("S3 %s failed: %s (attempt %s)", event_name.rpartition(".")[2], what, attempt)


def _expect_no_go_ahead(request: Any, **_: Any) -> None:
    """Send a body without waiting for "100 Continue": aiohttp would wait forever, past every timeout."""
    if "Expect" in request.headers:
        del request.headers["Expect"]
