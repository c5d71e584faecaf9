"""Says what is wrong with a config file that cannot be loaded: which files there are, and which line failed."""

import contextlib
import re
import traceback
from pathlib import Path

from t5x_lite import own_code
from t5x_lite.errors import ConfigError
from t5x_lite.lookup import suggest


def failed(path: str, error: Exception) -> ConfigError:
    what = f"config file {path!r} failed: {type(error).__name__}: {error}"
    return ConfigError(what if isinstance(error, SyntaxError) else f"{what} ({own_code.where(error)})")


def config_files(missing: Path) -> str:
    """Returns a hint: the config files that lie where `missing` was sought, and in the directory `configs` there."""
    places = (missing.parent, missing.parent / "configs") if missing.parent.is_dir() else ()
    files = [file for place in places for file in sorted(place.glob("*.py")) if _defines_config(file)]
    near = suggest(missing.stem, [file.stem for file in files], count=1)
    if near:
        return f"did you mean {next(file for file in files if file.stem == near[0])}?"
    listed = ", ".join(map(str, files[:20])) + (f", … {len(files)} in all" if len(files) > 20 else "")
    return f"there are {listed}" if files else "give the path of a Python file with get_config()"


def _defines_config(file: Path) -> bool:
    with contextlib.suppress(OSError):
        return file.is_file() and b"def get_config(" in file.read_bytes()
    return False


def key_in_source(leaf: str, file: Path, error: Exception) -> tuple[str, int]:
    """Returns (the wrong key with its section, its line in the config file). leaf: the key's last part."""
    frame = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file][-1]
    match = re.search(rf"\w+\.((?:\w+\.)*{re.escape(leaf)})\b", frame.line or "")
    return (match[1] if match else leaf), frame.lineno or 0
