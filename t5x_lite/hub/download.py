"""Models of the Hugging Face hub, by huggingface_hub (the extra `hub`): of one revision, and nothing that runs code."""

import re
from pathlib import Path

from t5x_lite.errors import CheckpointError, ConfigError, first_line

PREFIX = "hf://"
SOURCE = re.compile(PREFIX + r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
FILES = ("*.safetensors", "*.json", "*.model", "vocab.txt", "merges.txt")


def fetch(source: str) -> Path:
    """The directory of `hf://OWNER/NAME@REVISION`, downloaded where it is not in the library's cache.

    The revision is a commit: a name such as `main` means another model tomorrow. ConfigError for another form, or
    without the library; CheckpointError where it cannot be got.
    """
    found = SOURCE.fullmatch(source)
    if not found:
        raise ConfigError(
            f"{source!r} is not hf://OWNER/NAME@REVISION with a commit of 40 digits; the model's page has them under "
            "Files, History"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(f"{source} needs huggingface_hub: pip install 't5x-lite[hub]'") from None
    try:
        return Path(huggingface_hub.snapshot_download(found[1], revision=found[2], allow_patterns=list(FILES)))
    except Exception as error:  # of the network, the hub, or the disk: whatever its client raises
        raise CheckpointError(f"cannot get {source}: {first_line(error)}") from error
