"""Published data sets as tasks: T5's text format, encoders' fields, files in the official layout, and TFDS."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.cluster import messages
from t5x_lite.data import registry
from t5x_lite.data.convert import TextToText
from t5x_lite.data.convert_encoder import EncoderOnly
from t5x_lite.data.eval_batches import example_batch
from t5x_lite.data.reader import text_examples
from t5x_lite.data.registry import Task
from t5x_lite.data.vocabularies import ByteVocabulary
from t5x_lite.errors import ConfigError, DataError
from t5x_lite.evaluation import scores
from t5x_lite.reports import glue_average
from t5x_lite.tasks import glue, superglue
from t5x_lite.tasks.published import Published, use_directory

SHARED = Path(__file__).parents[2] / "shared" / "data"
real_data = pytest.mark.skipif(not SHARED.exists(), reason="the folder of real data is not on this machine")

TABLES = {  # the first lines of files in GLUE's layout; one row of QQP's has lost its end
    "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    '1\t2\t3\tWhy?\tWhy "so"?\t1\n4\t5\t6\tcut\n7\t8\t9\tA\tB\t0\n',
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\tWho?\tHe did.\tentailment\n",
    "RTE/test.tsv": "index\tsentence1\tsentence2\n0\tA.\tB.\n",
    "MNLI/train.tsv": "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tP.\tH.\tneutral\tcontradiction\n",
    "MNLI/dev_mismatched.tsv": "index\tsentence1\tsentence2\tgold_label\n0\tP.\tH.\tneutral\n",
    "CoLA/train.tsv": "gj04\t0\t*\tHe it ate.\n",
    "CoLA/test.tsv": "index\tsentence\n0\tHe ate it.\n",
    "STS-B/dev.tsv": "index\tsentence1\tsentence2\tscore\n0\tA.\tB.\t3.770\n",
    "SST-2/dev.tsv": "sentence\tlabel\nbad \t0\n",
    "MRPC/dev.tsv": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tSame .\tAlike .\n",
    "WNLI/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n",
    "diagnostic/diagnostic.tsv": "index\tsentence1\tsentence2\n0\tP.\tH.\n",
}  # fmt: skip
MULTIRC = {
    "idx": 3,
    "passage": {
        "text": "<b>Sent 1: </b>It rained.<br>Then not.",
        "questions": [
            {"idx": 5, "question": "What?", "answers": [{"text": "Rain", "label": 1}, {"text": "Sun", "label": 0}]}
        ],
    },
}
RECORD = {
    "idx": 1,
    "passage": {"text": "Ada met Bob.\n@highlight\nBob left\n@highlight\nAda stayed",
                "entities": [{"start": 8, "end": 10}, {"start": 0, "end": 2}, {"start": 24, "end": 26}]},
    "qas": [{"query": "@placeholder left", "answers": [{"text": "Bobby"}, {"text": "Bob"}, {"text": "Bobby"}]}],
}  # fmt: skip
WSC = {"text": "Mark told Pete many lies about himself .", "target": {"span1_text": "Mark", "span1_index": 0,
       "span2_text": "himself", "span2_index": 6}, "label": True}  # fmt: skip
LINES = {
    "BoolQ/train.jsonl": [{"question": "is it", "passage": "It is.", "label": True}],
    "CB/val.jsonl": [{"premise": "P.", "hypothesis": "H.", "label": "contradiction"}],
    "COPA/train.jsonl": [{"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "cause", "label": 1}],
    "RTE/train.jsonl": [{"premise": "P.", "hypothesis": "H.", "label": "not_entailment"}],
    "WiC/train.jsonl": [{"word": "bank", "sentence1": "A.", "sentence2": "B.", "label": False}],
    "AX-b/AX-b.jsonl": [{"sentence1": "P.", "sentence2": "H.", "label": "entailment"}],
    "MultiRC/train.jsonl": [MULTIRC],
    "ReCoRD/train.jsonl": [RECORD],
    "ReCoRD/val.jsonl": [RECORD],
    "WSC/train.jsonl": [WSC, WSC | {"label": False}],
    "WSC/val.jsonl": [WSC, WSC | {"label": False}],
    "dialogsum/dialogsum.test.jsonl": [{"dialogue": "#Person1#: Hi.", "summary1": "A greeting."}],
    "xsum/train.json": [{"document": "Long.", "summary": "Short."}],
    "wmt_en_ro/val.json": [{"translation": {"en": "Yes", "ro": "Da"}}],
}
TEXTS = {
    "multi30k/val.en": "Yes.\n",
    "multi30k/val.de": "Ja.\n",
    "conll2003/eng.testa": "-DOCSTART- -X- O O\n\nAda NNP B-NP B-PER\nran VBD B-VP O\n\n",
    "squad/dev-v2.0.json": json.dumps({"data": [{"paragraphs": [{"context": "In 1066, Normans won.", "qas": [
        {"id": "a", "question": "Who?", "is_impossible": False, "answers": [
            {"text": "Normans", "answer_start": 9}, {"text": "the Normans", "answer_start": 9},
        ]},
        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
    ]}]}]}),
}  # fmt: skip
EXPECTED = {  # (task, split): (inputs, targets) of its first examples
    ("glue_qqp", "train"): [
        ('qqp question1: Why? question2: Why "so"?', "duplicate"), ("qqp question1: A question2: B", "not_duplicate"),
    ],
    ("glue_qnli", "validation"): [("qnli question: Who? sentence: He did.", "entailment")],
    ("glue_rte", "test"): [("rte sentence1: A. sentence2: B.", "<unk>")],
    ("glue_mnli", "train"): [("mnli hypothesis: H. premise: P.", "contradiction")],
    ("glue_mnli_mismatched", "validation"): [("mnli hypothesis: H. premise: P.", "neutral")],
    ("glue_cola", "train"): [("cola sentence: He it ate.", "unacceptable")],
    ("glue_cola", "test"): [("cola sentence: He ate it.", "<unk>")],
    ("glue_stsb", "validation"): [("stsb sentence1: A. sentence2: B.", "3.8")],
    ("glue_sst2", "validation"): [("sst2 sentence: bad ", "negative")],
    ("glue_mrpc", "validation"): [("mrpc sentence1: Same . sentence2: Alike .", "equivalent")],
    ("glue_wnli", "validation"): [("wnli sentence1: A. sentence2: B.", "entailment")],
    ("glue_ax", "test"): [("mnli hypothesis: H. premise: P.", "<unk>")],
    ("super_glue_boolq", "train"): [("boolq passage: It is. question: is it", "True")],
    ("super_glue_cb", "validation"): [("cb hypothesis: H. premise: P.", "contradiction")],
    ("super_glue_copa", "train"): [("copa choice1: A. choice2: B. premise: P. question: cause", "choice2")],
    ("super_glue_rte", "train"): [("rte hypothesis: H. premise: P.", "not_entailment")],
    ("super_glue_wic", "train"): [("wic sentence1: A. sentence2: B. word: bank", "False")],
    ("super_glue_axb", "test"): [("rte hypothesis: H. premise: P.", "entailment")],
    ("super_glue_multirc", "train"): [
        ("multirc question: What? answer: Rain paragraph: Sent 1: It rained. Then not.", "True"),
        ("multirc question: What? answer: Sun paragraph: Sent 1: It rained. Then not.", "False"),
    ],
    ("super_glue_record", "train"): [
        ("record query: @placeholder left entities: Ada, Bob passage: Ada met Bob. Bob left. Ada stayed", "Bob"),
        ("record query: @placeholder left entities: Ada, Bob passage: Ada met Bob. Bob left. Ada stayed", "Bobby"),
    ],
    ("super_glue_record", "validation"): [
        ("record query: @placeholder left entities: Ada, Bob passage: Ada met Bob. Bob left. Ada stayed", "Bob"),
    ],
    ("super_glue_wsc_train", "train"): [("wsc: Mark told Pete many lies about *himself* .", "Mark")],
    ("super_glue_wsc", "validation"): [("wsc: Mark told Pete many lies about *himself* .", "Mark")] * 2,
    ("dialogsum", "test"): [("summarize: #Person1#: Hi.", "A greeting.")],
    ("xsum", "train"): [("summarize: Long.", "Short.")],
    ("wmt_en_ro", "validation"): [("translate English to Romanian: Yes", "Da")],
    ("multi30k_en_de", "validation"): [("translate English to German: Yes.", "Ja.")],
    ("multi30k_de_en", "validation"): [("translate German to English: Ja.", "Yes.")],
    ("conll2003", "validation"): [("conll2003: Ada ran", "PER: Ada")],
    ("squad_v2", "validation"): [
        ("question: Who ? context: In 1066 , Normans won .", "Normans"),
        ("question: Why ? context: In 1066 , Normans won .", ""),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    files = TABLES | TEXTS | {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in LINES.items()}
    for name, text in files.items():
        # GLUE and SuperGLUE share the folder name RTE, so each suite has its own directory, as downloaded.
        path = root / ("super_glue" if name in LINES else "glue") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def own_cache_and_table(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))


def task_of(name: str) -> Task:
    task = registry.get(name)
    assert isinstance(task, Task)
    return task


def texts(name: str, split: str):
    return [(e["inputs"], e["targets"]) for _, e in text_examples(task_of(name), split)]


@pytest.mark.parametrize(("name", "split"), EXPECTED)
def test_the_text_is_t5_s(directory, name, split):
    use_directory(str(directory / ("super_glue" if name.startswith("super_glue") else "")))
    assert texts(name, split)[: len(EXPECTED[name, split])] == EXPECTED[name, split]
    assert len(texts(name, split)) == len(EXPECTED[name, split])


def test_one_definition_feeds_encoder_heads_too(directory):
    use_directory(str(directory))
    bytes_ = ByteVocabulary()
    for name, split, segments in (
        ("glue_mnli", "train", ["P.", "H."]), ("glue_qqp", "train", ["Why?", 'Why "so"?']),
        ("super_glue_boolq", "train", ["is it", "It is."]),
    ):  # fmt: skip
        task = task_of(name)
        example = next(text_examples(task, split))[1]
        assert [example[field] for field in task.segments] == segments
        assert example["targets"] in task.labels
        converter = EncoderOnly(length=32, heads=("classification",))
        batch = example_batch([example], task, converter, bytes_, batch_rows=1)
        assert batch["class_targets"][0, 0] == task.labels.index(example["targets"])
    # Text rounds STS-B's score to fifths; an encoder's head and the metrics use the published score.
    task = task_of("glue_stsb")
    example = next(text_examples(task, "validation"))[1]
    batch = example_batch([example], task, EncoderOnly(32, heads=("regression",)), bytes_, batch_rows=1)
    assert batch["regression_targets"][0, 0] == np.float32(3.77) == task.reference(example)
    batch = example_batch([example], task, TextToText(64, 8), bytes_, batch_rows=1)
    assert bytes_.decode(batch["decoder_target_tokens"][0]) == "3.8"


def test_what_metrics_compare_with(directory):
    use_directory(str(directory))
    answers = {
        "super_glue_record": ["Bob", "Bobby"], "super_glue_wsc": ("Mark", True), "squad_v2": ["Normans", "the Normans"],
    }  # fmt: skip
    for name, expected in answers.items():
        task = task_of(name)
        assert task.reference(next(text_examples(task, "validation"))[1]) == expected
    task = task_of("super_glue_multirc")
    references = [task.reference(e) for _, e in text_examples(task, "train")]
    scores = {k: v for metric in task.metrics for k, v in metric(references, ["True", "True"]).items()}
    assert scores == {"f1": pytest.approx(200 / 3), "exact_match": 0.0}
    assert superglue.wsc_accuracy([("Mark", True)] * 3, ["mark", "", "Mark's dog"])["accuracy"] == pytest.approx(
        100 / 3
    )


@pytest.mark.parametrize("name", ["squad_v2", "super_glue_record", "super_glue_multirc", "super_glue_wsc"])
def test_a_perfect_prediction_scores_100(directory, name, tmp_path):
    """From the published files to the score, through serialised references and predictions."""
    use_directory(str(directory / ("super_glue" if name.startswith("super_glue") else "")))
    task = task_of(name)
    rows, references = [], []
    for _, example in text_examples(task, "train" if name == "super_glue_multirc" else "validation"):
        answer = example["targets"] if name != "super_glue_wsc" or example["label"] else "Pete"
        rows.append({"prediction": answer, "target": example["targets"], "score": 0.0})
        references.append(scores.reference(task, example))
    rows, references = messages.decode(messages.encode([rows, references]))  # as between processes
    values = scores.scores_of(task, rows, references).values
    assert len(rows) == 1 + (name != "super_glue_record")
    assert {metric: value for metric, value in values.items() if metric not in ("invalid", "ece")} == dict.fromkeys(
        [metric for metric in values if metric not in ("invalid", "ece")], 100.0
    )
    if name != "super_glue_multirc":
        nothing = scores.scores_of(task, [row | {"prediction": "zebra"} for row in rows], references).values
        assert max(nothing.values()) <= 50.0  # WSC: the wrong referent scores as wrong


def test_mixtures_evaluate_what_t5_s_do():
    def only_evaluated(name: str) -> set[str]:
        return {task.name for task in registry.evaluated(name)} - registry.rates(name).keys()

    assert only_evaluated("glue") == {"glue_mnli_mismatched"}
    assert only_evaluated("super_glue") == {"super_glue_wsc"}


def test_files_that_are_missing_or_wrong_are_named(directory, tmp_path):
    use_directory(str(directory))
    with pytest.raises(DataError, match=r"no file for split 'test' of CoLA|of QNLI; looked for test.tsv"):
        task_of("glue_qnli").source.split("test")
    with pytest.raises(ConfigError, match="unknown split"):
        task_of("glue_ax").source.split("train")
    with pytest.raises(DataError, match="not a directory"):
        task_of("glue_cola").source.at(str(tmp_path / "nowhere")).split("train")
    with pytest.raises(DataError, match=r"not available from TFDS.*data\.dir"):
        task_of("multi30k_en_de").source.at("").split("train")
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tA\tB\t7\n")
    source = task_of("glue_rte").source.at(str(tmp_path))
    with pytest.raises(DataError, match=r"dev.tsv.*'7' is none of entailment"):
        source.split("validation")[0]
    (tmp_path / "dev-v1.1.json").write_text('{"data": [{"context": "flat"}]}')
    with pytest.raises(DataError, match=r"dev-v1.1.json: differs from the published layout: there is no 'paragraphs'"):
        task_of("squad").source.at(str(tmp_path)).split("validation")


def assert_same_examples(name: str, files: Path, tfds_directory: Path) -> None:
    """Asserts that the published files and TFDS give the same examples, raw and as text, in any order."""
    task = task_of(name)
    assert isinstance(task.source, Published) and task.source.tfds is not None
    ours = task.source.at(str(files))
    theirs = dataclasses.replace(
        task.source, tfds=dataclasses.replace(task.source.tfds, data_dir=str(tfds_directory)), directory=""
    )
    for split in task.source.files:
        found = []
        for source in (ours, theirs):
            texts = [e for _, e in text_examples(dataclasses.replace(task, source=source), split)]
            found.append(sorted(repr(sorted(e.items())) for e in [*source.split(split), *texts]))
        assert found[0] == found[1] and found[0], (name, split)
    assert theirs.fingerprint("train") != ours.fingerprint("train")


def test_tfds_gives_the_same_examples(tmp_path, monkeypatch):
    """TFDS's own builders read our files or get their rows; our source reads the same files."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.datasets.squad.squad_dataset_builder import Builder as Squad
    from tensorflow_datasets.summarization.cnn_dailymail import CnnDailymail
    from tensorflow_datasets.summarization.xsum import Xsum
    from tensorflow_datasets.text.conll2003.conll2003 import Conll2003
    from tensorflow_datasets.text.glue import Glue
    from tensorflow_datasets.translate.wmt14 import Wmt14Translate
    from tensorflow_datasets.translate.wmt16 import Wmt16Translate

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    rows = "".join(f"{i}\tA {i}.\tB.\t{i}.77\n" for i in range(5))
    for split, sentences in (("train", 3), ("dev", 2), ("test", 1)):
        test = split == "test"
        write(f"CoLA/{split}.tsv", "index\tsentence\n0\tWell.\n" if test else "gj\t1\t\tFine.\ngj\t0\t*\tNot.\n")
        stsb = "sentence1\tsentence2\n0\tA.\tB.\n" if test else f"sentence1\tsentence2\tscore\n{rows}"
        write(f"STS-B/{split}.tsv", f"index\t{stsb}")
        lines = "".join(f"Ada NNP B-NP B-PER\nran{i} VBD B-VP O\n\n" for i in range(sentences))
        write(f"conll2003/{ {'dev': 'valid'}.get(split, split) }.txt", f"-DOCSTART- -X- O O\n\n{lines}")
        write(f"squad/{split}-v2.0.json", TEXTS["squad/dev-v2.0.json"].replace("Why?", f"Why, {split}?"))

    def downloaded(self, urls):
        files = (
            {name: str(tmp_path / "squad" / Path(url).name) for name, url in urls.items()}
            if (isinstance(urls, dict))
            else None
        )
        return files or tmp_path / ("conll2003" if "conll" in urls else "")

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", downloaded)
    given = {
        "xsum": (Xsum, None, {"document": "Long.\nLonger.", "summary": "Short."}),
        "cnn_dailymail": (CnnDailymail, None, {"article": "A.", "highlights": "B.\nC.", "publisher": "x", "id": "1"}),
        "wmt_en_de": (Wmt14Translate, "de-en", {"en": "Yes.", "de": "Ja."}),
        "wmt_en_ro": (Wmt16Translate, "ro-en", {"en": "Yes.", "ro": "Da."}),
    }
    for name, (builder, _, row) in given.items():
        splits = {
            split: [(str(i), {field: f"{text} {split} {i}" for field, text in row.items()}) for i in range(2)]
            for split in ("train", "validation", "test")
        }
        monkeypatch.setattr(builder, "_split_generators", lambda self, _, splits=splits: splits)
        for split, examples in splits.items():
            write(f"{name}/{split}.jsonl", "".join(f"{json.dumps(example)}\n" for _, example in examples))
    real = {
        "glue_stsb": (Glue, "stsb"), "glue_cola": (Glue, "cola"), "conll2003": (Conll2003, None),
        "squad_v2": (Squad, "v2.0"),
    }  # fmt: skip
    for name, (builder, config, *_) in (real | given).items():
        options = {"config": config} if config else {}
        builder(**options, data_dir=str(tmp_path / "tfds"), file_format="array_record").download_and_prepare()
        assert_same_examples(name, tmp_path, tmp_path / "tfds")


def test_the_average_is_t5_s_and_wants_every_task():
    values = {f"glue_{name}": {"accuracy": 80.0, "f1": 60.0, "loss": 1.0} for name in glue.SUITE}
    values["glue_cola"] = {"matthews": 40.0}
    values["glue_stsb"] = {"pearson": 90.0, "spearman": 80.0}
    values["glue_mnli_mismatched"] = {"accuracy": 70.0}
    # cola 40, sst2 80, mrpc 70, qqp 70, stsb 85, mnli (80 + 70) / 2, qnli 80, rte 80
    total = 40 + 80 + 70 + 70 + 85 + 75 + 80 + 80
    assert glue_average.average([values]) == pytest.approx(total / 8)
    # All metrics or both halves of a task come from one step: MRPC's best are not 90 and 90.
    early = {"glue_mrpc": {"f1": 90.0, "accuracy": 80.0}, "glue_mnli": {"accuracy": 90.0}, "glue_cola": {}}
    late = {"glue_mrpc": {"f1": 80.0, "accuracy": 90.0}, "glue_mnli_mismatched": {"accuracy": 95.0}}
    assert glue_average.average([early, values, late]) == pytest.approx((total - 70 + 85) / 8)
    del values["glue_rte"]
    assert glue_average.average([early, values, late]) is None


def test_a_submission_is_what_the_server_reads():
    assert glue.submission("glue_cola", ["acceptable", "nonsense"]) == ("CoLA.tsv", "index\tprediction\n0\t1\n1\t0\n")
    assert glue.submission("glue_mnli", ["neutral"]) == ("MNLI-m.tsv", "index\tprediction\n0\tneutral\n")
    assert glue.submission("glue_stsb", ["7", "x", "3.8"])[1] == "index\tprediction\n0\t5.000\n1\t0.000\n2\t3.800\n"
    for text in ("nan", "inf", "-inf", "NaN "):  # as an answer in words; a number that is not finite is refused before
        assert glue.submission("glue_stsb", [text])[1] == "index\tprediction\n0\t0.000\n"


@real_data
def test_real_counts():
    use_directory(str(SHARED))
    counts = {
        "glue_cola": (8551, 1043, 1063), "glue_sst2": (67349, 872, 1821), "glue_mrpc": (3668, 408, 1725),
        "glue_stsb": (5749, 1500, 1379), "glue_wnli": (635, 71, 146), "multi30k_en_de": (29000, 1014, 1000),
        "wnut17": (3394, 1009, 1287),
    }  # fmt: skip
    for name, expected in counts.items():
        source = task_of(name).source
        assert tuple(len(source.split(s)) for s in ("train", "validation", "test")) == expected
        for split in ("train", "validation"):
            task, row = task_of(name), source.split(split)[len(source.split(split)) - 1]
            assert not task.labels or task.preprocessors[0](row)["targets"] in task.labels
    scores = [
        glue.fifths(row["label"]) for row in map(task_of("glue_stsb").source.split("train").__getitem__, range(500))
    ]
    assert set(scores) <= {f"{i / 5:.1f}" for i in range(26)}
