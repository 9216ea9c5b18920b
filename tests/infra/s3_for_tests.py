"""Clients and settings for the tests' S3 server."""

import socket
from typing import Any

import boto3

from infra.settings import Settings

KEY, SECRET = "AKIATESTTESTTESTTEST", "s3cr3t-of-the-tests"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def boto_client(url: str, service: str = "s3") -> Any:
    return boto3.client(
        service, endpoint_url=url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )


def s3_settings(url: str, bucket: str, *, key: str = KEY, secret: str = SECRET) -> Settings:
    return Settings(
        store=f"s3://{bucket}/some/prefix",
        endpoint_url=url,
        region="us-east-1",
        access_key_id=key,
        secret_access_key=secret,
    )
