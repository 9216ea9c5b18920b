"""Models on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from infra.errors import BadInput
from infra.text.markdown import short

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def downloaded(name: str, revision: str) -> Path:
    """The folder of a model that was downloaded from the hub, or is in its cache.

    Raises:
        ConnectionError: the hub cannot be reached.
        BadInput: there is no such model or revision, or no access to it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        said, status = short(str(error)), getattr(getattr(error, "response", None), "status_code", 503)
        if status == 429 or status >= 500:  # an outage, so that it is retried
            raise ConnectionError(f"model {name}@{revision}: the hub cannot be reached ({said})") from error
        raise BadInput(
            f"model {name}@{revision}: no such model or revision, or no access to it ({said}): check the name; for "
            "a gated model, accept its terms on the hub and set HF_TOKEN"
        ) from error
