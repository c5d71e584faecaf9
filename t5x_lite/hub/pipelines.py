"""Implements `pipeline(task, model=path)`, which turns texts into answers as `transformers.pipeline` does.

Inputs and outputs are the same as in transformers 5. (Tasks that version 5 dropped follow version 4.) Each task is a
function that takes a model and a list of inputs, and returns a list of outputs. The function's keyword-only arguments
are the task's options. The functions are in classification_pipelines.py, token_pipelines.py and text_pipelines.py.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from t5x_lite.data.languages import languages_of
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.hub import generation
from t5x_lite.hub.checks import require_positive, require_text
from t5x_lite.hub.classification_pipelines import text_classification, zero_shot_classification
from t5x_lite.hub.model import Model, load
from t5x_lite.hub.text_pipelines import summarization, text2text_generation, text_generation, translation
from t5x_lite.hub.token_pipelines import (
    feature_extraction,
    fill_mask,
    question_answering,
    questions_with_contexts,
    token_classification,
)
from t5x_lite.lookup import lookup

BATCH_SIZE = 1024  # inputs passed to a task at once. The task sorts them by length; the model reads 32 rows at a time
TRANSLATION = "translation"  # also translation_XX_to_YY
TASKS: dict[str, Callable[..., list]] = {
    "text-classification": text_classification,
    "zero-shot-classification": zero_shot_classification,
    "token-classification": token_classification,
    "question-answering": question_answering,
    "fill-mask": fill_mask,
    "feature-extraction": feature_extraction,
    "text-generation": text_generation,
    "text2text-generation": text2text_generation,
    "summarization": summarization,
    TRANSLATION: translation,
}
ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
READ_MORE = (text_classification, question_answering)  # an input may have two texts
WRITE_ONE = (text2text_generation, summarization, translation)  # lists of one text per input become single texts


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Holds a task with its model. To run the task, call the pipeline with one input or an iterable of inputs."""

    task: str
    model: Model
    run: Callable[..., list]
    options: Mapping[str, Any]

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        """Returns the output for one input, or the list of outputs for an iterable of inputs.

        inputs: one input, or an iterable of inputs. An input is a text; in some tasks it is a mapping.
        options: the task's options, which override those passed to `pipeline`. The option batch_size is the number of
            inputs passed to the task at once. Question-answering takes `question` and `context` as options if there are
            no `inputs`.

        Raises DataError if an input is not text; ConfigError if there is no input, or if an option cannot be used.
        """
        chosen = generation.over(self.options, options)
        if inputs is None and self.run is question_answering:
            inputs = questions_with_contexts(chosen.pop("question", None), chosen.pop("context", None))
        if inputs is None:
            raise ConfigError(f"the pipeline {self.task!r} got no input; pass a text, or a list of texts")
        _require_known(self.task, self.run, chosen)
        batch_size, known = chosen.pop("batch_size", BATCH_SIZE), options_of(self.run)
        require_positive("batch_size", batch_size)
        if not isinstance(inputs, Iterable):
            raise DataError(f"{inputs!r} is not text; pass a string, or a list of strings")
        single = isinstance(inputs, str | Mapping)
        listed = [inputs] if single else list(inputs)
        if self.run not in READ_MORE:
            listed = list(map(require_text, listed))
        if single:
            output = self.run(self.model, listed, **chosen)[0]
            # As in transformers: for a single text, the class is in a list if the call has no top_k.
            in_list = self.run is text_classification and isinstance(inputs, str) and "top_k" not in options
            return [output] if in_list else output
        outputs = []
        for first in range(0, len(listed), batch_size):
            numbered = {"first": first} if "seed" in known else {}  # sampling depends on the text's number
            outputs += self.run(self.model, listed[first : first + batch_size], **chosen, **numbered)
        alone = self.run in WRITE_ONE and all(len(texts) == 1 for texts in outputs)
        return [texts[0] for texts in outputs] if alone else outputs


def pipeline(task: str, model: str | Path | Model, **options: Any) -> Pipeline:
    """Returns a Pipeline. Call the Pipeline with texts to get the model's answers.

    >>> classify = pipeline("text-classification", model="runs/mrpc_0")        # doctest: +SKIP
    >>> classify({"text": "It rains.", "text_pair": "Rain falls."})            # doctest: +SKIP
    {'label': 'equivalent', 'score': 0.98}

    task: a name in TASKS or ALIASES, or translation_XX_to_YY.
    model: a Model, or a path for `t5x_lite.load`. Special tokens typed in a text are read as `load` says: with their
        own ids if the model comes from Hugging Face, as in transformers. To read them as text, pass
        `load(path, special_tokens=False)`.
    options: keyword arguments of the task's function in TASKS. If you omit a generation option, its value comes from
        the model's directory (hub/generation.py), or else is the default of transformers.

    Raises ConfigError if the task or an option is unknown. If the model cannot do the task, this function does not
    raise an error, but a call of the Pipeline raises ConfigError.
    """
    name = TRANSLATION if task.startswith(f"{TRANSLATION}_") else ALIASES.get(task, task)
    run = lookup("task of a pipeline", name, TASKS)
    _require_known(task, run, options)
    model = model if isinstance(model, Model) else load(Path(model))
    known = options_of(run)
    if "seed" in known:
        # text-generation follows transformers 5, which ignores task_specific_params. Tasks in WRITE_ONE follow
        # transformers 4, which reads it.
        of_directory = generation.settings(model, task if run in WRITE_ONE else "")
        defaults = {name: value for name, value in of_directory.items() if name in known}
        if run is translation and languages_of(model.vocabulary) is not None:
            # The target language is the first token, whatever the directory says.
            defaults.pop("forced_bos_token_id", None)
            if named := re.fullmatch(rf"{TRANSLATION}_(.+)_to_(.+)", task):
                defaults |= {"src_lang": named[1], "tgt_lang": named[2]}
        options = generation.over(defaults, options)
    return Pipeline(task, model, run, options)


def options_of(run: Callable) -> dict[str, Any]:
    """Returns {option: default} of a task. Includes the options of hub/generation.py if the task generates text."""
    parameters = inspect.signature(run).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
    generates = any(p.kind == p.VAR_KEYWORD for p in parameters)
    of_generation = {name: default for name, (_, default) in generation.OPTIONS.items()} | {"seed": 0}
    return own | of_generation if generates else own


def _require_known(task: str, run: Callable, options: Mapping[str, Any]) -> None:
    for name in options.keys() - {"batch_size"}:
        lookup(f"option of the pipeline {task!r}", name, options_of(run))
