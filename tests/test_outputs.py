"""An output that cannot be written ends every verb with one line that names it, and never with a traceback."""

import shutil
from pathlib import Path

from t5x_lite import atomic, cli
from t5x_lite.verbs import VERBS

CONFIG = f"--config={Path(__file__).parent / 'experiments' / 'tiny.py'}:bert_tiny"
SWEEP = """
method: grid
metric: {name: eval/t/accuracy, goal: maximize}
parameters: {config.seed: {values: [0]}}
command: ["true", --workdir=runs/$WANDB_RUN_ID, "${args}"]
"""
ONE_STEP = ["--config.train.total_steps=1", "--config.eval.untrained=false", "--config.eval.every_steps=0"]
ONE_STEP += ["--config.eval.max_examples=2"]


def test_a_place_that_cannot_be_written_is_one_line_from_every_verb(tmp_path, capsys):
    run, file, hf, output = tmp_path / "run", tmp_path / "file", tmp_path / "hf", "OUTPUT"
    assert cli.run(["train", CONFIG, f"--workdir={run}", *ONE_STEP]) == 0
    assert cli.run(["export", str(run), str(hf), CONFIG]) == 0
    file.write_text("\n".join(f"Number {i} of the lines of {i * i} words." for i in range(300)))
    (tmp_path / "in.jsonl").write_text('{"inputs": "animal: the red cat runs"}\n')
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    commands = {
        "train": [CONFIG, f"--workdir={output}", *ONE_STEP],
        "branch": [str(run), output, CONFIG, "--config.train.total_steps=2"],
        "find-rate": [CONFIG, *ONE_STEP[:1], "--steps=10", f"--output={output}"],
        "infer": [f"--workdir={run}", f"--input={tmp_path / 'in.jsonl'}", f"--output={output}", CONFIG],
        "sweep": [str(tmp_path / "sweep.yaml"), f"--output={output}"],
        "compare": [str(run), str(run), f"--output={output}"],
        "cache": ["tiny_corpus", CONFIG, f"--output={output}", "--workers=1"],
        "import": [str(hf), output],
        "export": [str(run), output, CONFIG],
        "attention": [f"--workdir={run}", "--text=a cat", f"--output={output}", CONFIG],
        "vocab": ["--input", str(file), "--size=290", f"--output={output}"],
    }
    assert {verb.name for verb in VERBS if not verb.only_prints} == commands.keys() | {"eval"}  # it is tested below
    capsys.readouterr()

    def run_with(verb: str, place: Path) -> tuple[int, str]:
        status = cli.run([verb, *(flag.replace(output, str(place)) for flag in commands[verb])])
        return status, capsys.readouterr().err

    for verb in commands:
        for place in (file / "below", Path("/proc/missing/below"))[: 1 if verb == "compare" else 2]:
            status, said = run_with(verb, place)
            assert status in (2, 74) and str(place) in said and "Traceback" not in said, (verb, status, said)
    for verb in ("attention", "vocab"):
        status, said = run_with(verb, hf)
        assert status == 74 and f"cannot write {hf}: Is a directory" in said
        assert run_with(verb, tmp_path / verb / "new") == (0, "")

    shutil.rmtree(run / "predictions")
    (run / "predictions").write_text("")
    assert cli.run(["eval", f"--workdir={run}", CONFIG, "--config.eval.max_examples=2"]) == 74
    said = capsys.readouterr().err
    assert f"cannot write {run / 'predictions' / 'step_1'}: a file is in the place of its directory" in said
    assert "Traceback" not in said


def test_a_name_as_long_as_the_disk_allows_is_written(tmp_path):
    for name in ("x" * 255, "ü" * 127, "𝄞" * 63):
        atomic.write(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 3
