"""Runs whose wandb server is silent or disappears: real wandb with a minimal server of our own."""

import http.server
import json
import re
import threading

import pytest
import wandb
from test_loggers import loggers, recorded_runs

from t5x_lite.reports.results import read_metrics

PROJECT = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
RUN = {"id": "r", "name": "r", "displayName": "r", "description": "", "config": "{}", "sweepName": None}
ANSWERS = {
    "Viewer": {"viewer": {"id": "v", "entity": "e", "flags": "{}", "username": "u", "teams": {"edges": []}}},
    "RunResumeStatus": {"model": None},
    "UpsertBucket": {"upsertBucket": {"bucket": RUN | {"historyLineCount": 0, "project": PROJECT}, "inserted": True}},
    "CreateRunFiles": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}},
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        name = re.search(rb"(?:query|mutation) (\w+)", body)
        content = json.dumps({"data": ANSWERS.get(name[1].decode(), {}) if name else {}}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """Starts a server that listens, and answers once `serve_forever` runs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield server
    server.server_close()
    wandb.teardown()  # wandb remembers the server of its first run


@pytest.mark.slow
@pytest.mark.timeout(80)  # wandb itself would wait for 90 s, and go on trying for hours
def test_a_server_that_never_answers_is_given_up_and_the_run_recorded_offline(tmp_path, server, capsys):
    out = loggers(tmp_path, "online")
    out.scalars(1, {"train/loss": 2.0})
    out.close()
    assert f"recording offline. Later: wandb sync {tmp_path / 'wandb'}" in capsys.readouterr().err
    assert (tmp_path / "wandb_id.txt").read_text() in recorded_runs(tmp_path)
    assert list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.slow
@pytest.mark.timeout(80)
def test_a_server_that_goes_away_holds_nobody_up(tmp_path, server, capsys):
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    out = loggers(tmp_path, "online")
    assert "wandb" in out.loggers, capsys.readouterr().err
    out.scalars(1, {"train/loss": 2.0})
    server.shutdown()
    server.server_close()
    thread.join()
    out.table(2, "predictions/task", [{"target": "a"}])  # wandb asks its server about tables
    for step in range(2, 50):
        out.scalars(step, {"train/loss": 2.0})
    out.close()
    assert f"wandb sync {tmp_path / 'wandb'}" in capsys.readouterr().err
    assert len(read_metrics(tmp_path)) == 49
    assert len(recorded_runs(tmp_path)) == 1
