"""A vLLM server that someone else runs: known by its URL, checked before use, never started or ended by us."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from pydantic import SecretStr

from infra.errors import BadInput
from infra.proxies import may_use_proxy


class MisfitError(BadInput):
    """A remote server does not match the settings; the text has its URL, what was expected and how to fix it."""


class RemoteServer:
    """An OpenAI-compatible vLLM server at `url`, which serves a model under `served_name`."""

    def __init__(self, url: str, served_name: str, api_key: SecretStr | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.served_name = served_name
        self._api_key = api_key

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers of every request; they hold the API key, so they are never logged."""
        return {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key.get_secret_value()}"}

    def reachable(self, max_model_len: int) -> bool:
        """Whether the server answers.

        Raises:
            MisfitError: it answers, but refuses us, does not serve `served_name`, or accepts fewer than `max_model_len`
                tokens (prompt plus completion).
        """
        try:
            answer = httpx.get(
                f"{self.url}/v1/models", headers=dict(self.headers), timeout=10, trust_env=may_use_proxy(self.url)
            )
        except httpx.TransportError:
            return False
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise MisfitError(f"{self.url} refuses us ({answer.status_code}): set BOLT_POLICY_API_KEY to its API key")
        try:
            lengths = {each["id"]: each["max_model_len"] for each in answer.raise_for_status().json()["data"]}
        except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
            raise MisfitError(
                f"{self.url} is not a vLLM server: expected a list of models from /v1/models, got "
                f"{answer.status_code}: {answer.text[:200]}"
            ) from error
        if self.served_name not in lengths:
            raise MisfitError(
                f"{self.url} serves {sorted(lengths)}, expected {self.served_name!r}: correct serving.policy_name or "
                "serving.policy_urls, or start it with --served-model-name"
            )
        if lengths[self.served_name] is None or lengths[self.served_name] < max_model_len:
            raise MisfitError(
                f"{self.url} accepts {lengths[self.served_name]} tokens at most, expected {max_model_len} "
                "(serving.policy.max_model_len): start it with a larger --max-model-len, or lower ours"
            )
        return True

    def check(self) -> None:
        """Do nothing: a remote server is known to be dead only once requests do not reach it."""

    def stop(self) -> None:
        """Do nothing: the server is not ours."""
