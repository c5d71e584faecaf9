"""A format of text files whose lines a regular expression splits into fields (`data.line_pattern`)."""

import dataclasses
import functools
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from t5x_lite.data.opened_files import File
from t5x_lite.data.records import Example, OnBad, Scanned
from t5x_lite.data.text_formats import OfLines
from t5x_lite.data.text_lines import bare, read_lines
from t5x_lite.errors import ConfigError, DataError

MOST_S = 1.0  # of the process's time, to match one line; a pattern without nested repetition takes microseconds


@dataclasses.dataclass(frozen=True)
class PatternLines(OfLines):
    """Makes an example of each line that is not blank: a field for each named group of `pattern`, a regular expression
    of Python's `re` that must match the whole line. The field of a group that takes no part in the match is null.

    Raises ConfigError if the pattern is invalid or names no group. `scan` also raises it if a line takes longer than
    MOST_S to match, as with (a+)+b; in threads other than the main one, there is no such limit.
    """

    pattern: str

    def __post_init__(self) -> None:
        where = f"data.line_pattern={self.pattern!r}"
        try:
            groups = re.compile(self.pattern).groupindex
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"{where} is not a regular expression of Python's re: {error}") from None
        if not groups:
            raise ConfigError(f"{where} names no field; write for example (?P<inputs>.*)\\t(?P<targets>.*)")

    @functools.cached_property
    def fields(self) -> tuple[str, ...]:
        return tuple(re.compile(self.pattern).groupindex)

    def scan(self, path: Path, file: File, bad: OnBad) -> Iterator[Scanned]:
        regex = re.compile(self.pattern)
        for line in read_lines(path, file.name):
            where = f"{file.name}:{line.number}"
            if line.error:
                bad(line.error, 1)
            elif not line.text.strip():
                continue
            elif match := _match(regex, line.text, where):
                yield Scanned(line.begin, line.end - line.begin, match.groupdict())
            else:
                shown = f"{line.text[:60]!r}{'…' * (len(line.text) > 60)}"
                bad(DataError(f"{where}: data.line_pattern={self.pattern!r} does not match the line {shown}"), 1)

    def parse(self, text: str, where: str) -> Example:
        match = re.fullmatch(self.pattern, bare(text))
        if match is None:  # it matched when the file was scanned
            raise ValueError(f"{where} has changed")
        return match.groupdict()


def _match(regex: re.Pattern, text: str, where: str) -> re.Match | None:
    """Returns `regex.fullmatch(text)`. Raises ConfigError, which names the line `where`, if that takes too long."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can have a signal handler
        return regex.fullmatch(text)

    def stop(number: int, frame) -> None:
        raise ConfigError(
            f"{where}: data.line_pattern={regex.pattern!r} needs over {MOST_S:g} s for this line of {len(text):,} "
            "characters; use no repetition inside a repetition, such as (a+)+, and fewer of .*"
        )

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_S)
    try:
        return regex.fullmatch(text)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before or signal.SIG_DFL)
