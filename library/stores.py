"""The object stores that Striate supports: how each is opened, and which exceptions its package raises.

Each store has an fsspec package, which reads credentials and endpoints from its own environment variables.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import fsspec
import fsspec.core

from library.errors import StriateError, UsageError


@dataclass(frozen=True)
class Store:
    """One kind of object store.

    Attributes:
        needs: its fsspec package, and how to install it.
        example: an example of a URI.
        container: the store's word for the first part of a URI.
        credentials: advice on what to check if access is denied.
        failures: exceptions, besides OSError, that its package raises for failures of the store, as `module:name`.
        refusals: exceptions for missing or wrong credentials, besides PermissionError.
        options: passed to fsspec.
        writable: whether datasets and bundles can be written there.
    """

    needs: str
    example: str
    container: str
    credentials: str
    failures: tuple[str, ...]
    refusals: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    writable: bool = True

    def is_failure(self, error: Exception) -> bool:
        """Whether `error` is a failure of the store, not a bug."""
        return isinstance(error, (OSError, *_exception_types(self.failures)))

    def is_refusal(self, error: Exception) -> bool:
        """Whether the store refused access: missing or wrong credentials."""
        return isinstance(error, (PermissionError, *_exception_types(self.refusals)))


_S3_OPTIONS: dict[str, Any] = {
    "default_cache_type": "none",
    "config_kwargs": {
        "retries": {"mode": "adaptive", "max_attempts": 10},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
        # By default newer boto sends checksums, which some S3-compatible servers refuse (411) or ignore.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    },
}

STORES: dict[str, Store] = {
    "s3": Store(
        needs="s3fs: pip install s3fs",
        example="s3://bucket/folder",
        container="bucket",
        credentials="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE (on a cluster: on every node) and "
        "the bucket's policy",
        failures=("botocore.exceptions:ClientError", "botocore.exceptions:BotoCoreError"),
        refusals=("botocore.exceptions:NoCredentialsError",),
        options=_S3_OPTIONS,
    ),
    "gs": Store(
        needs="gcsfs: pip install 'striate[sources]'",
        example="gs://bucket/folder",
        container="bucket",
        credentials="check GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login` (on a cluster: on "
        "every node) and the bucket's permissions",
        failures=("gcsfs.retry:HttpError", "google.auth.exceptions:GoogleAuthError", "aiohttp:ClientError"),
        refusals=("google.auth.exceptions:GoogleAuthError",),
    ),
    "az": Store(
        needs="adlfs: pip install 'striate[sources]'",
        example="az://container/folder",
        container="container",
        credentials="check AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with "
        "AZURE_STORAGE_ACCOUNT_KEY or a login (on a cluster: on every node)",
        # adlfs raises RuntimeError for failed uploads.
        failures=("azure.core.exceptions:AzureError", "builtins:RuntimeError"),
        refusals=("azure.core.exceptions:ClientAuthenticationError",),
    ),
    "hf": Store(
        needs="huggingface_hub: pip install 'striate[sources]'",
        example="hf://datasets/owner/name/folder",
        container="repository",
        credentials="a private or gated repository needs HF_TOKEN (on a cluster: on every node)",
        # Its errors share no base class and its HTTP library changes between versions; no code of ours runs in a read.
        failures=("builtins:Exception",),
        writable=False,
    ),
}
_ALIASES = {"gcs": "gs", "abfs": "az", "abfss": "az"}
#: For error messages.
SCHEMES = "s3://, gs://, az:// and hf://"


def split(uri: str) -> tuple[str, str]:
    """Splits a URI into scheme ("" for a local path) and rest; `gcs`, `abfs` and `abfss` become `gs` and `az`."""
    scheme, separator, rest = uri.partition("://")
    return (_ALIASES.get(scheme.lower(), scheme.lower()), rest) if separator else ("", uri)


def store_of(uri: str) -> Store | None:
    """The store of a URI; None for a local path."""
    return STORES.get(split(uri)[0])


def opened(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system for `uri`, and the path in it.

    Raises:
        UsageError: if the store's package is not installed.
        StriateError: if the package cannot be set up with the given credentials.
    """
    scheme, rest = split(uri)
    store = STORES[scheme]
    # Other tools may write to the same bucket, so listings are never cached.
    options: dict[str, Any] = {"use_listings_cache": False, **store.options}
    _, at_sign, host = rest.partition("/")[0].partition("@")
    if scheme == "az" and at_sign:  # az://container@account.dfs.core.windows.net/key, Spark's form
        options["account_name"] = host.partition(".")[0]
    try:
        filesystem = cast(fsspec.AbstractFileSystem, fsspec.filesystem(scheme, **options))
        return filesystem, cast(str, fsspec.core.strip_protocol(f"{scheme}://{rest}"))
    except ImportError as error:
        raise UsageError(f"{scheme}:// needs the package {store.needs}") from error
    except Exception as error:
        if isinstance(error, ValueError) or store.is_failure(error):
            raise StriateError(f"cannot open {uri}: {error}; {store.credentials}") from error
        raise


def _exception_types(names: tuple[str, ...]) -> tuple[type[Exception], ...]:
    return tuple(pkgutil.resolve_name(name) for name in names)
