"""What can be wrong with the artifact store, in words a user can act on."""

from __future__ import annotations

import errno


class StoreError(RuntimeError):
    """The store, or something in it, is not usable; the text names what, where, and how to mend it."""


def explain(error: BaseException) -> tuple[str, str]:
    """What went wrong and how to mend it, for an error of the disk or of S3."""
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


_UNKNOWN = ("it failed", "Check BOLT_STORE and, for S3, BOLT_ENDPOINT_URL and the credentials.")
_ADVICE: list[tuple[set[str], tuple[str, str]]] = [
    (
        {"ENOSPC", "EDQUOT", "EFBIG", "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"},
        ("no room is left", "Free some space or raise the limit, or point BOLT_STORE elsewhere; nothing was kept."),
    ),
    ({"EROFS"}, ("the file system is read-only", "Mount it writable or point BOLT_STORE elsewhere.")),
    ({"NoSuchBucket"}, ("the bucket does not exist", "Create it, or correct BOLT_STORE.")),
    (
        {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError"},
        ("no credentials were found", "Set BOLT_ACCESS_KEY_ID and BOLT_SECRET_ACCESS_KEY, or an AWS profile."),
    ),
    (
        {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidClientTokenId"},
        ("the credentials are wrong or expired", "Correct BOLT_ACCESS_KEY_ID and BOLT_SECRET_ACCESS_KEY."),
    ),
    ({"RequestTimeTooSkewed"}, ("this machine's clock is wrong", "Set the clock.")),
    (
        {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"},
        ("the bucket is in another region", "Set BOLT_REGION to the bucket's region."),
    ),
    (
        {"EndpointConnectionError", "ConnectionError", "HTTPClientError", "ClientConnectionError", "TimeoutError"},
        ("the endpoint cannot be reached", "Check BOLT_ENDPOINT_URL, the network, and that the server is up."),
    ),
    (
        {"PermissionError", "AccessDenied"},
        ("permission is denied", "Give this user or key the right to read, write, list and delete there."),
    ),
    (
        {"NotADirectoryError", "FileExistsError", "IsADirectoryError"},
        ("a file stands where a folder should be, or a folder where a file", "Move it or correct BOLT_STORE."),
    ),
    ({"FileNotFoundError", "NoSuchKey"}, ("it does not exist", "The step that makes it must run (again).")),
]
