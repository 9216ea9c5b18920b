"""What can be wrong with the artifact store, in words a user can act on."""

from __future__ import annotations

import errno
from typing import NamedTuple


class StoreError(RuntimeError):
    """The store, or something in it, is not usable; the text names what, where, and how to mend it.

    `transient`: an outage of the network or of the server, so that the same attempt may succeed later.
    """

    def __init__(self, text: str, *, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient


class Advice(NamedTuple):
    """What went wrong, how to mend it, and whether trying again may do."""

    what: str
    mend: str
    transient: bool = False


def explain(error: BaseException) -> Advice:
    """What to tell the user about an error of the disk or of S3."""
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
            "no room is left", "Free some space or raise the limit, or point BOLT_STORE elsewhere; nothing was kept."
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
        Advice("an answer was cut off", "Try again later; nothing was kept.", True),
    ),
    (  # also where the upload was completed, and the answer that said so was lost
        {"NoSuchUpload"},
        Advice("an upload in pieces was lost", "Try again later; nothing was kept.", True),
    ),
    (
        {"EndpointConnectionError", "ConnectionError", "HTTPClientError", "ClientConnectionError", "TimeoutError"},
        Advice(
            "the endpoint cannot be reached", "Check BOLT_ENDPOINT_URL, the network, and that the server is up.", True
        ),
    ),
    (
        {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "TooManyRequests"}
        | {"500", "502", "503", "504", "429"},  # an answer without a body of S3's
        Advice("the server is overloaded or failing", "Try again later; nothing was kept.", True),
    ),
    (
        {"PermissionError", "AccessDenied"},
        Advice(
            "permission is denied",
            "Give this user or key the right to read, write, list and delete there; or the key was revoked.",
        ),
    ),
    (
        {"NotADirectoryError", "FileExistsError", "IsADirectoryError"},
        Advice("a file stands where a folder should be, or a folder where a file", "Move it or correct BOLT_STORE."),
    ),
    ({"FileNotFoundError", "NoSuchKey"}, Advice("it does not exist", "The step that makes it must run (again).")),
]

TRANSIENT = tuple(advice.what for _, advice in _ADVICE if advice.transient)
"""What the text of a `StoreError` says where the same attempt may succeed later."""
