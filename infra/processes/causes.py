"""The cause in the log of a process that failed: the line that a person would look for."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST = 400  # characters of a cause that are shown

_ERROR = re.compile(
    r"(?:\b[\w.]*(?:Error|Exception|Interrupt|BadInput)|\berror): \S.*|\bValue error, \S.*", re.IGNORECASE
)
# Lines that only say that something failed elsewhere: vLLM's parent process, torchrun's report, another rank's end,
# chained traces.
_POINTER = re.compile(
    r"root cause|engine core initiali[sz]ation failed|EngineDeadError|EngineCore encountered|ChildFailedError|"
    r"errors? (?:above|below)|error_file|closed by peer|remote worker|remote process exited"
    r"|Traceback|During handling of|direct cause of",
    re.IGNORECASE,
)
# The level that a logger (vLLM's, Prefect's, glog) or Python's warnings put before a line.
_LEVEL = re.compile(
    r"\b(?:ERROR|CRITICAL|FATAL)\b|(?P<harmless>\b(?:DEBUG|INFO|WARNING|WARN)\b|\b[IW]\d{4} |\w+Warning: )"
)
LAST_LINES = "; its last lines:"
"""Between what went wrong and the end of a log, in the text of an error."""


def last_words(log_path: Path, log: str, shown: str) -> str:
    """For the text of an error: the log's path, the cause that the log names, and its last lines, `shown`."""
    why = cause(log)
    return f"log: {log_path}" + (f"; cause: {why}" if why else "") + f"{LAST_LINES}\n{shown}"


def cause(log: str) -> str:
    """The last line of a log that names an error, without what the logger put before it; else the last line.

    A warning that names an error, such as vLLM's about `ulimit`, is not what ended the process. At most `LONGEST`
    characters; "" if the log is empty.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [
        found[0]
        for line in lines
        if not _POINTER.search(line) and (found := _ERROR.search(line)) and not _harmless(line[: found.start()])
    ]
    last = next(reversed(named or lines), "")
    return last if len(last) <= LONGEST else last[:LONGEST] + " ..."


def _harmless(before: str) -> bool:
    """Whether what stands before an error in its line makes it a warning or less."""
    level = _LEVEL.search(before)
    return level is not None and level["harmless"] is not None
