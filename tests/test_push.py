"""`export --push` against a server that answers as the hub does: one commit, a card with the run's numbers."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

import darwinlm
from darwinlm.assemble import Assembler
from darwinlm.errors import RequestError
from darwinlm.export.huggingface import export_checkpoint

SUMMARY = {
    name: {"parameters": 10, "perplexity": perplexity, "kl": kl}
    for name, perplexity, kl in (("dense", 20.0, 0.0), ("uniform", 30.0, 0.5), ("pruned", 25.0, 0.25))
}


class Hub(BaseHTTPRequestHandler):
    """Remembers what it is sent."""

    sent: dict[str, Any]

    def do_POST(self) -> None:
        body = (
            self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self.chunks()
        )
        lines = [json.loads(line) for line in body.splitlines()]
        self.sent[self.path] = lines
        address = "https://huggingface.co/somebody/small"
        answers = {
            "create": {"url": address, "name": "somebody/small", "id": "1"},
            "validate-yaml": {"errors": [], "warnings": []},
            "main": {"commitOid": "0" * 40, "commitUrl": f"{address}/commit/{'0' * 40}", "success": True},
        }
        answer: dict[str, Any] = answers.get(self.path.rpartition("/")[2], {})
        if "preupload" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]
            ]
            answer = {"files": files}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def sent(monkeypatch):
    """{path: what was posted there}"""
    server = HTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"sent": {}}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", constants.ENDPOINT)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server.RequestHandlerClass.sent  # pyright: ignore[reportAttributeAccessIssue]
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(source, database, tmp_path):
    """A pruned checkpoint in a run directory."""
    levels = database("llama_gqa", "auto")
    assembler = Assembler(source("llama_gqa"), levels)
    genome = tuple(ladder.top if ladder.layer == 0 else 1 for ladder in levels.ladders())
    export_checkpoint(assembler, genome, tmp_path / "model", {}, {})
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, "settings": {"data": "owner/text"}}))
    return tmp_path / "model"


def test_one_commit_with_all_files_and_the_numbers_of_the_run(model, sent):
    pushed = darwinlm.export_checkpoint(model, portable=True, push="somebody/small")
    assert pushed.url.endswith("somebody/small")
    assert sent["/api/repos/create"][0]["name"] == "small"
    (commit,) = (lines for path, lines in sent.items() if "/commit/" in path)
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in commit if line["key"] == "file"
    }
    assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert "portable/config.json" in files
    card = ModelCard(files["README.md"].decode())
    assert 'from_pretrained("somebody/small"' in card.text
    assert "vllm serve somebody/small" in card.text
    assert card.data.datasets == ["owner/text"]
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "perplexity": 25.0,
        "kl": 0.25,
    }
    assert "| uniform | 10 | 30.00 | 0.5000 |" in card.text


@pytest.mark.parametrize(("name", "said"), [("small", "write it as USER/NAME"), ("a b/c", "no name on the hub")])
def test_names_are_checked_before_the_work(name, said, model, sent):
    with pytest.raises(RequestError, match=said):
        darwinlm.export_checkpoint(model, push=name)
    assert not sent


def test_who_is_not_logged_in_is_told_how(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RequestError, match="hf auth login"):
        darwinlm.export_checkpoint(model, push="somebody/small")
