"""How transformers loads a checkpoint whose layers are held in low rank: its own registry of quantisation methods.

``from_pretrained`` reads ``quantization_config`` from config.json, finds the method registered under its name, lets it put
:class:`LowRankLinear` where the configuration names a rank, then loads the weights as those of any other model.
No code comes from the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from eigenscope.errors import SourceError
from eigenscope.models.lowrank import dense_layers, low_rank_twin, multiply_out, replace

METHOD = "eigenscope-lowrank"


@dataclass
class LowRankConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a low-rank checkpoint.

    Attributes:
        ranks: name of the layer → its rank; layers not named are dense.
        made_by: how it was made: versions, objective, share kept.
    """

    ranks: dict[str, int] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)
    quant_method: str = METHOD  # type: ignore[assignment]


class LowRankQuantizer(HfQuantizer):
    """Puts the low-rank layers in place before the weights are loaded."""

    requires_calibration = True
    quantization_config: LowRankConfig

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        layers = dict(dense_layers(model))
        names = {name: _found(name, layers, model) for name in self.quantization_config.ranks}
        missing = [name for name, found in names.items() if found is None]
        # A head that this class of the architecture lacks is as absent as its other weights are.
        if len(missing) == len(names) > 0:
            raise SourceError(
                f"no layer {missing[0]!r} in {type(model).__name__}", where="quantization_config",
                expected="names of this architecture's layers",
            )  # fmt: skip
        with torch.device("meta"):
            twins = {
                found: low_rank_twin(layers[found], rank)
                for (name, rank) in self.quantization_config.ranks.items() if (found := names[name]) is not None
            }  # fmt: skip
        replace(model, twins)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        return model

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        del dtype  # the factors' own, which is that of the rest of the model
        multiply_out(model)
        return model

    def is_serializable(self) -> bool:
        """Whether ``save_pretrained`` may write it."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters may be trained on it."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether its own weights may be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether ``torch.compile`` may take it."""
        return True


def _found(name: str, layers: dict[str, nn.Module], model: Any) -> str | None:
    """The layer under its name, or with or without the prefix by which a head holds the base model."""
    prefix = f"{model.base_model_prefix}." if getattr(model, "base_model_prefix", "") else ""
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if candidate in layers:
            return candidate
    return None


def attach(model: Any, config: LowRankConfig) -> None:
    """Make a transformers model, whose layers have been replaced, known as one of this method: it saves and loads as such."""
    quantizer = LowRankQuantizer(config, pre_quantized=True)
    model.config.quantization_config = config
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = METHOD


def detach(model: Any) -> None:
    """Make a model whose layers are dense again known as an ordinary one."""
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "quantization_method")):
        if name in vars(owner):
            delattr(owner, name)
    model.is_quantized = False


if METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(METHOD)(LowRankConfig)
    register_quantizer(METHOD)(LowRankQuantizer)
