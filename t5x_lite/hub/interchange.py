"""Implements the verbs `import` and `export`: converts Hugging Face directories to our checkpoints, and back.

An imported directory DIR holds the files below. A run can start from them with the flags in the right column:

    model.json         the model, as fields of ModelConfig          --config.model.preset=DIR
    checkpoints/0      its parameters                               --config.init.checkpoint=DIR
    tokenizer.json …   the tokenizer's files, unchanged             --config.data.vocabulary=DIR
    huggingface.json   the original config.json, from which export copies the settings that our models do not use
    import.json        what the import did with every tensor
    source.txt         hf://OWNER/NAME@COMMIT, if the model came from the hub
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from t5x_lite import atomic, side_files
from t5x_lite.checkpoints import checkpoint
from t5x_lite.data import convert, tokenizer_settings, vocabularies
from t5x_lite.data.vocabularies import ByteVocabulary, Vocabulary
from t5x_lite.data.vocabulary import read_file
from t5x_lite.data.vocabulary_directory import T5_CLASSES
from t5x_lite.errors import CheckpointError, ConfigError
from t5x_lite.heads import EMBEDDINGS, HEADS
from t5x_lite.hub import mapping, parameters, peft, t5x, weights
from t5x_lite.hub.import_report import ImportReport
from t5x_lite.hub.model import Model
from t5x_lite.models import lora, stored
from t5x_lite.models.config import ModelConfig

SOURCE = "source.txt"
# Export does not copy these keys of the original config.json. They describe the original tensors and tokenizer.
OF_THE_ORIGIN = (
    "architectures", "id2label", "label2id", "num_labels", "_num_labels", "problem_type", "tie_word_embeddings",
    "dtype", "torch_dtype", "tokenizer_class",
)  # fmt: skip


def import_directory(source: Path, out: Path, *, allow: Sequence[str] = (), vocab_size: int = 0) -> ImportReport:
    """Imports a Hugging Face directory or a T5X checkpoint into the new directory `out`, and returns the report.

    `out` appears complete or not at all.

    allow: names of tensors that may stay unused, and paths of parameters that may start fresh; see `parameters.load`.
    vocab_size: the new number of rows of the embedding table; 0: the number stays the same.

    Raises CheckpointError if the source cannot be read or `out` cannot be written; ConfigError if `out` is not empty,
    if its path cannot hold checkpoints (`checkpoint.check_path`), or if the tokenizer is too large for the model.
    """
    checkpoint.check_path(out)
    if t5x.is_directory(source) or (source.is_file() and source.suffix not in (*weights.PICKLES, ".safetensors")):
        config, params, report = t5x.load(source)
        with _new_directory(out) as directory:
            _write_checkpoint(directory, config, params, report)
        return report
    opened = parameters.open_directory(source)
    config = opened.config
    if vocab_size:
        config = dataclasses.replace(config, vocab_size=vocab_size).validate()
    if (vocabulary := _vocabulary(source, config)) is not None:
        config = parameters.with_marks_of(config, vocabulary)
    with _new_directory(out) as directory:
        params, report = parameters.load(opened, config, parameters.layout_for(config), allow=allow)
        _write_checkpoint(directory, config, params, report)
        _write_json(directory / stored.SETTINGS, dict(opened.settings))
        _copy_tokenizer(source, directory)
    return report


def _write_checkpoint(directory: Path, config: ModelConfig, params: Any, report: ImportReport) -> None:
    step = directory / checkpoint.DIRECTORY / "0"
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save((step / "params").absolute(), params)
    checkpoint.seal(step, 0, {"params": checkpoint.kinds_of(params)})
    _write_json(directory / stored.FILE, dataclasses.asdict(config))
    (directory / "import.json").write_text(report.to_json(), encoding="utf-8")


def export_directory(
    config: ModelConfig,
    params: Any,
    out: Path,
    *,
    vocabulary: Vocabulary | None = None,
    labels: Sequence[str] = (),
    origin: Path | None = None,
    family: str = "",
) -> str:
    """Writes a model in Hugging Face format and returns the name of its family. `out` appears complete or not at all.

    vocabulary: the vocabulary of the model. Its files are copied to `out`, and the ids of its special tokens go to
        config.json.
    labels: names of the classes.
    origin: the imported directory that the model started from. The settings in the original config.json that our models
        do not use are copied to the new one.
    family: the name of a family; "": the origin's family, or else the first that can express the model.

    Raises ConfigError if the family cannot express the model, or if `out` is not empty; CheckpointError if writing
    fails.
    """
    settings: dict[str, Any] = {}
    if origin is not None and side_files.is_there(where := origin / stored.SETTINGS):
        settings = mapping.read_json(where)
        family = family or mapping.family_of(settings, where).model_type
    chosen = mapping.family_for(config, family)
    ids = token_ids(config, vocabulary) if vocabulary is not None else {}
    new = mapping.write_config(config, chosen, labels, ids)
    if settings.get("model_type") == chosen.model_type:
        kept = {k: v for k, v in settings.items() if k not in OF_THE_ORIGIN}
        # Keep the origin's constants, but replace an id if the vocabulary has a different one. A constant may be a
        # list of ids (Llama 3.1 has three end tokens). Keep the list if the vocabulary's id is in it.
        differ = {k for k in ids if ids[k] != kept.get(k) and not (isinstance(kept.get(k), list) and ids[k] in kept[k])}
        new = kept | {k: v for k, v in new.items() if k not in kept or k not in chosen.constants or k in differ}
    # For a model without heads, the class in transformers (such as BertModel) has tensor names without the prefix.
    bare = config.architecture == "encoder_only" and set(config.heads) <= {"pooled"}
    shapes, tensors = parameters.tensors(config, chosen, params, without_prefix=bare)
    with _new_directory(out) as directory:
        weights.write(directory, shapes, tensors)
        _write_json(directory / "config.json", new)
        if isinstance(vocabulary, ByteVocabulary):  # it has no files; ByT5's directories have this one
            _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
        elif vocabulary is not None:
            file = Path(vocabulary.path)  # type: ignore[attr-defined]
            _copy_tokenizer(file.parent, directory)
            if (
                file.suffix == ".txt" and not (directory / "tokenizer_config.json").exists()
            ):  # it was guessed from the file
                settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": vocabulary.lowercases}  # type: ignore[attr-defined]
                _write_json(directory / "tokenizer_config.json", settings)
            if file.suffix == ".model" and file.name not in vocabularies.TOKENIZER_FILES:
                (directory / "spiece.model").write_bytes(read_file(file))
            _name_tokenizer_class(file, directory)
    return chosen.model_type


def export_model(model: Model, out: Path, family: str = "") -> str:
    """Exports a loaded model and returns the name of its family.

    Merges LoRA matrices into the kernels. A model that embeds texts loses its heads for embeddings; the format does not
    say how they pool. A generator beside the model goes to OUT/generator.
    """
    heads = tuple(head for head in model.config.heads if HEADS[head].reads != EMBEDDINGS)
    config = dataclasses.replace(model.config, decoder_start_id=model.start_id, heads=heads)
    if heads != model.config.heads and not config.pooled_heads:
        config = dataclasses.replace(config, pooling="first")
    config, params = lora.merged(config, {k: v for k, v in model.params.items() if k != "contrastive"})
    family = export_directory(
        config, params, out, vocabulary=model.vocabulary, labels=model.labels, origin=model.origin, family=family
    )
    if (generator := getattr(model, "generator", None)) is not None:
        export_model(generator, out / "generator", family)
    return family


def export_adapter(model: Model, out: Path, family: str = "") -> str:
    """Writes the LoRA matrices and heads of a loaded model in peft's format. Returns the name of the model's family."""
    chosen = mapping.family_for(dataclasses.replace(model.config, lora_rank=0), family)
    with _new_directory(out) as directory:
        peft.write(directory, model.config, model.params, chosen)
    return chosen.model_type


def token_ids(config: ModelConfig, vocabulary: Vocabulary) -> dict[str, int]:
    """Returns {key of config.json: id} for the special tokens that the vocabulary has."""
    encoder = config.architecture == "encoder_only"
    roles = {
        "eos_token_id": "sep_id" if encoder else "eos_id",
        "forced_eos_token_id": "eos_id",
        "bos_token_id": "cls_id",
        "pad_token_id": "pad_id",
    }
    ids: dict[str, int] = {}
    for key, role in roles.items():
        with contextlib.suppress(ConfigError):  # the vocabulary lacks that token
            ids[key] = int(getattr(vocabulary, role))
    if config.architecture == "decoder_only":
        ids["bos_token_id"] = convert.start(config.decoder_start_id, vocabulary)
        # torch does not train the embedding of pad_token_id. But the embedding of the end token must be trained.
        if ids.get("pad_token_id") == ids.get("eos_token_id"):
            ids.pop("pad_token_id", None)
    return ids


def _vocabulary(source: Path, config: ModelConfig) -> Vocabulary | None:
    """Returns the vocabulary beside the weights; None if there is none.

    Raises ConfigError if it has more ids than the model has embedding rows.
    """
    if not vocabularies.has_vocabulary(source):
        return None
    vocabulary = vocabularies.load(str(source))
    parameters.require_rows(config, vocabulary, source)
    return vocabulary


@contextlib.contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """Yields a temporary directory. Renames it to `out` when the block ends, or removes it if the block fails.

    Raises ConfigError if `out` is a file or is not empty; CheckpointError if writing fails.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already exists; choose a new directory")
    partial = atomic.partial_path(out.absolute())
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        partial.replace(out.absolute())
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_tokenizer(source: Path, directory: Path) -> None:
    for name in vocabularies.TOKENIZER_FILES:
        if side_files.is_there(source / name):
            (directory / name).write_bytes(read_file(source / name))


def _name_tokenizer_class(file: Path, directory: Path) -> None:
    """Names the class of the tokenizer in an exported directory, if its model_type would imply a different class.

    file: the file of the vocabulary that the model was trained with.
    """
    was, implied = tokenizer_settings.read(file.parent).kind, tokenizer_settings.read(directory).kind
    if was == implied or (not was and file.suffix == ".model" and implied in T5_CLASSES):
        return
    usual = {"vocab.txt": "BertTokenizer", "vocab.json": "GPT2Tokenizer"}  # if no file names the class
    path = directory / tokenizer_settings.CONFIG
    settings = mapping.read_json(path) if path.exists() else {}
    _write_json(path, settings | {"tokenizer_class": was or usual.get(file.name, "PreTrainedTokenizerFast")})


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
