"""Converts the examples of translators that read the marks of languages."""

import dataclasses

from t5x_lite.data import ragged
from t5x_lite.data.convert import TextToText
from t5x_lite.data.languages import languages_of
from t5x_lite.data.ragged import Ragged
from t5x_lite.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Translation(TextToText):
    """Converts examples as TextToText does, and adds the mark of the language to inputs and targets.

    With the marks 8 of inputs and 9 of targets, the inputs `4 5 2` and the targets `6 2`, whose end token is 2, become:

                              mark_follows=False   mark_follows=True
        encoder_input_tokens  8 4 5 2              4 5 2 8
        decoder_target_tokens 9 6 2                6 2 9
    """

    source_id: int = -1  # the mark of the language of inputs
    target_id: int = -1  # that of targets
    mark_follows: bool = False  # whether a mark follows the end token; if not, it precedes the text

    @property
    def begins(self) -> tuple[int, ...]:
        """Returns the ids before the text of each target."""
        return () if self.mark_follows else (self.target_id,)

    @property
    def _room(self) -> dict[str, int]:
        return {letter: count - 1 for letter, count in super()._room.items()}

    def _marked(self, texts: Ragged, field: str, vocabulary: Vocabulary) -> Ragged:
        mark = self.source_id if field == "inputs" else self.target_id
        texts = super()._marked(texts, field, vocabulary)
        return (
            ragged.append(texts, mark) if self.mark_follows else ragged.join(ragged.constant(mark, len(texts)), texts)
        )


def marked(plain: TextToText, vocabulary: Vocabulary, source: str = "") -> TextToText:
    """Returns the converter that also adds marks; `plain` itself if the vocabulary's model reads none.

    source: the code of the language of inputs; "": as the files of the tokenizer say.
    Raises ConfigError if the vocabulary lacks the language of inputs or targets.
    """
    languages = languages_of(vocabulary)
    if languages is None:
        return plain
    return Translation(
        **{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)},
        source_id=languages.id(source or languages.source),
        target_id=languages.id(languages.target),
        mark_follows=languages.mark_follows,
    )
