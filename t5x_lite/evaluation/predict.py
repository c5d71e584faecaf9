"""Batches in, predicted texts and scores out, for every architecture: what evaluation and inference share."""

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
    """Natural log-probability of an example's targets, and of how many tokens; truncated: of its texts, what fits in
    the run's rows."""

    logprob: float
    tokens: int
    truncated: bool


class Predictor:
    """Predicts a prompt batch at a time; compiled once per shape."""

    def __init__(self, experiment: Experiment, on_devices: Runtime):
        self.experiment, self.on_devices = experiment, on_devices
        module = on_devices.module
        self._forward = jax.jit(lambda params, batch: module.apply({"params": params}, batch))
        self._score = jax.jit(lambda params, batch: _target_logprobs(module.apply({"params": params}, batch), batch))

    def answers(self, task: Task) -> tuple[str, ...]:
        """The ways of `eval.answers` that this model and task have; one at least."""
        if self.experiment.model.architecture == "encoder_only":
            return ("head",)
        one_label = task.labels and not task.target.several
        usable = tuple(way for way in self.experiment.cfg.eval.answers if one_label or way not in NEED_LABELS)
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
        """One prediction for each row of this process's `batch` (one example per row).

        answer: "head" of an encoder; greedy, beam, sample; of tasks with labels also constrained (greedily within
        them) and rank (the most probable of them). rows: the examples' numbers, which alone a sample depends on.
        examples: of the rows, where an encoder finds the answer in their texts.
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
        found = zip(out["tokens"], out["lengths"], out["score"], strict=True)
        return [Prediction(self.text_of(ids[:n], task.labels), float(score), int(n)) for ids, n, score in found]

    def _spans(self, params: Any, examples: Sequence[Mapping], task: Task, batch_rows: int) -> list[Prediction]:
        """The best part of each example's context over all of its windows, or none; every process calls it as often."""
        converter, vocabulary = self.experiment.converter, self.experiment.vocabulary
        features, windows = converter.windows(examples, task, vocabulary) if examples else ({}, [])  # type: ignore[attr-defined]
        found = [Prediction("", -np.inf)] * len(examples)
        none = np.full(len(examples), np.inf)  # the score of no answer, of the window where it is least
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
                none[window.example] = min(none[window.example], logits_S2[0].sum())
                if score > found[window.example].score:
                    begins, ends = window.places[first, 0], window.places[last, 1]
                    text = str(examples[window.example][task.segments[-1]])[begins:ends]
                    found[window.example] = Prediction(text, score)
        if not task.target.always:  # type: ignore[attr-defined]
            return [Prediction("", float(n)) if n > p.score else p for p, n in zip(found, none, strict=True)]
        return found

    def text_of(self, ids: np.ndarray, labels: tuple[str, ...]) -> str:
        """The text of generated ids [tokens]: the label that they are the ids of, if there is one."""
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
        elif answer == "rank":  # with a beam for each label none is lost on the way: the best is the most probable
            return Strategy(beams=max(2, len(task.labels)), length_penalty=0.0)
        return Strategy(**common)

    @functools.cache  # noqa: B019  (one predictor a process)
    def _choices(self, labels: tuple[str, ...]) -> PrefixTree:
        return prefix_tree(list(self._label_of(labels)), self.experiment.vocabulary.eos_id)

    @functools.cache  # noqa: B019
    def _label_of(self, labels: tuple[str, ...]) -> dict[tuple[int, ...], str]:
        """The label that each label's ids stand for: decoding them need not give it back ("not _ entailment")."""
        found: dict[tuple[int, ...], str] = {}
        vocabulary = self.experiment.vocabulary
        begin = [vocabulary.cls_id] if self.experiment.model.fairseq_marks else []
        for label, ids in zip(labels, vocabulary.encode(labels), strict=True):
            other = found.setdefault((*begin, *ids.tolist()), label)
            if other != label:
                raise ConfigError(
                    f"the labels {other!r} and {label!r} are the same ids in this vocabulary; take another"
                )
        return found

    def _row_ids(self, rows: Sequence[int] | None, batch_rows: int) -> jax.Array:
        ids = np.zeros(batch_rows, np.uint32)
        ids[: len(rows or ())] = rows or ()
        return sharding.put_batch({"row": ids}, self.on_devices.layout)["row"]

    def score(self, params: Any, examples: Sequence[Mapping], task: Task, batch_rows: int) -> list[Score]:
        """The score of each supervised text example's targets.

        They are packed, `batch_rows` rows at a time (of this process's; every process calls it as often).
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
        found = [Score(0.0, 0, False)] * len(examples)
        for begin in range(0, rounds * batch_rows, batch_rows):
            mine = np.flatnonzero((row_of >= begin) & (row_of < begin + batch_rows))
            part = packing.take(features, mine) if len(mine) else {}
            batch = packing.fill(part, row_of[mine] - begin, batch_rows, specs, sizes)
            on_mesh = sharding.put_batch(batch, self.on_devices.layout)
            logprobs_BE, tokens_BE = _local(self._score(params, on_mesh), self.on_devices.layout)
            segments: dict[int, int] = {}
            for example in mine:  # in a row, examples are numbered in their order
                row = int(row_of[example]) - begin
                segment = segments[row] = segments.get(row, 0) + 1
                logprob, tokens = float(logprobs_BE[row, segment]), int(tokens_BE[row, segment])
                found[example] = Score(logprob, tokens, bool(truncated[example]))
        return found


def _target_logprobs(outputs: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Σ weight · log p(target) and Σ weight of each segment of each row, [B, segments] both; segment 0 is padding."""
    losses_BL, _ = token_losses(outputs["lm"], batch["decoder_target_tokens"])
    weights_BL, segment_ids_BL = batch["decoder_loss_weights"], batch["decoder_segment_ids"]
    is_of_BLE = segment_ids_BL[..., None] == jnp.arange(segment_ids_BL.shape[1] + 1)
    logprobs_BE = -jnp.einsum("BL,BLE->BE", losses_BL * weights_BL, is_of_BLE, precision=jax.lax.Precision.HIGHEST)
    return logprobs_BE, jnp.einsum("BL,BLE->BE", weights_BL, is_of_BLE)


def _local(tree: Any, layout: Layout) -> Any:
    """This process's rows of global arrays, as numpy."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    by_rows = jax.jit(lambda tree: tree, out_shardings=layout.batch_sharding)(tree)

    def mine(array: jax.Array) -> np.ndarray:
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}  # each row once
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return jax.tree.map(mine, by_rows)
