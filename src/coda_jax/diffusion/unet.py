"""A one-dimensional U-Net over time: the raw network F of the denoiser (paper, App. F.1).

Inputs are `[*batch, H, C]` with any horizon: downsampling maps h tokens to ceil(h / 2); upsampling repeats tokens
and crops them to the length of the skip connection. Convolutions are matrix products over shifted inputs: on a
CPU, the gradient of a `lax` convolution inside a scan takes about eight times as long.
"""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from annotated_types import MinLen
from jaxtyping import Array, Bool, Float

from coda_jax.ranges import Count, Ranged


@dataclasses.dataclass(frozen=True)
class UNetConfig(Ranged):
    """Sizes of the network (paper, Tables 2 and 3); all static."""

    width: Count = 16
    """Channels at full resolution (the paper's U-Net embedding: 16 for MaMuJoCo, 32 for the games)."""
    channel_multipliers: Annotated[tuple[Count, ...], MinLen(1)] = (1, 2)
    """Channels of each encoder and decoder block in units of `width`; all but the first halve the resolution."""
    kernel_size: Count = 3
    """Kernel size of the convolutions, in tokens."""
    embedding_dim: Count = 16
    """Size of the embeddings of noise level, position and condition."""


class TemporalConv(nn.Module):
    """A convolution over tokens, zero-padded: output token j is centred on input token j * stride."""

    features: int
    kernel_size: int
    stride: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*batch H C_in"]) -> Float[Array, "*batch H_out C_out"]:
        """Returns ceil(H / stride) tokens."""
        horizon = x.shape[-2]
        pad_left = (self.kernel_size - 1) // 2
        pad_right = self.kernel_size - 1 - pad_left
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(pad_left, pad_right), (0, 0)])
        shifted = [padded[..., k : k + horizon : self.stride, :] for k in range(self.kernel_size)]
        return nn.Dense(self.features, kernel_init=self.kernel_init, name="taps")(jnp.concatenate(shifted, axis=-1))


class ResidualBlock(nn.Module):
    """A residual block of two convolutions, with features scaled and shifted by the latent in between (FiLM)."""

    channels: int
    kernel_size: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch H C_in"],
        latent: Float[Array, "... 1 E"],
        position: Float[Array, "... H E"],
    ) -> Float[Array, "*batch H C_out"]:
        """Returns x plus the residual, with `channels` features per token; latent and position broadcast against x."""
        project = nn.Dense(2 * self.channels, use_bias=False, name="latent_projection")
        h = TemporalConv(self.channels, self.kernel_size)(nn.silu(nn.RMSNorm()(x)))
        # The linear map of latent + position as a sum of two, which avoids computing it for batch x tokens.
        scale, shift = jnp.split(project(latent) + project(position), 2, axis=-1)
        h = nn.RMSNorm()(h) * (1 + scale) + shift
        h = TemporalConv(self.channels, self.kernel_size)(nn.silu(h))
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, use_bias=False, name="shortcut")(x)
        return x + h


class UNet(nn.Module):
    """F(x_in; c_noise, condition) of `edm.precondition`; the last layer is initialised with zeros."""

    config: UNetConfig
    horizon: int
    condition_dim: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch H C"],
        c_noise: Float[Array, "... 1 1"],
        condition: Float[Array, "... K"] | None = None,
        dropped: Bool[Array, "..."] | None = None,
    ) -> Float[Array, "*batch H C"]:
        """Leading axes of `c_noise` and `condition` may be 1 (shared by the batch).

        A conditional network uses the learned null token for `condition=None` and where `dropped` is true.

        Raises:
            ValueError: the condition does not have the size for which the network was built.
        """
        config = self.config
        # All norms and convolutions act within a trajectory; a latent is [*batch or 1, 1, E].
        latent = nn.silu(self._embed_noise(c_noise) + self._embed_condition(condition, dropped, x.ndim))
        table = self.param("position", nn.initializers.normal(0.1), (self.horizon, config.embedding_dim))
        position = table.reshape((1,) * (x.ndim - 2) + table.shape)

        def block(level: int, name: str) -> ResidualBlock:
            return ResidualBlock(config.width * config.channel_multipliers[level], config.kernel_size, name=name)

        h = TemporalConv(config.width, config.kernel_size, name="input")(x)
        skips = []
        num_levels = len(config.channel_multipliers)
        for level in range(num_levels):
            if level > 0:
                channels = config.width * config.channel_multipliers[level]
                h = TemporalConv(channels, config.kernel_size, stride=2, name=f"down_{level}")(h)
            h = block(level, f"encoder_{level}")(h, latent, position[..., :: 2**level, :])
            skips.append(h)
        h = block(num_levels - 1, "middle")(h, latent, position[..., :: 2 ** (num_levels - 1), :])
        for level in reversed(range(num_levels)):
            skip = skips[level]
            if level < num_levels - 1:
                h = jnp.repeat(h, 2, axis=-2)[..., : skip.shape[-2], :]
            h = jnp.concatenate([h, skip], axis=-1)
            h = block(level, f"decoder_{level}")(h, latent, position[..., :: 2**level, :])
        # At low noise F must return the noise of every channel, which `width` features cannot represent. Therefore the
        # output layer also has the input; without it, samples lose the equality of duplicated channels.
        gain = 1 + nn.Dense(x.shape[-1], use_bias=False, name="input_gain")(latent)
        h = jnp.concatenate([nn.silu(nn.RMSNorm()(h)), x * gain], axis=-1)
        return TemporalConv(x.shape[-1], config.kernel_size, kernel_init=nn.initializers.zeros, name="output")(h)

    def _embed_noise(self, c_noise: Float[Array, "... 1 1"]) -> Float[Array, "... 1 E"]:
        # c_noise = ln(sigma) / 4 in [-1.6, 1.1]: periods from twice the whole range to a factor 2 of sigma.
        num_frequencies = 16
        frequency = 2.0 ** jnp.linspace(0.0, 5.0, num_frequencies)
        angle = c_noise * frequency.reshape((1,) * (c_noise.ndim - 1) + (num_frequencies,))
        features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        hidden = nn.silu(nn.Dense(4 * self.config.embedding_dim, name="noise_hidden")(features))
        return nn.Dense(self.config.embedding_dim, name="noise")(hidden)

    def _embed_condition(
        self, condition: Float[Array, "... K"] | None, dropped: Bool[Array, "..."] | None, ndim: int
    ) -> Float[Array, "... 1 E"] | float:
        if self.condition_dim == 0:
            if condition is not None:
                raise ValueError("condition given to an unconditional network (condition_dim = 0)")
            return 0.0
        embedding_dim = self.config.embedding_dim
        null = self.param("null_token", nn.initializers.normal(1.0), (embedding_dim,)).reshape(
            (1,) * (ndim - 1) + (-1,)
        )
        if condition is None:
            return null
        if condition.shape[-1] != self.condition_dim or condition.ndim != ndim - 1:
            raise ValueError(
                f"condition of shape {condition.shape}: expected {ndim - 1} axes, the last of {self.condition_dim}"
            )
        hidden = nn.silu(nn.Dense(4 * embedding_dim, name="condition_hidden")(condition[..., None, :]))
        embedding = nn.Dense(embedding_dim, name="condition")(hidden)
        return embedding if dropped is None else jnp.where(dropped[..., None, None], null, embedding)
