"""Downloads a pinned revision of a model from the Hugging Face hub, without files that could run code.

Needs huggingface_hub (the extra `hub`).
"""

import re
from pathlib import Path

from t5x_lite.errors import CheckpointError, ConfigError, first_line

PREFIX = "hf://"
SOURCE = re.compile(PREFIX + r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
FILES = ("*.safetensors", "*.json", "*.model", "vocab.txt", "merges.txt")


def fetch(source: str) -> Path:
    """Returns the local directory of a model. Downloads the model if huggingface_hub has no cached copy.

    source: `hf://OWNER/NAME@REVISION`. The revision must be a commit, because a name such as `main` may point to a
        different model tomorrow.

    Raises ConfigError if `source` has a different form or if huggingface_hub is missing; CheckpointError if the
    download fails.
    """
    parsed = SOURCE.fullmatch(source)
    if not parsed:
        raise ConfigError(
            f"{source!r} is not hf://OWNER/NAME@REVISION with a commit hash of 40 hexadecimal digits; the model's page "
            "lists its commits under Files, History"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(f"{source} needs huggingface_hub: pip install 't5x-lite[hub]'") from None
    try:
        return Path(huggingface_hub.snapshot_download(parsed[1], revision=parsed[2], allow_patterns=list(FILES)))
    except Exception as error:  # the client raises many classes: network, hub, disk
        raise CheckpointError(f"cannot download {source}: {first_line(error)}") from error
