"""Downloads a pinned revision of a model from the Hugging Face hub, without files that could run code.

Needs huggingface_hub (the extra `hub`).
"""

import re
from pathlib import Path
from typing import Any

from t5x_lite.errors import CheckpointError, ConfigError, first_line

PREFIX = "hf://"
SOURCE = re.compile(PREFIX + r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
FILES = ("*.safetensors", "*.json", "*.model", "*.spm", "vocab.txt", "merges.txt")


def pinned(source: str) -> str:
    """Returns `hf://OWNER/NAME@COMMIT`, for which the hub gives the same files at any time.

    source: `hf://OWNER/NAME` (the newest commit), or `hf://OWNER/NAME@REVISION` with a commit, branch or tag. Asks the
        hub for the commit, unless the source has it.

    Raises ConfigError if `source` has a different form or if huggingface_hub is missing; CheckpointError if the hub
    does not answer or has no such model.
    """
    name, revision = _parts(source)
    if COMMIT.fullmatch(revision or ""):
        return source
    hub = _hub(source)
    try:
        commit = hub.HfApi().model_info(name, revision=revision).sha
    except Exception as error:  # the client raises many classes: network, hub
        raise CheckpointError(f"cannot ask the hub for the commit of {source}: {first_line(error)}") from error
    return f"{PREFIX}{name}@{commit}"


def fetch(source: str) -> Path:
    """Returns the local directory of a model. Downloads the model if huggingface_hub has no cached copy.

    source: what `pinned` returns.

    Raises ConfigError if `source` has a different form or if huggingface_hub is missing; CheckpointError if the
    download fails.
    """
    name, revision = _parts(source)
    if not COMMIT.fullmatch(revision or ""):
        raise ConfigError(f"{source!r} names no commit (40 hexadecimal digits); it may be a different model tomorrow")
    hub = _hub(source)
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the client raises many classes: network, hub, disk
        raise CheckpointError(f"cannot download {source}: {first_line(error)}") from error


def _parts(source: str) -> tuple[str, str | None]:
    """Returns (OWNER/NAME, the revision if there is one)."""
    parsed = SOURCE.fullmatch(source)
    if not parsed:
        raise ConfigError(
            f"{source!r}: must be hf://OWNER/NAME, or hf://OWNER/NAME@COMMIT; for example hf://google-t5/t5-small"
        )
    return parsed[1], parsed[2]


def _hub(source: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(f"{source} needs huggingface_hub: pip install 't5x-lite[hub]'") from None
    return huggingface_hub
