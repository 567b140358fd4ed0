"""A run that is killed loses nothing, and the same command measures only what is missing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

import eigenscope as es
from eigenscope.engine.runfile import RunFile
from eigenscope.errors import RunFileError

# Where the tests run in the background of a shell it ignores interrupts, and its children inherit that.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
COMMAND = [sys.executable, "-c", f"{INTERRUPTIBLE}; from eigenscope.cli.main import main; main()"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Forty matrices, enough that a run can be stopped between two rows."""
    folder = tmp_path_factory.mktemp("model")
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.fc1.weight": torch.randn(500, 400, generator=generator) for i in range(40)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def rows(path):
    """How many rows a run file holds, 0 while it cannot be opened yet."""
    try:
        with RunFile(path) as file:
            return len(file.finished())
    except RunFileError:
        return 0


def stopped(checkpoint, path, how):
    """Start the scan, stop it with a signal once some rows are written, return the process."""
    process = subprocess.Popen(
        [*COMMAND, "scan", str(checkpoint), "-o", str(path), "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    limit = time.monotonic() + 60
    while rows(path) < 5 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=60)
    return process


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_the_same_command_finishes_what_was_stopped(checkpoint, tmp_path, how, code):
    path = tmp_path / "run.db"
    assert stopped(checkpoint, path, how).returncode == code
    kept = rows(path)
    assert 5 <= kept < 40
    again = es.scan(checkpoint, output=path)
    assert again.run.provenance["rows resumed"] == kept
    assert again.run.provenance["rows measured"] == 40 - kept
    assert again.table.equals(es.scan(checkpoint).table)


def test_a_finished_run_is_read_and_nothing_measured(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "run.db"
    first = es.scan(checkpoint, output=path)
    monkeypatch.setattr("eigenscope.tasks.scan.measure", lambda *_: pytest.fail("a row was measured again"))
    assert es.scan(checkpoint, output=path).table.equals(first.table)


def test_another_content_or_another_option_is_another_run(checkpoint, tmp_path):
    path = tmp_path / "run.db"
    es.scan({"a.weight": torch.eye(3)}, output=path)
    with pytest.raises(RunFileError, match="another run"):
        es.scan({"a.weight": torch.eye(3) * 2}, output=path)
    with pytest.raises(RunFileError, match="another run"):
        es.scan({"a.weight": torch.eye(3)}, output=path, target_condition=5.0)
    assert rows(path) == 1


@pytest.mark.parametrize(
    "content", [b"hello, this is text and not a database" * 9, b"SQLite format 3\x00" + b"\xff" * 99]
)
def test_a_file_of_another_kind_is_refused_and_untouched(tmp_path, content):
    path = tmp_path / "run.db"
    path.write_bytes(content)
    with pytest.raises(RunFileError):
        es.scan({"a.weight": torch.eye(3)}, output=path)
    assert path.read_bytes() == content


def run(*arguments, **options):
    """The command line in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, env=environment, **options
    )


def test_the_command_line_speaks_json_and_is_quiet_in_a_pipe(tmp_path):
    save_file({"a.weight": torch.zeros(3, 3), "b.weight": torch.eye(3)}, tmp_path / "m.safetensors")
    done = run("scan", str(tmp_path), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert [record["name"] for record in content["records"]] == ["a.weight", "b.weight"]
    head = subprocess.run(
        f"{shlex.join(COMMAND)} scan {tmp_path} | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert head.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scan", "/no/such/model"], "no such file"), (["scan", "x", "--nonsense"], "nonsense"), (["nonsense"], "nonsense"),
        (["report", "missing.db"], "no such file"), (["scan", ".", "--workers", "0"], "workers"),
    ],
)  # fmt: skip
def test_bad_input_exits_2_with_a_line_and_no_traceback(arguments, message, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
