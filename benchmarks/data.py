"""Measures how fast the data engine turns a text file into numpy batches, in tokens per core-second.

    python benchmarks/data.py                                  # everything; about two minutes
    python benchmarks/data.py --measure=throughput --vocabularies=spm --corpus=FILE --length=512 --targets_length=114

The corpus is a text file with one document per line. Without --corpus it is Python's own documentation, cut into
documents of about 2,000 characters and repeated until it has --megabytes. The vocabulary `spm` is the SentencePiece
model in --model; without --model, one with --pieces pieces is trained on the corpus. Each measure runs in its own
process for each vocabulary. Prints JSON lines. Each figure is the median of --samples samples, each of --seconds CPU
seconds. Tokens are those of encoder and decoder, without padding. Times are CPU times of the process, unless called
wall time:

    throughput  tokens_per_core_s
                first_batch_s: wall time from the start of the process to the first batch
                rss_mb: peak memory of the process
                tokenizer_alone_per_core_s: tokens per core-second of `vocabulary.encode` on the same texts
    stages      nanoseconds per token in each stage: tokenise, chunk, noise, pack, batch and the rest
    lengths     nanoseconds per token in rows of 128 to 4096 tokens
    mixtures    nanoseconds per token with 1 to 100 tasks
    packing     documents with C4-like lengths are packed into rows of 512 tokens: utilisation of the rows, and examples
                packed per core-second
    seqio_packing   the same with SeqIO's packer
    cached      throughput if the task is read from a cache (`t5x-lite cache`)
    seqio       throughput of SeqIO on the same corpus, vocabulary and task, if seqio and t5 are installed
    resume      wall time from restoring the state of step 1,000,000 to the first batch, and the size of that state
"""

import time

START = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from unittest import mock  # noqa: E402

import numpy as np  # noqa: E402

from t5x_lite.batch import DECODER  # noqa: E402
from t5x_lite.cli import HUGE_PAGES  # noqa: E402  (`t5x-lite train` restarts itself with huge pages)
from t5x_lite.data import convert, denoise, make_cache, packing, pipeline, registry, sources, streams, vocabularies  # noqa: E402
from t5x_lite.data.ragged import Ragged  # noqa: E402
from t5x_lite.data.registry import Feature, Mixture, Task  # noqa: E402

MEASURES = ("throughput", "stages", "lengths", "mixtures", "packing", "cached", "resume", "seqio", "seqio_packing")
ROW_LENGTH = 512  # tokens per row in the measures `packing` and `seqio_packing`
STAGES = {
    "chunk": [(convert, "chunks")],
    "noise": [(convert, "corrupt_each")],
    "pack": [(packing, "assign"), (packing, "fill")],
    "batch": [(pipeline.batches, "check")],
}


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        if not args.corpus:
            args.corpus = str(Path(scratch) / "corpus.txt")
            write_documentation(Path(args.corpus), args.megabytes)
        if "spm" in args.vocabularies and not args.model:
            args.model = str(Path(scratch) / "spm.model")
            vocabularies.train_sentencepiece(size=args.pieces, output=Path(args.model), texts=_sample(args.corpus))
        flags = [f"--{k}={v}" for k, v in vars(args).items() if k not in ("measure", "vocabularies", "worker")]
        for measure in args.measure.split(","):
            for vocabulary in args.vocabularies.split(",") if "packing" not in measure else ["none"]:
                command = [sys.executable, __file__, *flags, f"--measure={measure}", f"--vocabularies={vocabulary}"]
                environment = os.environ | {"GLIBC_TUNABLES": HUGE_PAGES}
                subprocess.run([*command, "--worker"], check=True, env=environment)


def work(args: argparse.Namespace) -> None:
    """Runs one measure with one vocabulary. Each call is in its own process."""
    name = args.vocabularies
    vocabulary = None
    if name != "none":
        vocabulary = vocabularies.ByteVocabulary(100) if name == "bytes" else vocabularies.load(args.model)
        register(args.corpus, 1)
    results = {
        "throughput": throughput,
        "stages": stages,
        "lengths": lengths,
        "mixtures": mixtures,
        "packing": packed,
        "cached": cached,
        "seqio": with_seqio,
        "seqio_packing": packed_with_seqio,
        "resume": resume,
    }[args.measure](args, vocabulary)
    print(json.dumps({"measure": args.measure, "vocabulary": name, **results}), flush=True)


def register(corpus: str, tasks: int) -> None:
    """Registers the mixture "bench", which has `tasks` tasks with equal rates. All read the same corpus."""
    names = [f"bench_{n}" for n in range(tasks)]
    for n in names:
        registry.add(Task(n, sources.Text({"train": corpus}), features={"text": Feature()}))
    registry.add(Mixture("bench", dict.fromkeys(names, 1.0)))


def batches_of(args: argparse.Namespace, vocabulary, cache_dir: str = "", **changed) -> pipeline.TrainBatches:
    return pipeline.train_batches(
        registry.mixture("bench"),
        converter_of(args, **changed),
        vocabulary,
        batch_rows=args.batch_rows,
        seed=0,
        prefetch_batches=0,
        cache_dir=cache_dir,
    )


def converter_of(args: argparse.Namespace, **changed) -> convert.TextToText:
    shape = {"length": args.length, "targets_length": args.targets_length} | changed
    denoiser = denoise.Denoiser(mean_noise_span_length=shape.pop("mean_noise_span_length", 3.0))
    return convert.TextToText(**shape, denoisers=(denoiser,))


def rates(batches: Iterator, args: argparse.Namespace) -> list[float]:
    """Returns tokens per core-second for each sample. Skips the first batches, which fill the windows."""
    for _ in range(64):
        next(batches)
    return [_rate(batches, args.seconds) for _ in range(args.samples)]


def _rate(batches: Iterator, seconds: float) -> float:
    tokens, spent, rows = 0, 0.0, 0
    while spent < seconds or rows < 2 * streams.ROWS_PER_WINDOW:  # rows come in bursts, one per window
        begin = time.process_time()
        batch = next(batches)
        spent += time.process_time() - begin
        rows += len(next(iter(batch.values())))
        tokens += sum(int((ids > 0).sum()) for name, ids in batch.items() if name.endswith("segment_ids"))
    return tokens / spent


def throughput(args: argparse.Namespace, vocabulary) -> dict:
    batches = batches_of(args, vocabulary)
    next(batches)
    first_batch_s = time.perf_counter() - START
    samples = rates(batches, args)
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    alone = _tokenizer_alone(args, vocabulary)
    return {
        "tokens_per_core_s": round(statistics.median(samples)),
        "lowest": round(min(samples)),
        "highest": round(max(samples)),
        "tokenizer_alone_per_core_s": round(alone),
        "first_batch_s": round(first_batch_s, 3),
        "rss_mb": round(rss_mb),
    }


def _tokenizer_alone(args: argparse.Namespace, vocabulary) -> float:
    texts = _sample(args.corpus)
    samples = []
    for _ in range(args.samples):
        tokens, begin = 0, time.process_time()
        while time.process_time() - begin < args.seconds / 2:
            for n in range(0, len(texts), 64):
                tokens += sum(map(len, vocabulary.encode(texts[n : n + 64])))
        samples.append(tokens / (time.process_time() - begin))
    return statistics.median(samples)


def stages(args: argparse.Namespace, vocabulary) -> dict:
    """Returns the nanoseconds per token of each stage, measured by a clock around the stage's functions."""
    spent = dict.fromkeys(("tokenise", *STAGES), 0.0)

    def clocked(stage: str, function: Callable) -> Callable:
        def call(*values, **named):
            begin = time.process_time()
            try:
                return function(*values, **named)
            finally:
                spent[stage] += time.process_time() - begin

        return call

    for stage, places in STAGES.items():
        for module, name in places:
            mock.patch.object(module, name, clocked(stage, getattr(module, name))).start()
    kind = type(vocabulary)
    mock.patch.object(kind, "encode", clocked("tokenise", kind.encode)).start()
    batches = batches_of(args, vocabulary)
    for _ in range(64):
        next(batches)
    samples = []
    for _ in range(args.samples):
        before, begin = dict(spent), time.process_time()
        ns = 1e9 / _rate(batches, args.seconds)
        whole = time.process_time() - begin
        shares = {stage: (spent[stage] - before[stage]) / whole for stage in spent}
        samples.append({stage: ns * share for stage, share in shares.items()} | {"all": ns})
    medians = {stage: round(statistics.median(s[stage] for s in samples), 1) for stage in samples[0]}
    rest = medians["all"] - sum(ns for stage, ns in medians.items() if stage != "all")
    return {"ns_per_token": medians | {"rest": round(rest, 1)}}


def lengths(args: argparse.Namespace, vocabulary) -> dict:
    ns_of_length = {}
    for length in (128, 256, 512, 1024, 2048, 4096):
        mean = 3.0 if length <= 1024 else 20.0  # longer spans, because there are only 100 sentinels
        _, targets = denoise.span_corruption_lengths(length, 0.15, mean)
        batches = batches_of(args, vocabulary, length=length, targets_length=targets, mean_noise_span_length=mean)
        ns_of_length[length] = _nanoseconds(batches, args)
    return {"ns_per_token": ns_of_length}


def mixtures(args: argparse.Namespace, vocabulary) -> dict:
    found = {}
    for tasks in (1, 3, 10, 30, 100):
        register(args.corpus, tasks)
        begin = time.perf_counter()
        batches = batches_of(args, vocabulary)
        next(batches)
        found[tasks] = {"first_batch_s": round(time.perf_counter() - begin, 3)}
        found[tasks]["ns"] = _nanoseconds(batches, args)
        found[tasks]["state_bytes"] = len(json.dumps(batches.get_state()))
    return {"ns_per_token": found}


def _nanoseconds(batches: Iterator, args: argparse.Namespace) -> float:
    return round(1e9 / statistics.median(rates(batches, args)), 1)


def packed(args: argparse.Namespace, vocabulary) -> dict:
    specs = {name: DECODER[name] for name in ("decoder_target_tokens", "decoder_segment_ids", "decoder_positions")}
    rows_per_window = streams.ROWS_PER_WINDOW // pipeline.stream_count(args.batch_rows)
    windows, window, total = [], [], 0
    for length in document_lengths().tolist():
        window.append(length)
        total += length
        if total >= rows_per_window * ROW_LENGTH:
            lengths = np.array(window)
            windows.append({"decoder_target_tokens": Ragged(np.ones(total, np.int32), lengths)})
            window, total = [], 0
    speeds, rows = [], 0
    for _ in range(args.samples):
        begin, rows = time.process_time(), 0
        for examples in windows:
            row_of = packing.assign(packing.lengths_of(examples, specs, "L"), np.array([ROW_LENGTH]))
            count = int(row_of.max()) + 1
            packing.fill(examples, row_of, count, specs, {"L": ROW_LENGTH})
            rows += count
        speeds.append(sum(map(packing.count, windows)) / (time.process_time() - begin))
    used = sum(int(examples["decoder_target_tokens"].lengths.sum()) for examples in windows)
    return {
        "utilisation": round(used / (ROW_LENGTH * rows), 4),
        "examples_per_core_s": round(statistics.median(speeds)),
    }


def document_lengths() -> np.ndarray:
    """Returns 20,000 log-normal lengths, fitted to C4's documents (in T5's pieces) and cut at ROW_LENGTH."""
    return np.clip(np.random.default_rng(0).lognormal(5.5, 1.0, 20_000).astype(int), 1, ROW_LENGTH)


def packed_with_seqio(args: argparse.Namespace, vocabulary) -> dict:
    try:
        import seqio  # pyright: ignore[reportMissingImports]
        import tensorflow as tf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return {"skipped": f"{error.name} is not installed"}
    lengths = document_lengths()
    values = np.ones(int(lengths.sum()), np.int32)
    examples = tf.data.Dataset.from_tensor_slices(tf.RaggedTensor.from_row_lengths(values, lengths))
    packed_rows = seqio.trim_and_pack_dataset(examples.map(lambda ids: {"targets": ids}), {"targets": ROW_LENGTH})
    speeds, rows = [], 0
    for _ in range(args.samples):
        begin = time.process_time()
        rows = sum(1 for _ in packed_rows.as_numpy_iterator())
        speeds.append(len(lengths) / (time.process_time() - begin))
    return {
        "utilisation": round(int(lengths.sum()) / (ROW_LENGTH * rows), 4),
        "examples_per_core_s": round(statistics.median(speeds)),
    }


def cached(args: argparse.Namespace, vocabulary) -> dict:
    with tempfile.TemporaryDirectory() as directory:
        begin = time.perf_counter()
        tasks = registry.tasks("bench")
        make_cache.run(tasks, converter_of(args), vocabulary, Path(directory), workers=2, report=lambda text: None)
        made_s = time.perf_counter() - begin
        begin = time.perf_counter()
        batches = batches_of(args, vocabulary, directory)
        next(batches)
        first_batch_s = time.perf_counter() - begin
        samples = rates(batches, args)
    return {
        "tokens_per_core_s": round(statistics.median(samples)),
        "lowest": round(min(samples)),
        "highest": round(max(samples)),
        "first_batch_s": round(first_batch_s, 3),
        "made_s": round(made_s, 1),
    }


def resume(args: argparse.Namespace, vocabulary) -> dict:
    batches = batches_of(args, vocabulary)
    for _ in range(10):
        next(batches)
    state = batches.get_state()
    for stream in state["streams"].values():  # the positions after a million steps
        stream["drawn"] += 1_000_000 * args.batch_rows
        stream["tasks"] = pipeline.encode_positions(np.array([[10**6, 0, 0]]))
    samples = []
    for _ in range(args.samples):
        again = batches_of(args, vocabulary)
        begin = time.perf_counter()
        again.set_state(state)
        next(again)
        samples.append(time.perf_counter() - begin)
    return {"restore_s": round(statistics.median(samples), 3), "state_bytes": len(json.dumps(state))}


def with_seqio(args: argparse.Namespace, vocabulary) -> dict:
    """Measures SeqIO 0.0.20 on T5's pre-training task, as the package t5 0.9 defines it with TensorFlow."""
    try:
        import seqio  # pyright: ignore[reportMissingImports]
        from t5.data import preprocessors  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return {"skipped": f"{error.name} is not installed"}
    is_bytes = isinstance(vocabulary, vocabularies.ByteVocabulary)
    theirs = seqio.ByteVocabulary(100) if is_bytes else seqio.SentencePieceVocabulary(args.model, 100)
    lengths = {"inputs": args.length, "targets": args.targets_length}
    seqio.TaskRegistry.add(
        "bench",
        source=seqio.TextLineDataSource({"train": args.corpus}),
        preprocessors=[
            lambda lines: lines.map(lambda line: {"targets": line}),
            seqio.preprocessors.tokenize,
            preprocessors.span_corruption,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={side: seqio.Feature(theirs) for side in lengths},
    )
    examples = seqio.get_mixture_or_task("bench").get_dataset(lengths, "train", shuffle=True, num_epochs=None, seed=0)
    packed_rows = seqio.EncDecFeatureConverter(pack=True)(examples, lengths).batch(args.batch_rows)
    batches = (
        {name: ids for name, ids in batch.items() if name.endswith("segment_ids")}
        for batch in packed_rows.as_numpy_iterator()
    )
    next(batches)
    first_batch_s = time.perf_counter() - START
    samples = rates(batches, args)
    return {
        "tokens_per_core_s": round(statistics.median(samples)),
        "lowest": round(min(samples)),
        "highest": round(max(samples)),
        "first_batch_s": round(first_batch_s, 3),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def write_documentation(path: Path, megabytes: float) -> None:
    """Writes Python's documentation in lines of about 2,000 characters, repeated up to about `megabytes` MB."""
    from t5x_lite.tasks import python_docs

    lines, line = [], ""
    for document in python_docs.gather(python_docs.default_stdlib()):
        line += " " + " ".join(document["text"].split())
        if len(line) > 1800:
            lines.append(line.strip())
            line = ""
    text = "\n".join(lines) + "\n"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(max(1, round(megabytes * 1e6 / len(text.encode())))):
            file.write(text)


def _sample(corpus: str) -> list[str]:
    documents = sources.Text({"train": corpus}).split("train")
    return [documents[n]["text"] for n in range(min(2000, len(documents)))]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", default=",".join(MEASURES))
    parser.add_argument("--vocabularies", default="spm,bytes")
    parser.add_argument("--corpus", default="", help="text file with one document per line")
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--model", default="", help="SentencePiece model; without this flag, one is trained")
    parser.add_argument("--pieces", type=int, default=8000)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--targets_length", type=int, default=114)
    parser.add_argument("--batch_rows", type=int, default=32)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = _arguments()
    if arguments.worker:
        work(arguments)
    else:
        main()
