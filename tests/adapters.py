"""Small random transformers models, and adapters on them, for the tests of adapters."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from eigenscope.models.peft import AdapterLayer

IGNORED = "ignore:.*is_gradient_checkpointing:FutureWarning"
"""PEFT uses what transformers deprecates."""
IDS = torch.tensor([[3, 14, 15, 9, 26, 5], [35, 8, 9, 7, 9, 3]])


def bert(seed: int = 0) -> torch.nn.Module:
    """Two layers of width 24."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertModel(config).eval()


def gpt2(seed: int = 0) -> torch.nn.Module:
    """Conv1D layers, which store their weights transposed; tied embeddings."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def llama(seed: int = 0, tied: bool = False) -> torch.nn.Module:
    """Grouped queries: rectangular k and v."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Convolutions(torch.nn.Module):
    """One- and two-dimensional convolutions and a linear layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Conv2d(3, 6, (3, 2))
        self.second = torch.nn.Conv1d(6, 8, 3)
        self.last = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x)).flatten(2)
        return self.last(torch.relu(self.second(hidden)).mean(-1))


def save(model: torch.nn.Module, folder: Path) -> Path:
    """As transformers saves it."""
    model.save_pretrained(folder)
    return folder


def changed(model: torch.nn.Module, names: tuple[str, ...], rank: int | None, *, seed: int = 1, size: float = 0.05):
    """Add to each weight whose module ends in one of ``names`` a change of that rank, full where it is None."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(names):
                weight = module.weight
                flat = weight.reshape(weight.shape[0], -1)
                m, n = flat.shape
                if rank is None:
                    delta = torch.randn(m, n, generator=generator)
                else:
                    delta = torch.randn(m, rank, generator=generator) @ torch.randn(rank, n, generator=generator)
                weight += size * delta.reshape(weight.shape)
    return model


def outputs(model: torch.nn.Module) -> torch.Tensor:
    """What the model says of fixed inputs."""
    with torch.no_grad():
        if any(isinstance(module, Convolutions) for module in model.modules()):
            return model(torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6))
        return model(IDS)[0]


def with_peft(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The model with the adapter of a folder, by PEFT, whose every complaint is an error."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT's use of transformers
        return PeftModel.from_pretrained(model, str(folder)).eval()


def random_layer(
    module: str, m: int, n: int, rank: int, *, kind="linear", scale: float = 1.0, shape=None, seed: int = 0
):
    """An :class:`AdapterLayer` of Gaussian factors."""
    generator = torch.Generator().manual_seed(seed)
    B, A = 0.2 * torch.randn(m, rank, generator=generator), 0.2 * torch.randn(rank, n, generator=generator)
    return AdapterLayer(module, kind, B, A, scale, None, shape or (m, n))
