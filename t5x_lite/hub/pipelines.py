"""`pipeline(task, model=path)`: from texts to answers in one line, as `transformers.pipeline`.

Inputs and outputs are those of transformers 5; of transformers 4 for the tasks that 5 dropped. A task is a function
from a model and a list of inputs to the list of their outputs; its keyword arguments are the options of a caller. The
functions are in classification_pipelines.py, token_pipelines.py and text_pipelines.py.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

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

BATCH_SIZE = 1024  # inputs handed to a task at once. It sorts them by length; the model reads 32 rows at a time
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
READ_MORE = (text_classification, question_answering)  # than single texts
WRITE_ONE = (text2text_generation, summarization, translation)  # one text each: no lists of one in a list


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A task with its model: call it with one input, or with any number of them."""

    task: str
    model: Model
    run: Callable[..., list]
    options: Mapping[str, Any]

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        """The output of one input (a text, or the mapping that the task takes instead), or the list of many inputs'
        outputs.

        options: the task's own, in place of those that `pipeline` was given.  batch_size: inputs handed to the task at
        once.  question, context: of question-answering, in place of inputs.

        Raises DataError for an input that is no text, ConfigError for an option that cannot be used.
        """
        chosen = generation.over(self.options, options)
        if inputs is None and self.run is question_answering:
            inputs = questions_with_contexts(chosen.pop("question", None), chosen.pop("context", None))
        if inputs is None:
            raise ConfigError(f"the pipeline {self.task!r} got no input; give it one, or a list of them")
        _require_known(self.task, self.run, chosen)
        batch_size, known = chosen.pop("batch_size", BATCH_SIZE), options_of(self.run)
        require_positive("batch_size", batch_size)
        if not isinstance(inputs, Iterable):
            raise DataError(f"{inputs!r} is no text; give one, or a list of them")
        single = isinstance(inputs, str | Mapping)
        listed = [inputs] if single else list(inputs)
        if self.run not in READ_MORE:
            listed = list(map(require_text, listed))
        if single:
            output = self.run(self.model, listed, **chosen)[0]
            # The class of one text is in a list, as in transformers, where the call has no top_k.
            in_list = self.run is text_classification and isinstance(inputs, str) and "top_k" not in options
            return [output] if in_list else output
        outputs = []
        for first in range(0, len(listed), batch_size):
            numbered = {"first": first} if "seed" in known else {}  # sampling depends on the text's number
            outputs += self.run(self.model, listed[first : first + batch_size], **chosen, **numbered)
        alone = self.run in WRITE_ONE and all(len(texts) == 1 for texts in outputs)
        return [texts[0] for texts in outputs] if alone else outputs


def pipeline(task: str, model: str | Path | Model, **options: Any) -> Pipeline:
    """A function from texts to the answers of a model. model: a Model, or a path that `t5x_lite.load` takes.

    >>> classify = pipeline("text-classification", model="runs/mrpc_0")        # doctest: +SKIP
    >>> classify({"text": "It rains.", "text_pair": "Rain falls."})            # doctest: +SKIP
    {'label': 'equivalent', 'score': 0.98}

    options: those of the task's function in TASKS. Options of generation that you omit default to those of the model's
    directory (hub/generation.py), and then to those of transformers.

    Raises ConfigError for an unknown task or option. A call raises it where the model cannot do the task.
    """
    name = TRANSLATION if task.startswith(f"{TRANSLATION}_") else ALIASES.get(task, task)
    run = lookup("task of a pipeline", name, TASKS)
    _require_known(task, run, options)
    model = model if isinstance(model, Model) else load(Path(model))
    known = options_of(run)
    if "seed" in known:
        # text-generation is that of transformers 5, which knows no task_specific_params; the others are those of 4.
        of_directory = generation.settings(model, task if run in WRITE_ONE else "")
        defaults = {name: value for name, value in of_directory.items() if name in known}
        options = generation.over(defaults, options)
    return Pipeline(task, model, run, options)


def options_of(run: Callable) -> dict[str, Any]:
    """The options of a task with their defaults. Where it generates text, those of hub/generation.py are among them."""
    parameters = inspect.signature(run).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
    generates = any(p.kind == p.VAR_KEYWORD for p in parameters)
    of_generation = {name: default for name, (_, default) in generation.OPTIONS.items()} | {"seed": 0}
    return own | of_generation if generates else own


def _require_known(task: str, run: Callable, options: Mapping[str, Any]) -> None:
    for name in options.keys() - {"batch_size"}:
        lookup(f"option of the pipeline {task!r}", name, options_of(run))
