"""``eigenscope compress`` as a user meets it: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eigenscope.cli import main as executable
from eigenscope.models.demo import demo_folder

WORDS = "a layer of low rank is held by some of its rows and the combinations that give the others in one line"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model with its tokenizer, and two texts."""
    folder = tmp_path_factory.mktemp("compress")
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = WORDS.split()
    for name, step in (("a", 5), ("b", 7)):
        (folder / f"{name}.txt").write_text(" ".join(words[(step * i + i // 3) % len(words)] for i in range(1500)))
    (folder / "short.txt").write_text("a few words")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"body": WORDS}) for _ in range(60)))
    return folder


def command(capsys, monkeypatch, *arguments):
    """Exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["eigenscope", "compress", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        executable.main()
    printed = capsys.readouterr()
    return left.value.code, printed.out, printed.err


SMALL = ("--tokens", "640", "--length", "32", "--batch", "4", "--prior", "0", "--quiet")


def test_folder_is_written_and_reported(capsys, monkeypatch, places, tmp_path):
    code, out, err = command(
        capsys, monkeypatch, places / "model", "--text", places / "a.txt", "--text", f"{places / 'rows.jsonl'}:body",
        "--keep", 0.7, "--sweep", "0.9,0.5", "--eval", places / "b.txt", "--speed", "--recover", 3, "-o", tmp_path / "out",
        "--rivals", "--second-pass", "--report", tmp_path / "page.html", *SMALL,
    )  # fmt: skip
    assert code == 0, err
    assert "nats per token" in out
    assert "held-out text" in out
    assert "tokens/s" in out
    assert "lm_head: its weight is tied" in " ".join(out.split())
    assert "recovery" in out
    for shown in ("one-sided whitening", "peak memory", "by a second", "second-order prediction"):
        assert shown in " ".join(out.split())
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "ASVD scaling" in page
    assert "tokens/s" in page
    assert out.rstrip().endswith(str(tmp_path / "page.html"))
    assert not list(tmp_path.glob(".*")), "nothing unfinished is left"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "LowRankLinear"
    report = json.loads((tmp_path / "out" / "eigenscope.json").read_text())
    code, out, _ = command(
        capsys, monkeypatch, places / "model", "--text", places / "a.txt", "--ranks", tmp_path / "out" / "eigenscope.json",
        "--json", *SMALL,
    )  # fmt: skip
    assert code == 0
    assert {x["name"]: x["rank"] for x in json.loads(out)["layers"]} == {x["name"]: x["rank"] for x in report["layers"]}


def test_recovery_that_loses_is_not_kept(capsys, monkeypatch, places):
    ways = ("--text", places / "a.txt", "--keep", 0.7, "--json", *SMALL)
    _, plain, _ = command(capsys, monkeypatch, places / "model", *ways)
    code, spoilt, err = command(
        capsys, monkeypatch, places / "model", *ways, "--recover", 3, "--learning-rate", 100.0
    )  # fmt: skip
    assert code == 0, err
    assert "3 steps of recovery are not kept" in " ".join(json.loads(spoilt)["notes"])
    assert json.loads(spoilt)["measured"] == json.loads(plain)["measured"]
    assert json.loads(spoilt)["recovery"] == {}


def test_plan_reads_no_more_than_it_says(capsys, monkeypatch, places):
    code, out, _ = command(
        capsys, monkeypatch, places / "model", "--text", places / "a.txt", "--keep", 0.7, "--plan", *SMALL
    )
    assert code == 0
    assert "7 with" in out
    assert "a single text" in out
    assert "lm_head" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--keep", 0.7), "no --text"),
        (("--text", "a.txt"), "no target"),
        (("--text", "a.txt", "--keep", 1.5), "keep = 1.5"),
        (("--text", "nowhere.txt", "--keep", 0.7), "no such file"),
        (("--text", "rows.jsonl", "--keep", 0.7), "holds no 'text'"),
        (("--text", "a.txt", "--keep", 0.7, "--objective", "best"), "two-sided, one-sided"),
        (("--text", "a.txt", "--keep", 0.7, "--sweep", "0.9,x"), "--sweep 0.9,x"),
        (("--text", "a.txt", "--keep", 0.7, "--sweep", "1.5"), "--sweep 1.5"),
        (("--text", "a.txt", "--keep", 0.7, "--dense"), "--dense or --force without -o"),
        (("--text", "a.txt", "--ranks", "a.txt"), "cannot be read"),
        (("--text", "a.txt", "--keep", 0.7, "-o", "model"), "not empty"),
        (("--text", "a.txt", "--keep", 0.7, "-o", "small.gguf"), "convert_hf_to_gguf.py"),
        (("--text", "a.txt", "--keep", 0.7, "--report", "page.pdf"), "ending in .html"),
        (("--text", "a.txt", "--keep", 0), "keep = 0.0"),
        (("--text", "short.txt", "--keep", 0.7), "short.txt: is shorter than one window"),
        (("--text", "a.txt", "--keep", 0.7, "--include", "nothing*"), "no layer to compress"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(capsys, monkeypatch, places, arguments, words):
    monkeypatch.chdir(places)
    code, out, err = command(capsys, monkeypatch, "model", *arguments, *SMALL)
    assert code == 2
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_model_without_weights_of_its_own_is_named(capsys, monkeypatch, places, tmp_path):
    code, _, err = command(capsys, monkeypatch, tmp_path, "--text", places / "a.txt", "--keep", 0.5, *SMALL)
    assert code == 2
    assert "transformers cannot load it" in err
