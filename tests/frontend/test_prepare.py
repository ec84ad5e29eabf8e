"""Linear layers whose weight is computed at each call are linear layers of that weight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations

import gqc
from gqc.frontend.linears import copy_shared

NORMS = {
    "weight_norm": utils.weight_norm,
    "spectral_norm": utils.spectral_norm,
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_both_ways_quantize_the_weight_that_is_computed(norm: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(NORMS[norm](nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 32)).eval()
    x = torch.randn(4, 64)
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(copy_shared(model)(x), expected, atol=1e-6)
    for example in (None, x):
        compiled: Any = gqc.compile(model, example, scheme="int8_g32", target="cpu")
        assert [row.layer for row in compiled.report().rows if row.decision != "kept"] == ["0", "2"]
        with torch.no_grad():
            assert 0 < (compiled(x) - expected).norm() < 0.02 * expected.norm()
    with torch.no_grad():
        assert torch.equal(model(x), expected)  # the model keeps its own
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
