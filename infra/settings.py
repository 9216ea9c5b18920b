"""Settings from the environment: the artifact store and its credentials. Imports neither S3 nor Prefect."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.errors import BadInput

PROJECT_ROOT = Path(__file__).resolve().parents[1]
"""The checkout: the folder that holds the project's packages."""
PACKAGES = ("flows", "tasks", "cot_formats", "evals", "infra", "nano")
"""The packages of whose code a result may be made."""

BLOCK_VARIABLE = "BOLT_SETTINGS_BLOCK"


class Settings(BaseSettings):
    """The artifact store, the work folder and the webhook, from `BOLT_*` environment variables or a Prefect block.

    Without `access_key_id`, credentials come from the usual AWS chain (environment, profile, instance role). Secrets
    are never shown by `repr`, JSON dumps or validation errors.
    """

    model_config = SettingsConfigDict(
        env_prefix="BOLT_", env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    store: str = Field(default="./artifacts", description="Artifact store: a local folder or s3://bucket/prefix.")
    endpoint_url: str | None = Field(
        default=None, description="S3 endpoint of any provider but AWS, e.g. http://minio:9000."
    )
    region: str | None = Field(default=None, description="S3 region; if omitted, the AWS chain decides.")
    access_key_id: SecretStr | None = Field(
        default=None, description="S3 access key; if omitted, the AWS chain is used."
    )
    secret_access_key: SecretStr | None = Field(
        default=None, description="S3 secret key; if omitted, the AWS chain is used."
    )
    work_dir: Path = Field(default=Path("./.bolt"), description="Local folder for ledgers, logs and copies of models.")
    webhook_url: SecretStr | None = Field(
        default=None,
        description="URL that the end of every flow run is posted to as JSON. It is a secret, as most webhooks are.",
    )
    policy_api_key: SecretStr | None = Field(
        default=None, description="API key of the vLLM servers at serving.policy_urls, if they need one."
    )
    judge_api_key: SecretStr | None = Field(
        default=None, description="API key of the judge at a benchmark's `judge.url`, if it needs one."
    )

    @field_validator("store")
    @classmethod
    def _known_store(cls, store: str) -> str:
        scheme, separator, rest = store.partition("://")
        if re.match(r"\w+:", store) and scheme not in ("s3", "file"):
            raise ValueError("must be a local folder, file:///folder or s3://bucket/prefix")
        if separator and scheme == "s3" and (not rest.split("/", 1)[0] or "@" in rest.split("/", 1)[0]):
            raise ValueError("must name a bucket, s3://bucket/prefix, and hold no credentials")
        if not store.strip() or (separator and not rest.strip("/")):
            raise ValueError("must not be empty")
        if store != store.strip():
            raise ValueError("must not begin or end with a blank")
        return store

    @field_validator("store", "work_dir")
    @classmethod
    def _at_home(cls, folder: str | Path) -> str | Path:
        expanded = os.path.expanduser(folder)  # leaves an unknown user's ~ as it is
        if expanded.startswith("~"):
            raise ValueError("must not begin with ~ and a name that is no user here; a folder of that name is ./~name")
        return type(folder)(expanded)

    @field_validator("endpoint_url")
    @classmethod
    def _web_address(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must look like http://host:port or https://host")
            if "@" in parts.netloc:
                raise ValueError("must hold no credentials: use access_key_id and secret_access_key")
        return url

    @field_validator("webhook_url")
    @classmethod
    def _web_hook(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            parts = urlsplit(url.get_secret_value())
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must look like https://host/path")
        return url

    @field_validator("policy_api_key", "judge_api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch("[!-~]+", key.get_secret_value()):  # an HTTP library would show it
            raise ValueError("must be printable ASCII without blanks and line feeds, also at its ends")
        return key

    @model_validator(mode="after")
    def _whole_key_pair(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key go together: set both or neither")
        return self

    def absolute(self) -> Self:
        """The same with absolute local paths, for processes that have other working folders."""
        local = "://" not in self.store
        folders: dict[str, Any] = {"work_dir": self.work_dir.resolve()}
        return self.model_copy(update=folders | ({"store": str(Path(self.store).resolve())} if local else {}))

    @classmethod
    def load(cls) -> Self:
        """Settings from the environment and, where `BOLT_SETTINGS_BLOCK` names one, a Prefect Secret block.

        The block holds a JSON object with this class's field names. A `BOLT_*` variable wins over the block.

        Raises:
            BadInput: the block holds no JSON object, or a value does not fit (values are never shown).
        """
        prefix = cls.model_config.get("env_prefix", "")
        name = os.environ.get(BLOCK_VARIABLE)
        block = _secret_block(name.removeprefix("secret/")) if name else {}
        given = {field: value for field, value in block.items() if not os.environ.get(f"{prefix}{field.upper()}")}
        try:
            return cls(**given)
        except ValidationError as error:
            raise BadInput("; ".join(_problem(prefix, each) for each in error.errors(include_input=False))) from None


def _problem(prefix: str, error: Mapping[str, Any]) -> str:
    """One setting that does not fit, by the name of its environment variable; its value is not shown."""
    where = f"{prefix}{error['loc'][0]}".upper() if error["loc"] else "settings"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"


def _secret_block(name: str) -> dict[str, Any]:
    from prefect.blocks.system import Secret

    value = Secret.load(name, _sync=True).get()  # type: ignore[union-attr,call-arg]
    if not isinstance(value, dict):
        raise BadInput(f"{BLOCK_VARIABLE}: Prefect block secret/{name} must hold a JSON object of settings")
    return value
