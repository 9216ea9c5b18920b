"""Errors of the artifact store, explained in words that a user can act on."""

from __future__ import annotations

import errno
from typing import NamedTuple


class StoreError(RuntimeError):
    """The store, or something in it, is not usable. The message says what, where, and how to fix it.

    `transient`: the network or the server had an outage, so that the same attempt may succeed later.
    """

    def __init__(self, text: str, *, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient


class Advice(NamedTuple):
    """What went wrong, how to fix it, and whether a retry may succeed."""

    what: str
    fix: str
    transient: bool = False


def explain(error: BaseException) -> Advice:
    """Explain an error of the disk or of S3."""
    codes = set()
    link: BaseException | None = error
    while link is not None:
        codes |= {base.__name__ for base in type(link).__mro__}
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            codes.add(str(response.get("Error", {}).get("Code", "")))
        if isinstance(link, OSError) and link.errno:
            codes.add(errno.errorcode.get(link.errno, ""))
        link = link.__cause__ or link.__context__
    return next((advice for names, advice in _ADVICE if codes & names), _UNKNOWN)


_UNKNOWN = Advice("it failed", "Check BOLT_STORE and, for S3, BOLT_ENDPOINT_URL and the credentials.")
_ADVICE: list[tuple[set[str], Advice]] = [
    (
        {"ENOSPC", "EDQUOT", "EFBIG", "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"},
        Advice(
            "no room is left", "Free some space or raise the limit, or point BOLT_STORE elsewhere; nothing was written."
        ),
    ),
    ({"EROFS"}, Advice("the file system is read-only", "Mount it writable or point BOLT_STORE elsewhere.")),
    ({"NoSuchBucket"}, Advice("the bucket does not exist", "Create it, or correct BOLT_STORE.")),
    (
        {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError"},
        Advice("no credentials were found", "Set BOLT_ACCESS_KEY_ID and BOLT_SECRET_ACCESS_KEY, or an AWS profile."),
    ),
    (
        {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidClientTokenId"},
        Advice("the credentials are wrong or expired", "Correct BOLT_ACCESS_KEY_ID and BOLT_SECRET_ACCESS_KEY."),
    ),
    ({"RequestTimeTooSkewed"}, Advice("this machine's clock is wrong", "Set the clock.")),
    (
        {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"},
        Advice("the bucket is in another region", "Set BOLT_REGION to the bucket's region."),
    ),
    (
        {"ClientPayloadError", "IncompleteReadError", "IncompleteRead", "ResponseParserError"},
        Advice("an answer was cut off", "Try again later; nothing was written.", True),
    ),
    (  # also if the upload was completed and the answer was lost
        {"NoSuchUpload"},
        Advice("a multipart upload was lost", "Try again later; nothing was written.", True),
    ),
    (
        {"EndpointConnectionError", "ConnectionError", "HTTPClientError", "ClientConnectionError", "TimeoutError"},
        Advice(
            "the endpoint cannot be reached", "Check BOLT_ENDPOINT_URL, the network, and that the server is up.", True
        ),
    ),
    (
        {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "TooManyRequests"}
        | {"500", "502", "503", "504", "429"},  # an answer without a body from S3
        Advice("the server is overloaded or failing", "Try again later; nothing was written.", True),
    ),
    (
        {"PermissionError", "AccessDenied"},
        Advice(
            "permission is denied",
            "Give this user or key the right to read, write, list and delete there, or replace a revoked key.",
        ),
    ),
    (
        {"NotADirectoryError", "FileExistsError", "IsADirectoryError"},
        Advice(
            "a file is where a folder should be, or a folder where a file should be", "Move it or correct BOLT_STORE."
        ),
    ),
    ({"FileNotFoundError", "NoSuchKey"}, Advice("it does not exist", "Run the step that makes it (again).")),
]

TRANSIENT = tuple(advice.what for _, advice in _ADVICE if advice.transient)
"""The texts of `StoreError`s whose attempt may succeed later."""
