"""Predicts texts, and scores given texts, for every architecture. Evaluation and inference share this code."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.batch import Batch
from t5x_lite.cluster import processes, sharding
from t5x_lite.cluster.sharding import Layout
from t5x_lite.config import NEED_LABELS
from t5x_lite.data import convert, packing
from t5x_lite.data.fields import vocabulary_of
from t5x_lite.data.registry import Task
from t5x_lite.data.targets import Span
from t5x_lite.decoding import generate
from t5x_lite.decoding.buckets import cut_to_bucket
from t5x_lite.decoding.constraint import PrefixTree, prefix_tree
from t5x_lite.decoding.strategy import Strategy
from t5x_lite.errors import ConfigError
from t5x_lite.evaluation import read_heads
from t5x_lite.evaluation.read_heads import Prediction
from t5x_lite.experiment import Experiment
from t5x_lite.runtime import Runtime
from t5x_lite.training.losses import token_losses


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of an example's targets.

    logprob: natural log-probability of the targets.
    tokens: number of target tokens.
    truncated: whether the example was cut because it does not fit in the run's rows.
    """

    logprob: float
    tokens: int
    truncated: bool


class Predictor:
    """Predicts one batch of prompts at a time. Compiles one program per shape."""

    def __init__(self, experiment: Experiment, on_devices: Runtime):
        self.experiment, self.on_devices = experiment, on_devices
        module = on_devices.module
        self._forward = jax.jit(lambda params, batch: module.apply({"params": params}, batch))
        self._score = jax.jit(lambda params, batch: _target_logprobs(module.apply({"params": params}, batch), batch))

    def answers(self, task: Task) -> tuple[str, ...]:
        """Returns the answers of `eval.answers` that this model and task support. Returns at least one."""
        if self.experiment.model.architecture == "encoder_only":
            return ("head",)
        one_label = task.labels and not task.target.several
        usable = tuple(name for name in self.experiment.cfg.eval.answers if one_label or name not in NEED_LABELS)
        return usable or ("greedy",)

    def predict(
        self,
        params: Any,
        batch: Batch,
        task: Task,
        answer: str = "greedy",
        rows: Sequence[int] | None = None,
        examples: Sequence[Mapping] = (),
    ) -> list[Prediction]:
        """Returns one prediction for each row of this process's `batch` (one example per row).

        batch: numpy arrays [B, …].
        answer: "head" for an encoder. For other models greedy, beam or sample; if the task has labels, also constrained
            (greedy, but restricted to the labels) or rank (the most probable label).
        rows: the examples' numbers. A sample depends only on these numbers and the seed.
        examples: the text examples of the rows. An encoder's tags and spans are read from these texts.

        Raises ConfigError if two labels have the same token ids.
        """
        vocabulary = self.experiment.vocabulary
        architecture = self.experiment.model.architecture
        batch = cut_to_bucket(batch, architecture)
        on_mesh = sharding.put_batch(batch, self.on_devices.layout)
        if architecture == "encoder_only":
            if isinstance(task.target, Span):
                return self._spans(params, examples, task, len(batch["encoder_input_tokens"]))
            outputs = _local(self._forward(params, on_mesh), self.on_devices.layout)
            return read_heads.read(outputs, batch, examples, task)
        out = generate.generate(
            self.on_devices.module,
            params,
            on_mesh,
            self._strategy(task, answer),
            eos_id=vocabulary.eos_id,
            start_id=convert.start(self.experiment.model.decoder_start_id, vocabulary),
            choices=self._choices(task.labels) if answer in NEED_LABELS else None,
            seed=self.experiment.cfg.seed,
            row_ids=self._row_ids(rows, len(next(iter(batch.values())))),
        )
        out = _local({name: out[name][:, 0] for name in ("tokens", "lengths", "score")}, self.on_devices.layout)
        generated = zip(out["tokens"], out["lengths"], out["score"], strict=True)
        return [Prediction(self.text_of(ids[:n], task.labels), float(score), int(n)) for ids, n, score in generated]

    def _spans(self, params: Any, examples: Sequence[Mapping], task: Task, batch_rows: int) -> list[Prediction]:
        """Returns one prediction per example: the best span in all windows of its context, or "" for no answer.

        All processes must call this equally often.
        """
        converter, vocabulary = self.experiment.converter, self.experiment.vocabulary
        features, windows = converter.windows(examples, task, vocabulary) if examples else ({}, [])  # type: ignore[attr-defined]
        best = [Prediction("", -np.inf)] * len(examples)
        no_answer = np.full(len(examples), np.inf)  # score of "no answer": the lowest of all windows
        for begin in range(0, processes.largest(-(-len(windows) // batch_rows)) * batch_rows, batch_rows):
            numbers = np.arange(begin, min(begin + batch_rows, len(windows)))
            part = packing.take(features, numbers) if len(numbers) else {}
            batch = packing.fill(
                part, numbers - begin, batch_rows, converter.specs(), converter.prompt_sizes(max_new_tokens=0)
            )
            on_mesh = sharding.put_batch(batch, self.on_devices.layout)
            logits_BS2 = _local(self._forward(params, on_mesh), self.on_devices.layout)["span"]
            for window, logits_S2 in zip((windows[n] for n in numbers), logits_BS2, strict=False):
                score, first, last = read_heads.span(logits_S2, window, self.experiment.cfg.eval.max_answer_tokens)
                no_answer[window.example] = min(no_answer[window.example], logits_S2[0].sum())
                if score > best[window.example].score:
                    begins, ends = window.places[first, 0], window.places[last, 1]
                    text = str(examples[window.example][task.segments[-1]])[begins:ends]
                    best[window.example] = Prediction(text, score)
        if not task.target.always:  # type: ignore[attr-defined]
            return [Prediction("", float(n)) if n > p.score else p for p, n in zip(best, no_answer, strict=True)]
        return best

    def text_of(self, ids: np.ndarray, labels: tuple[str, ...]) -> str:
        """Returns the label that has exactly these ids. If there is none, decodes the ids. ids: int [tokens]."""
        return self._label_of(labels).get(tuple(ids.tolist())) or self.experiment.vocabulary.decode(ids)

    def _strategy(self, task: Task, answer: str) -> Strategy:
        cfg = self.experiment.cfg.eval
        common = {
            "max_tokens": cfg.max_decode_tokens,
            "min_tokens": cfg.min_decode_tokens,
            "repetition_penalty": cfg.repetition_penalty,
            "no_repeat_ngram_size": cfg.no_repeat_ngram_size,
        }
        if answer == "beam":
            common |= {"beams": cfg.beams, "length_penalty": cfg.length_penalty}
        elif answer == "sample":
            common |= {"temperature": cfg.temperature, "top_k": cfg.top_k, "top_p": cfg.top_p}
        elif answer == "constrained":
            return Strategy()
        elif answer == "rank":  # one beam per label: no label is pruned, so the best one is the most probable
            return Strategy(beams=max(2, len(task.labels)), length_penalty=0.0)
        return Strategy(**common)

    @functools.cache  # noqa: B019  (one predictor per process)
    def _choices(self, labels: tuple[str, ...]) -> PrefixTree:
        return prefix_tree(list(self._label_of(labels)), self.experiment.vocabulary.eos_id)

    @functools.cache  # noqa: B019
    def _label_of(self, labels: tuple[str, ...]) -> dict[tuple[int, ...], str]:
        """Returns {token ids: label}. Decoding the ids instead may give a different text ("not _ entailment").

        Raises ConfigError if two labels have the same ids.
        """
        label_of: dict[tuple[int, ...], str] = {}
        vocabulary = self.experiment.vocabulary
        begin = [vocabulary.cls_id] if self.experiment.model.fairseq_marks else []
        begin += getattr(self.experiment.converter, "begins", ())  # the mark of a language
        for label, ids in zip(labels, vocabulary_of("targets", vocabulary).encode(labels), strict=True):
            other = label_of.setdefault((*begin, *ids.tolist()), label)
            if other != label:
                raise ConfigError(
                    f"the labels {other!r} and {label!r} have the same ids in this vocabulary; rename one"
                )
        return label_of

    def _row_ids(self, rows: Sequence[int] | None, batch_rows: int) -> jax.Array:
        ids = np.zeros(batch_rows, np.uint32)
        ids[: len(rows or ())] = rows or ()
        return sharding.put_batch({"row": ids}, self.on_devices.layout)["row"]

    def score(self, params: Any, examples: Sequence[Mapping], task: Task, batch_rows: int) -> list[Score]:
        """Returns the score of each supervised text example's targets.

        Packs the examples and scores them in batches of `batch_rows` rows of this process. All processes must call this
        equally often. Raises DataError if an example lacks a field or has a wrong one.
        """
        converter, vocabulary = self.experiment.converter, self.experiment.vocabulary
        specs, sizes = converter.specs(), converter.sizes(pack=True)
        row_of = np.zeros(0, np.int64)
        features: packing.Examples = {}
        truncated = np.zeros(0, bool)
        if examples:
            features, truncated = converter.supervised(examples, task, vocabulary)
            lengths = packing.lengths_of(features, specs, "".join(sizes))
            row_of = packing.assign(lengths, np.array(list(sizes.values())))
        rounds = processes.largest(-(-(int(row_of.max(initial=-1)) + 1) // batch_rows))
        scores = [Score(0.0, 0, False)] * len(examples)
        for begin in range(0, rounds * batch_rows, batch_rows):
            in_batch = np.flatnonzero((row_of >= begin) & (row_of < begin + batch_rows))
            part = packing.take(features, in_batch) if len(in_batch) else {}
            batch = packing.fill(part, row_of[in_batch] - begin, batch_rows, specs, sizes)
            on_mesh = sharding.put_batch(batch, self.on_devices.layout)
            logprobs_BE, tokens_BE = _local(self._score(params, on_mesh), self.on_devices.layout)
            segments: dict[int, int] = {}
            for example in in_batch:  # segment n of a row is its n-th example
                row = int(row_of[example]) - begin
                segment = segments[row] = segments.get(row, 0) + 1
                logprob, tokens = float(logprobs_BE[row, segment]), int(tokens_BE[row, segment])
                scores[example] = Score(logprob, tokens, bool(truncated[example]))
        return scores


def _target_logprobs(outputs: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Returns (Σ weight · log p(target), Σ weight) over the tokens of each segment, both [B, L + 1].

    Column n is segment n of the row; segment 0 is the padding. outputs: {"lm": logits [B, L, V]}.
    batch: the decoder's arrays [B, L].
    """
    losses_BL, _ = token_losses(outputs["lm"], batch["decoder_target_tokens"])
    weights_BL, segment_ids_BL = batch["decoder_loss_weights"], batch["decoder_segment_ids"]
    is_of_BLE = segment_ids_BL[..., None] == jnp.arange(segment_ids_BL.shape[1] + 1)[None, None, :]
    logprobs_BE = -jnp.einsum("BL,BLE->BE", losses_BL * weights_BL, is_of_BLE, precision=jax.lax.Precision.HIGHEST)
    return logprobs_BE, jnp.einsum("BL,BLE->BE", weights_BL, is_of_BLE)


def _same(tree: Any) -> Any:  # not a lambda inside `_local`, which would be compiled at every call
    return tree


def _local(tree: Any, layout: Layout) -> Any:
    """Returns the tree with its global arrays [B, …] as numpy arrays that have only the rows of this process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    by_rows = jax.jit(_same, out_shardings=layout.batch_sharding)(tree)

    def local_rows(array: jax.Array) -> np.ndarray:
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}  # each row once
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return jax.tree.map(local_rows, by_rows)
