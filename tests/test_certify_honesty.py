"""What a proof does not see is refused, and the arithmetic that it allows for is that of the answers."""

import pytest
import torch
from torch import nn

from trustcxr.certify import verify
from trustcxr.errors import UserError
from trustcxr.models.preserve_state import without_tf32


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))


def test_hooks_and_a_replaced_forward_are_refused_in_one_line() -> None:
    before, after, replaced, whole = network(), network(), network(), network()
    before[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    after[3].register_forward_hook(lambda module, args, output: -output)
    replaced[1].forward = lambda x: torch.zeros(len(x), 4)
    whole.register_forward_hook(lambda module, args, output: -output)
    for model, name in ((before, "'1'"), (after, "'3'"), (replaced, "'1'"), (whole, "'Sequential'")):
        with pytest.raises(UserError, match=f"^certify: module {name} has forward hooks") as problem:
            verify.exact(model)
        assert "\n" not in str(problem.value)
    assert len(verify.exact(network())) == 4


def test_tf32_is_off_inside_and_as_before_outside() -> None:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    try:
        matmul.allow_tf32 = convolution.allow_tf32 = True
        with without_tf32():
            assert (matmul.allow_tf32, convolution.allow_tf32) == (False, False)
        assert (matmul.allow_tf32, convolution.allow_tf32) == (True, True)
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
