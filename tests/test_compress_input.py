"""Models, texts and circumstances that ``compress`` must name, or live with."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from eigenscope.cli import main as executable
from eigenscope.errors import InputError
from eigenscope.models import lowrank
from eigenscope.models.demo import demo_folder
from eigenscope.models.text import Domain
from eigenscope.tasks import calibration, compress_factors, compress_result
from eigenscope.tasks.compress_options import CompressOptions
from eigenscope.tasks.compressed import compress

WORDS = [
    "of",
    "two",
    "matrices",
    "with",
    "the",
    "same",
    "spectrum",
    "one",
    "may",
    "be",
    "easy",
    "to",
    "cut",
    "and",
    "the",
    "other",
    "not",
    "as",
    "text",
    "decides",
    "what",
    "a",
    "layer",
    "is",
    "given",
]
TEXT = {"prose": " ".join(WORDS[(5 * i + i // 4) % len(WORDS)] for i in range(1500))}
OPTIONS = {"tokens": 640, "length": 32, "batch": 4, "prior": 0.0}
SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_folder())


def llama(tokenizer, **options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "tie_word_embeddings": True} | SIZES | options
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes)
    return LlamaForCausalLM(config).eval()


def network(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*layers)


def vectors(count: int = 6, width: int = 8, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(size, width, generator=generator) for _ in range(count)]


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize("name", ["keep", "keep_bytes", "held_out"])
@pytest.mark.parametrize("share", [0.0, -0.1, 1.0, 1.5, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(name, share):
    with pytest.raises(InputError, match=name):
        CompressOptions(**({"keep": 0.5} if name == "held_out" else {}) | {name: share}).check()


@pytest.mark.parametrize("share", [0.9, 0.8, 0.6])
def test_keep_of_bytes_is_of_the_whole_model_and_never_more(share):
    layers = [nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8, bias=False)]
    model = network(*layers)
    model.register_parameter("table", nn.Parameter(torch.zeros(200)))
    made = compress(model, None, vectors(), keep_bytes=share, likelihood="embedding", ranks="uniform")
    dense, now = made.bytes
    assert dense == sum(4 * parameter.numel() for parameter in model.parameters())
    assert now == sum(tensor.nbytes for tensor in (*made.model.parameters(), *made.model.buffers()))
    assert share - 0.05 < now / dense <= share
    assert made.keep < share, "the table and the biases are not compressed"


# ---------------------------------------------------------------- layers


def test_tied_layers_and_used_twice(tokenizer, tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(self.shared(torch.tanh(self.shared(x))))))

    torch.manual_seed(3)
    made = compress(Twice(), None, vectors(), keep=0.8, likelihood="embedding", ranks="uniform")
    assert made.left_out == dict.fromkeys(("a", "b"), "its weight is tied to another layer's")
    assert "shared is used more than once in a pass" in made.notes
    assert type(made.model.shared) is lowrank.LowRankLinear
    torch.manual_seed(3)
    again = compress(Twice(), None, vectors(), keep=0.8, likelihood="embedding", ranks="uniform", second_pass=True)
    assert again.measured["held-out text"].value <= made.measured["held-out text"].value
    tied = compress(llama(tokenizer), tokenizer, TEXT, keep=0.8, **OPTIONS)
    assert tied.left_out == {"lm_head": "its weight is tied to another layer's"}
    loose = compress(llama(tokenizer, tie_word_embeddings=False), tokenizer, TEXT, keep=0.8, **OPTIONS)
    assert loose.left_out == {"lm_head": "the output layer"}


def test_one_layer_at_all_depths_is_compressed_once():
    shared = nn.Linear(8, 8)
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), shared, nn.Tanh(), shared, nn.Tanh(), shared)
    made = compress(model, None, vectors(), keep=0.8, likelihood="embedding", ranks="uniform")
    assert made.model[2] is made.model[4] is made.model[6]
    assert [layer.name for layer in made.layers] == ["0", "2"]
    assert made.bytes[1] < made.bytes[0]


def test_equal_weights_and_duplicated_rows_are_found_at_no_loss():
    model = network(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 6))  # fmt: skip
    with torch.no_grad():
        model[2].weight[12:] = model[2].weight[:12]  # duplicated rows: rank 12
        model[4].weight.copy_(model[2].weight)
        model[0].weight[:, 4:] = 2.0 * model[0].weight[:, :4]  # and columns: rank 4
    made = compress(model, None, vectors(12), loss_budget=0.0, likelihood="embedding")
    ranks = {layer.name: layer.rank for layer in made.layers}
    assert ranks == {"0": 4, "2": 12, "4": 12, "6": 6}
    assert any("4 holds the same weights as 2" in note for note in made.notes)
    assert made.measured["held-out text"].value < 1e-9
    x = vectors(1)[0]
    torch.testing.assert_close(made.model(x), model(x), rtol=1e-4, atol=1e-5)
    assert made.keep < 1.0


def test_weights_of_no_linear_layer_are_said_to_be_left_and_unreached_experts_stay_dense(tokenizer):
    torch.manual_seed(5)
    config = MixtralConfig(
        vocab_size=len(tokenizer), num_hidden_layers=1, num_local_experts=4, num_experts_per_tok=1, **SIZES
    )
    made = compress(MixtralForCausalLM(config).eval(), tokenizer, TEXT, keep=0.8, **OPTIONS)
    said = {name for name, why in made.left_out.items() if "MixtralExperts holds it" in why}
    assert said == {f"model.layers.0.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj")}
    assert not any("embed" in name or "norm" in name for name in made.left_out)

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            low = x[:, :1] < 0.0
            y = torch.zeros_like(x)
            for expert, taken in zip(self.experts, (low, ~low, x[:, :1] > 1e6)):
                rows = taken[:, 0].nonzero()[:, 0]
                if len(rows):
                    y = y.index_add(0, rows, expert(x[rows]))
            return self.head(torch.tanh(y))

    routed = compress(Routed(), None, vectors(), keep=0.8, likelihood="embedding", second_pass=True)
    notes = {layer.name: layer.note for layer in routed.layers}
    assert notes["experts.2"] == "no calibration token reached it"
    assert notes["experts.0"] == notes["experts.1"] == ""
    assert type(routed.model.experts[2]) is nn.Linear


def test_a_small_convolutional_network_keeps_its_share_and_its_output():
    torch.manual_seed(6)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=4), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 5),
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    data = [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(5, (8,), generator=generator)) for _ in range(8)
    ]
    made = compress(model, None, data, keep=0.7, ranks="uniform")
    assert {name: type(made.model.get_submodule(name)).__name__ for name in ("0", "4", "8")} == {
        "0": "LowRankConv", "4": "LowRankConv", "8": "LowRankLinear",
    }  # fmt: skip
    assert list(made.left_out) == ["2.weight"]
    assert type(made.model[2]) is nn.Conv2d
    assert 0.6 < made.keep <= 0.7
    assert made.model(data[0][0]).shape == (8, 5)
    whole = compress(model, None, data, ranks={"0": 16, "4": 23})
    assert whole.layers[1].rank == 23
    torch.testing.assert_close(whole.model(data[0][0]), model(data[0][0]), rtol=0.1, atol=0.02)


# ---------------------------------------------------------------- numbers that are none


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_named_by_layer(value):
    model = network(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    data = vectors()
    data[2][3, 1] = value
    with pytest.raises(InputError, match=r"^0: inputs that are not finite.*eigenscope scan"):
        compress(model, None, data, keep=0.8, likelihood="embedding")
    with torch.no_grad():
        model[2].weight[0, 0] = value
    with pytest.raises(InputError, match=r"^2: |^0: "):
        compress(model, None, vectors(), keep=0.8, likelihood="embedding")


# ---------------------------------------------------------------- texts and kinds of models


def test_a_model_that_only_guesses_the_text_is_said_to_have_another_tokenizer_perhaps(tokenizer):
    model = llama(tokenizer)
    made = compress(model, tokenizer, TEXT, keep=0.9, **OPTIONS)
    assert any("is the tokenizer the model's own?" in note for note in made.notes)
    ids = torch.tensor([tokenizer(TEXT["prose"])["input_ids"][:32]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    learnt = compress(model.eval(), tokenizer, TEXT, keep=0.9, **OPTIONS)
    assert not any("tokenizer" in note for note in learnt.notes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": {"short": "too few"}}, "short: is shorter than one window; expected at least 32 tokens"),
        ({"text": {"empty": "  "}}, "empty: holds no text"),
        ({"tokenizer": None, "text": TEXT}, "a list of batches, or a tokenizer and text"),
        ({"tokenizer": None, "text": [torch.zeros(2, 3)]}, "at least two"),
    ],
)
def test_texts_and_batches_that_are_too_few(tokenizer, arguments, words):
    from eigenscope.errors import EigenscopeError

    if arguments.get("text") is TEXT:
        arguments = arguments | {"text": "prose.txt"}
    with pytest.raises(EigenscopeError, match=words.replace("?", r"\?")):
        compress(llama(tokenizer), **({"tokenizer": tokenizer} | arguments), keep=0.8, **OPTIONS)


def test_models_without_a_head_that_gives_a_loss(tokenizer, tmp_path):
    torch.manual_seed(8)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
    classifier = BertForSequenceClassification(BertConfig(**sizes))
    with pytest.raises(InputError, match=r"neither a causal head nor one for hidden tokens.*Pass its base_model"):
        compress(classifier, tokenizer, TEXT, keep=0.8, **OPTIONS)
    made = compress(classifier.base_model, tokenizer, TEXT, keep=0.8, **OPTIONS)
    assert made.unit == "½‖Δz‖² per passage"
    classifier.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    loaded = compress(str(tmp_path / "bert"), None, TEXT, keep=0.8, **OPTIONS)
    assert (
        "a BertForSequenceClassification is taken as the encoder of its passages: its head is left out" in loaded.notes
    )
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="reads one text and writes another"):
        compress(T5ForConditionalGeneration(config), tokenizer, TEXT, keep=0.8, **OPTIONS)


def test_speed_of_a_model_that_does_not_write_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text(TEXT["prose"])
    arguments = ["demo", "--text", str(tmp_path / "a.txt"), "--keep", "0.8", "--speed", "--tokens", "640", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["eigenscope", "compress", *arguments])
    monkeypatch.setattr(calibration, "collect_moments", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises(SystemExit) as left:
        executable.main()
    assert left.value.code == 2
    assert "a causal language model" in capsys.readouterr().err


# ---------------------------------------------------------------- the disk


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_what_can_be_gone_on_from_and_no_half_folder(tokenizer, tmp_path, monkeypatch):
    model, work = llama(tokenizer), tmp_path / "work"
    arguments = {"keep": 0.8, "folder": work, "workers": 1} | OPTIONS
    with monkeypatch.context() as during:
        during.setattr(calibration, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            compress(model, tokenizer, TEXT, **arguments)
    assert [path.name for path in work.iterdir()] == ["identity.json"]
    written = []

    def third(tensors, path, **rest):
        if len(written) == 2:
            full()
        written.append(path)
        return save(tensors, path, **rest)

    save = compress_factors.save_file
    with monkeypatch.context() as during:
        during.setattr(compress_factors, "save_file", third)
        with pytest.raises(OSError, match="No space left"):
            compress(model, tokenizer, TEXT, **arguments)
    files = [path for path in work.rglob("*") if path.is_file()]
    assert len([path for path in files if path.name.startswith("terms-")]) == 2
    assert all(path.suffix in (".safetensors", ".json") for path in files), "nothing half written"
    made = compress(model, tokenizer, TEXT, **arguments)
    assert made.ranks == compress(model, tokenizer, TEXT, keep=0.8, **OPTIONS).ranks
    with monkeypatch.context() as during:
        during.setattr(type(made.model), "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            made.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"work"}


def test_a_full_disk_is_one_line_with_a_remedy(tokenizer, tmp_path, monkeypatch, capsys):
    llama(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "a.txt").write_text(TEXT["prose"])
    capsys.readouterr()
    arguments = ["model", "--text", "a.txt", "--keep", "0.8", "--tokens", "640", "--length", "32", "--prior", "0", "-o", "out", "--quiet"]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["eigenscope", "compress", *arguments])
    with monkeypatch.context() as during:
        during.setattr(compress_result.lowrank, "multiply_out", full)
        during.setattr(LlamaForCausalLM, "save_pretrained", full)
        with pytest.raises(SystemExit) as left:
            executable.main()
    printed = capsys.readouterr().err
    assert left.value.code == 2
    assert "free some space" in printed
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.unfinished").is_dir(), "the statistics are kept"
    with pytest.raises(SystemExit) as left:
        executable.main()
    assert left.value.code == 0
    assert json.loads((tmp_path / "out" / "eigenscope.json").read_text())["keep"] <= 0.8
    assert not (tmp_path / ".out.unfinished").exists()


# ---------------------------------------------------------------- what was written


def test_dense_folder_needs_no_eigenscope_and_the_other_takes_device_map_and_bf16(tokenizer, tmp_path):
    made = compress(llama(tokenizer), tokenizer, TEXT, keep=0.7, evaluate=[Domain("b", TEXT["prose"])], **OPTIONS)
    made.save(tmp_path / "out", shard=20_000)
    made.save(tmp_path / "dense", dense=True, shard=20_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    ids = torch.arange(3, 19).reshape(2, 8)
    with torch.no_grad():
        wanted = made.model(ids).logits
    torch.save({"ids": ids, "wanted": wanted}, tmp_path / "said.pt")
    code = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        "said = torch.load(sys.argv[1] + '/said.pt', weights_only=True)\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + '/dense').eval()\n"
        "assert not any(name.startswith('eigenscope') for name in sys.modules)\n"
        "with torch.no_grad():\n    print(float((model(said['ids']).logits - said['wanted']).abs().max()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-4
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16, device_map="auto").eval()
    layer = half.model.layers[0].mlp.up_proj
    assert layer.down.weight.dtype == torch.bfloat16
    assert layer.order.dtype == torch.int32
    with torch.no_grad():
        torch.testing.assert_close(half(ids).logits.float(), wanted, rtol=0.1, atol=0.3)
    assert half.generate(ids[:1], max_new_tokens=4, do_sample=False, pad_token_id=0).shape == (1, 12)
