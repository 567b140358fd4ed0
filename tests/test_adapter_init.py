"""Adapters to begin training from: against PEFT's own starts, and trained by PEFT."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import eigenscope as es
from eigenscope.cli.main import main
from eigenscope.errors import InputError
from eigenscope.models.peft import read_adapter
from eigenscope.tasks.adapter_init import STARTS, UNCHANGED

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Found missing adapter keys.*:UserWarning"),
]
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "the",
    "dog",
    "run",
    "to",
    "the",
    "barn",
    "while",
    "it",
    "rained",
    "all",
    "day",
    "long",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Llama and its tokenizer, saved."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("init") / "base"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    rng = np.random.default_rng(0)
    (folder.parent / "text.txt").write_text(" ".join(rng.choice(WORDS, 1200)))
    return folder


def options(start: str, base) -> dict:
    return {"text": str(base.parent / "text.txt"), "tokens": 600} if start.startswith("corda") else {}


def weights_of(base) -> dict[str, torch.Tensor]:
    checkpoint = es.open_checkpoint(base)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def tokens() -> torch.Tensor:
    return torch.randint(4, 20, (4, 12), generator=torch.Generator().manual_seed(0))


def model_of(folder):
    return transformers.LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize(("start", "alpha"), [*((start, None) for start in STARTS), ("pissa", 12.0), ("olora", 12.0)])
def test_training_begins_at_the_outputs_of_the_base_and_the_loss_falls(start, alpha, base, tmp_path):
    made = es.init_adapter(base, start=start, rank=4, alpha=alpha, **options(start, base))
    made.save(tmp_path / "out")
    x, own = tokens(), start in UNCHANGED
    with torch.no_grad():
        expected = model_of(base)(x).logits
    assert (tmp_path / "out" / "base").exists() is not own
    rest = model_of(base if own else tmp_path / "out" / "base")
    model = peft.PeftModel.from_pretrained(rest, str(tmp_path / "out" / "adapter"), is_trainable=True)
    with torch.no_grad():
        assert float((model(x).logits - expected).abs().max()) < 1e-5
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=5e-3)
    losses = []
    for _ in range(20):
        loss = model(x, labels=x).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.03
    frozen = {
        name.rpartition("lora_")[2][0]
        for name, p in model.named_parameters()
        if "lora_" in name and not p.requires_grad
    }
    assert frozen == ({"B"} if own else set())


def test_what_was_trained_moves_to_the_base_as_it_was(base, tmp_path):
    """The trained adapter less the one that it began as: PEFT's path_initial_model_for_weight_conversion, for any start."""
    es.init_adapter(base, start="pissa", rank=4).save(tmp_path / "out")
    x, adapter = tokens(), str(tmp_path / "out" / "adapter")
    model = peft.PeftModel.from_pretrained(model_of(tmp_path / "out" / "base"), adapter).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "trained")
    change = es.Adapter.load(tmp_path / "trained") - es.Adapter.load(adapter)
    change.save(tmp_path / "change")
    with torch.no_grad():
        expected, trained = model_of(base)(x).logits, model(x).logits
        moved = peft.PeftModel.from_pretrained(model_of(base), str(tmp_path / "change"))(x).logits
    assert float((moved - trained).abs().max()) < 1e-5
    assert float((moved - expected).abs().max()) > 1e-3


def started_by_peft(base, start: str, rank: int, alpha: float):
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=start, target_modules="all-linear")
    return peft.get_peft_model(model_of(base), config)


@pytest.mark.parametrize("start", ["pissa", "olora", "mica"])
@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_the_same_as_pefts_own_starts(start, alpha, base):
    made = es.init_adapter(base, start=start, rank=4, alpha=alpha)
    theirs = started_by_peft(base, start, 4, alpha).base_model.model
    assert len(made.layers) == 7
    for name, ours in made.layers.items():
        module = theirs.get_submodule(name)
        B, A = (getattr(module, f"lora_{side}")["default"].weight.detach().double() for side in "BA")
        assert ours.scale == pytest.approx(module.scaling["default"], rel=1e-12)
        # Signs of singular vectors are nobody's: what they do is compared, and of MiCA, whose A is 0, the space.
        expected = B @ B.T if start == "mica" else module.scaling["default"] * (B @ A)
        found = ours.B.double() @ ours.B.double().T if start == "mica" else ours.delta()
        assert float((found - expected).norm()) < 2e-5 * float(expected.norm()), name
        if start != "mica":
            assert torch.allclose(ours.B.norm(dim=0).double(), B.norm(dim=0), rtol=1e-4)
        else:
            assert not ours.A.any()


@pytest.mark.parametrize("start", ["pissa", "milora"])
def test_rows_tell_what_was_taken_out_and_what_rounding_left(start, base):
    made = es.init_adapter(base, start=start, rank=3)
    originals = weights_of(base)
    for record in made.run.records:
        W = originals[f"{record.name}.weight"].double()
        U, values, Vh = torch.linalg.svd(W, full_matrices=False)
        chosen = slice(0, 3) if start == "pissa" else slice(len(values) - 3, None)
        expected = (U[:, chosen] * values[chosen]) @ Vh[chosen]
        assert float((made.layers[record.name].delta() - expected).norm()) < 1e-5 * float(W.norm())
        share = float((values[chosen] ** 2).sum() / (values**2).sum())
        assert record.readings["energy"] == pytest.approx(share, rel=1e-3)
        assert record.readings["residual"] < 1e-8
        assert 0.0 <= record.readings["start_error"] < 1e-7


def test_corda_is_the_decomposition_in_the_metric_of_the_inputs(base):
    """Of all B A of this rank the leading one leaves least of W C; so it does not of W, where PiSSA's does."""
    from eigenscope.tasks.adapter_targets import find_targets
    from eigenscope.tasks.adapter_text import input_metrics

    text = str(base.parent / "text.txt")
    made = es.init_adapter(base, start="corda", rank=3, text=text, tokens=600)
    trailing = es.init_adapter(base, start="corda-kpm", rank=3, text=text, tokens=600)
    plain = es.init_adapter(base, start="pissa", rank=3)
    checkpoint = es.open_checkpoint(base)
    metrics = input_metrics(str(base), None, text, find_targets(checkpoint, checkpoint).targets, 600, 0)
    originals = weights_of(base)
    for name, layer in made.layers.items():
        W = originals[f"{name}.weight"].double()
        root = metrics[name].weigh(torch.eye(W.shape[1], dtype=torch.float64))
        C = root.T @ root
        U, values, Vh = torch.linalg.svd(W @ C, full_matrices=False)
        expected = (U[:, :3] * values[:3]) @ Vh[:3] @ torch.linalg.inv(C)
        assert float((layer.delta() - expected).norm()) < 1e-5 * float(W.norm())
        left = [float(((W - other.layers[name].delta()) @ C).norm()) for other in (made, plain, trailing)]
        assert left[0] == pytest.approx(float(values[3:].norm()), rel=1e-4)
        assert left[0] < left[1] < left[2]


def test_a_bf16_base_keeps_its_format_and_the_row_says_what_rounding_cost(base, tmp_path):
    model = model_of(base).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    made = es.init_adapter(tmp_path / "half", start="pissa", rank=4)
    made.save(tmp_path / "out")
    originals, rest = weights_of(tmp_path / "half"), weights_of(tmp_path / "out" / "base")
    for record in made.run.records:
        W, R = originals[f"{record.name}.weight"].double(), rest[f"{record.name}.weight"]
        assert R.dtype == torch.bfloat16
        error = float((R.double() + made.layers[record.name].delta() - W).norm() / W.norm())
        assert record.readings["start_error"] == pytest.approx(error, rel=1e-2)
        assert 1e-5 < error < 4e-3
    assert torch.equal(rest["model.embed_tokens.weight"], originals["model.embed_tokens.weight"])


def test_conv1d_and_a_choice_of_modules(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=32, n_embd=24, n_layer=1, n_head=4, n_positions=20)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    made = es.init_adapter(tmp_path / "gpt2", start="pissa", rank=3, include=("*attn.c_*",))
    assert {name.rpartition("h.0.")[2] for name in made.layers} == {"attn.c_attn", "attn.c_proj"}
    made.save(tmp_path / "out")
    x = tokens()
    with torch.no_grad():
        expected = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2").eval()(x).logits
        rest = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out" / "base").eval()
        assert float((rest(x).logits - expected).abs().max()) > 1e-3, "something was taken out"
        model = peft.PeftModel.from_pretrained(rest, str(tmp_path / "out" / "adapter"))
        assert float((model(x).logits - expected).abs().max()) < 1e-5
    assert json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"] is True


def test_the_configuration_names_the_base_that_belongs_to_the_adapter(base, tmp_path):
    es.init_adapter(base, start="pissa", rank=2).save(tmp_path / "a")
    es.init_adapter(base, start="mica", rank=2).save(tmp_path / "b")
    first, second = (json.loads((tmp_path / x / "adapter" / "adapter_config.json").read_text()) for x in "ab")
    assert first["base_model_name_or_path"] == str(tmp_path / "a" / "base")
    assert second["base_model_name_or_path"] == str(base)
    assert (first["init_lora_weights"], second["init_lora_weights"]) == (True, "mica")
    assert "lm_head" not in first["target_modules"]
    assert (tmp_path / "a" / "base" / "tokenizer.json").exists()


def test_bad_input(base, tmp_path, monkeypatch, capsys):
    for wish, match in (
        ({"start": "pisa"}, r"unknown start 'pisa'.*pissa"), ({"rank": 0}, "rank 0"), ({"alpha": -1.0}, "alpha -1"),
        ({"dtype": "int8"}, "unknown dtype"), ({"start": "corda"}, "corda without a text"),
        ({"text": "x.txt"}, "pissa with a text"), ({"include": ("nothing*",)}, "no weight"), ({"workers": 0}, "0 workers"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            es.init_adapter(base, **wish)
    weights = weights_of(base)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    made = es.init_adapter(weights, rank=2)
    assert "model.layers.0.mlp.up_proj" not in made.layers
    row = next(r for r in made.run.records if r.name == "model.layers.0.mlp.up_proj")
    assert row.readings["status"].startswith("left out: weights that are not finite")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="exists and is not empty"):
        made.save(tmp_path / "full")
    monkeypatch.setattr(
        "sys.argv", ["eigenscope", "adapter", "init", str(base), "-o", str(tmp_path / "cli"), "--rank", "2", "--json"]
    )
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert {row["rank"] for row in json.loads(capsys.readouterr().out)["records"]} == {2}
    assert read_adapter(tmp_path / "cli" / "adapter").layers


def test_the_same_seed_gives_the_same_factors_whatever_the_workers(base):
    first, second = (es.init_adapter(base, rank=3, seed=5, workers=workers) for workers in (1, 2))
    for name, layer in first.layers.items():
        assert torch.equal(layer.B, second.layers[name].B)
