"""Makes the config of a verb from its flags: from a config file, a task's name or a workdir, plus the overrides."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from t5x_lite.errors import ConfigError

if TYPE_CHECKING:
    from t5x_lite.config import Config

Overrides = dict[str, str]  # config keys from the command line -> their values as text


def of_file(spec: str, overrides: Overrides) -> "Config":
    """Returns the config of a config file plus the overrides. spec: FILE.py or FILE.py:ARGUMENT."""
    from t5x_lite import config

    cfg = config.load(spec)
    for key, text in overrides.items():
        config.override(cfg, key, text)
    config.validate(cfg)
    return cfg


def of_name(arguments: argparse.Namespace, overrides: Overrides) -> "Config":
    """Returns the config for a verb that takes the NAME of a task or mixture. NAME replaces the mixture of --config."""
    from t5x_lite import config

    cfg = config.load(arguments.config) if arguments.config else config.base()
    for key, text in overrides.items():
        config.override(cfg, key, text)
    if not cfg.data.files:
        if Path(arguments.name).is_file() or re.search(r"[/*{,=]", arguments.name):
            raise ConfigError(
                f"{arguments.name!r} is not a task or mixture; for a file use --config.data.files={arguments.name}"
            )
        cfg.data.mixture = arguments.name
    elif arguments.name:
        raise ConfigError(f"NAME {arguments.name!r} and config.data.files={cfg.data.files!r}: give only one of them")
    config.validate(cfg)
    return cfg


def of_workdir(workdir: str, spec: str, overrides: Overrides) -> "Config":
    """Returns the config of a workdir's run plus the overrides, for verbs that use a workdir."""
    from t5x_lite import config

    if not Path(workdir).is_dir():
        raise ConfigError(f"no workdir {workdir!r}; give the --workdir of a `t5x-lite train`")
    loaded = config.load(spec) if spec else None  # registers the tasks it defines
    cfg = config.from_json(Path(workdir) / "config.json")
    if loaded is not None:
        from t5x_lite import check_own_code

        check_own_code.take_objects(cfg, loaded)
    for key, text in overrides.items():
        config.override(cfg, key, text)
    config.validate(cfg)
    return cfg
