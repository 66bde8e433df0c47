"""Is there a gradient at all? Measured directly, as an attack that takes the plain cross-entropy would see it."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from trustcxr.models.preserve_state import preserve_state


def sizes(model: nn.Module, images: Tensor, labels: Tensor, chosen: Tensor) -> NDArray[np.float64]:
    """The largest absolute gradient of the cross-entropy over an image's pixels, in float32, (B,).

    `images` (B, 1, H, W) in [0, 1]; `chosen` (B,) bool: of the others it is NaN. 0 where the answer does not depend on
    the image, infinity where the gradient is no number.
    """
    found = np.full(len(images), np.nan)
    if not bool(chosen.any()):
        return found
    some = chosen.to(images.device)
    with preserve_state(model), torch.inference_mode(False), torch.enable_grad():
        leaf = images[some].detach().clone().requires_grad_(True)
        losses = F.cross_entropy(model(leaf).float(), labels.to(images.device)[some].long(), reduction="sum")
        gradient = torch.autograd.grad(losses, leaf, allow_unused=True)[0] if losses.requires_grad else None
    size = torch.zeros(len(leaf)) if gradient is None else gradient.flatten(1).abs().amax(1).double().cpu()
    found[chosen.numpy()] = size.nan_to_num(nan=np.inf, posinf=np.inf).numpy()
    return found
