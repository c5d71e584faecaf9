"""`Strategy`, the options of decoding."""

import dataclasses

from t5x_lite.decoding import beam
from t5x_lite.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Says how texts are chosen: greedily by default, by beam search if `beams` > 1, by sampling if `temperature` > 0.

    Beam search ranks a text of n tokens, including its end, by

            logprob / ((length_offset + n) / (length_offset + 1)) ** length_penalty

    as T5 and GNMT do (Wu et al. 2016, §7). With an offset of 0 this is logprob / n ** length_penalty, as in
    transformers.
    """

    max_tokens: int = 64  # of a text, including its end; with a constraint, the length of the longest allowed text
    min_tokens: int = 0  # of a text, before its end
    beams: int = 1
    length_penalty: float = 0.6  # exponent in beam search's score; 0: no penalty
    length_offset: int = 5
    temperature: float = 0.0  # 0: no sampling; 1: from the model's distribution
    top_k: int = 0  # sample from the k most probable tokens; 0: from all
    top_p: float = 1.0  # sample from the fewest tokens whose probabilities sum to at least this; 1: from all
    repetition_penalty: float = 1.0  # above 1: makes the tokens of the text so far less likely
    no_repeat_ngram_size: int = 0  # no n-gram of this size occurs twice in a text and its decoder prompt; 0: no limit
    first_token: int | None = None  # forced as the first token: BART's <s>, mBART's language
    last_token: int | None = None  # forced as token number max_tokens; usually an end
    other_ends: tuple[int, ...] = ()  # more tokens that end a text, such as a chat's end of turn
    early_stopping: bool | str = "never"  # of beam search, one of beam.EARLY_STOPPING
    texts: int = 1  # texts per example: the number of samples, or of best texts that beam search returns

    def validate(self) -> "Strategy":
        """Returns self. Raises ConfigError if a field is not valid; the message says what is allowed."""
        least = {"max_tokens": 1, "min_tokens": 0, "beams": 1, "texts": 1, "top_k": 0, "no_repeat_ngram_size": 0}
        for field, low in least.items():
            if getattr(self, field) < low:
                raise ConfigError(f"{field}={getattr(self, field)}; it must be at least {low}")
        for field in ("length_penalty", "length_offset", "temperature"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ConfigError(f"{field}={getattr(self, field)}; it must be finite and at least 0")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}; it must be above 0 and at most 1")
        if not self.repetition_penalty > 0:
            raise ConfigError(f"repetition_penalty={self.repetition_penalty}; it must be above 0 (1: no penalty)")
        if self.early_stopping not in beam.EARLY_STOPPING:
            raise ConfigError(f"early_stopping={self.early_stopping!r}; it must be one of {beam.EARLY_STOPPING}")
        if not isinstance(self.other_ends, tuple):
            raise ConfigError(f"other_ends={self.other_ends!r}; it must be a tuple of token ids")
        if self.min_tokens >= self.max_tokens:
            raise ConfigError(f"min_tokens={self.min_tokens} is not below max_tokens={self.max_tokens}; lower it")
        if self.beams > 1 and self.temperature:
            raise ConfigError(
                f"beams={self.beams} with temperature={self.temperature}; use beam search (temperature=0) or sampling "
                "(beams=1), not both"
            )
        if not self.temperature and (self.top_k or self.top_p < 1):
            raise ConfigError(
                f"top_k={self.top_k}, top_p={self.top_p} need sampling; set a temperature above 0, for example 1.0"
            )
        if self.texts > 1 and not self.temperature and self.texts > self.beams:
            raise ConfigError(
                f"texts={self.texts}, but beams={self.beams} and temperature=0; set beams to at least {self.texts}, or "
                "sample with a temperature above 0"
            )
        return self
