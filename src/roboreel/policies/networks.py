"""The pieces that the built-in policies are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - as everyone calls it
from torch import Tensor, nn

from roboreel.policies.part import WHOLE, Part


def conv_block(channels_in: int, channels_out: int, kernel: int, stride: int) -> list[nn.Module]:
    """Return a convolution, a normalisation that does not depend on the batch, and a ReLU."""
    padding = (kernel - 1) // 2 if kernel % 2 else (kernel - stride) // 2
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding)
    return [conv, nn.GroupNorm(8, channels_out), nn.ReLU()]


class SpatialSoftmax(nn.Module):
    """Keypoints: for each of C maps the mean position under its softmax.

    (B, C, H, W) -> (B, 2 C), each in -1 … 1; a map that is high at one pixel gives that pixel's place.
    """

    def forward(self, maps: Tensor) -> Tensor:
        weights = maps.flatten(2).softmax(dim=-1).view_as(maps)
        y = torch.linspace(-1, 1, maps.shape[2], device=maps.device)
        x = torch.linspace(-1, 1, maps.shape[3], device=maps.device)
        return torch.cat([weights.sum(dim=3) @ y, weights.sum(dim=2) @ x], dim=1)


class ImageEncoder(nn.Module):
    """Images (B, C, H, W), float, of any size, to the places of `num_keypoints` keypoints (B, 2 num_keypoints).

    The first convolution steps by 4 pixels: most of the time would otherwise go into the first layers, and keypoints
    lie between pixels anyway.
    """

    def __init__(self, channels: int, width: int, num_keypoints: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *conv_block(channels, width, kernel=8, stride=4),
            *conv_block(width, 2 * width, kernel=3, stride=2),
            *conv_block(2 * width, 2 * width, kernel=3, stride=1),
            nn.Conv2d(2 * width, num_keypoints, kernel_size=1),
            SpatialSoftmax(),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


def random_shift(images: Tensor, pixels: int, part: Part = WHOLE) -> Tensor:
    """Shift each image (B, C, H, W) by up to `pixels` each way, whole pixels, the edge repeated; any dtype.

    Drawn from torch's global generator on the CPU, so that a seed means the same on every device.
    """
    if not pixels:
        return images
    batch, channels, height, width = images.shape
    drawn = torch.randint(-pixels, pixels + 1, (2, part.rows(batch), 1))
    shifts = torch.stack([part.of(one) for one in drawn]).to(images.device)
    first = torch.arange(batch, device=images.device)[:, None]
    rows = (torch.arange(height, device=images.device) + shifts[0]).clamp(0, height - 1) + first * height
    columns = (torch.arange(width, device=images.device) + shifts[1]).clamp(0, width - 1) + first * width
    # Whole rows, then whole columns, of channels-last pixels: half the time of one gather by pixel.
    pixels_last = images.permute(0, 2, 3, 1).reshape(batch * height, width * channels)[rows.flatten()]
    turned = pixels_last.view(batch, height, width, channels).transpose(1, 2).reshape(batch * width, height * channels)
    shifted = turned[columns.flatten()].view(batch, width, height, channels)
    return shifted.permute(0, 3, 2, 1)


class VelocityNet(nn.Module):
    """The velocity of a flow from noise to actions: an MLP with residual blocks, scaled and shifted by the features.

    (N, `size`) at times (N,) in 0 … 1 under features (N, `feature_size`) -> velocities (N, `size`).
    """

    def __init__(self, size: int, feature_size: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(feature_size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.inlet = nn.Linear(size + 16, hidden)
        self.scale_shift = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden)) for _ in range(blocks)
        )
        self.outlet = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, size))

    def forward(self, x: Tensor, time: Tensor, features: Tensor, repeats: int = 1) -> Tensor:
        """With `repeats`, row k of the features belongs to rows k·repeats … k·repeats + repeats − 1 of the rest."""
        angles = time[:, None] * torch.exp(torch.linspace(0, 5, 8, device=x.device))
        h = self.inlet(torch.cat([x, angles.sin(), angles.cos()], dim=1))
        condition = self.features(features)
        for scale_shift, block in zip(self.scale_shift, self.blocks, strict=True):
            scale, shift = scale_shift(condition).repeat_interleave(repeats, dim=0).chunk(2, dim=1)
            h = h + block(F.layer_norm(h, h.shape[1:]) * (1 + scale) + shift)
        velocity: Tensor = self.outlet(h)
        return velocity
