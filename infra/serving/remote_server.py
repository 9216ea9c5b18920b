"""A vLLM server that runs elsewhere: known by its URL, checked before it is used, never started or ended here."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from pydantic import SecretStr


class MisfitError(ValueError):
    """A server elsewhere that can't be used as the settings say; the text names it, what was expected and the mend."""


class RemoteServer:
    """An OpenAI-compatible vLLM server at `url`, which serves a model under `served_name`."""

    def __init__(self, url: str, served_name: str, api_key: SecretStr | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.served_name = served_name
        self._api_key = api_key

    @property
    def headers(self) -> Mapping[str, str]:
        """What each request carries beside its body; holds the secret, so it is never logged."""
        return {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key.get_secret_value()}"}

    def reachable(self, max_model_len: int) -> bool:
        """Whether the server answers.

        Raises:
            MisfitError: it answers, but refuses us, does not serve `served_name`, or takes less than `max_model_len`
                tokens (prompt and completion).
        """
        try:
            answer = httpx.get(f"{self.url}/v1/models", headers=dict(self.headers), timeout=10, trust_env=False)
        except httpx.TransportError:
            return False
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise MisfitError(f"{self.url} refuses us ({answer.status_code}): set BOLT_POLICY_API_KEY to its API key")
        try:
            lengths = {each["id"]: each["max_model_len"] for each in answer.raise_for_status().json()["data"]}
        except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
            said = f"{answer.status_code}: {answer.text[:200]}"
            raise MisfitError(
                f"{self.url} is no vLLM server: expected /v1/models to list models, it says {said}"
            ) from error
        if self.served_name not in lengths:
            raise MisfitError(
                f"{self.url} serves {sorted(lengths)}, expected {self.served_name!r}: correct serving.policy_name or "
                "serving.policy_urls, or start it with --served-model-name"
            )
        if lengths[self.served_name] is None or lengths[self.served_name] < max_model_len:
            raise MisfitError(
                f"{self.url} takes {lengths[self.served_name]} tokens at most, expected {max_model_len} "
                "(serving.policy.max_model_len): start it with a longer --max-model-len, or lower ours"
            )
        return True

    def check(self) -> None:
        """Nothing to look at from here: a dead server shows by requests that do not reach it."""

    def stop(self) -> None:
        """It isn't ours to end."""
