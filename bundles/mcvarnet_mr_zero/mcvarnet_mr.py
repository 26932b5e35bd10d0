"""MC-VarNet: the learned modules of a variational network that splits the reference into a common and a unique part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["MCVarNet", "ResidualUNet", "feature_transform"]


def _conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    nn.init.xavier_normal_(conv.weight)
    return conv


def feature_transform(features: int) -> nn.Sequential:
    """Return ``conv3x3 - ReLU - conv3x3`` on ``features`` channels: the transforms E, D and T.

    Args:
        features: channels n.
    """
    return nn.Sequential(_conv(features, features), nn.ReLU(), _conv(features, features))


def _chain(inputs: int, features: int, count: int, slope: nn.PReLU) -> nn.Sequential:
    """Return ``count`` 3x3 convolutions with the shared activation after each but the last."""
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [_conv(inputs if index == 0 else features, features), slope]
    return nn.Sequential(*layers[:-1])


class _Encoder(nn.Module):
    """Three convolutions (the skip), then one of stride two where ``down``; one PReLU slope."""

    def __init__(self, features: int, *, down: bool) -> None:
        super().__init__()
        self.body = _chain(features, features, 3, nn.PReLU())
        self.down = _conv(features, features, stride=2) if down else None

    def forward(self, z: Tensor) -> Tensor:
        """Return the skip."""
        return self.body(z)


class _Decoder(nn.Module):
    """Doubles the size, joins the skip, four convolutions; one PReLU slope."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(features, features, 3, stride=2, padding=1, output_padding=1)
        self.body = _chain(2 * features, features, 4, nn.PReLU())

    def forward(self, z: Tensor, skip: Tensor) -> Tensor:
        """Return features of the skip's size."""
        return self.body(torch.cat([self.up(z), skip], dim=1))


class ResidualUNet(nn.Module):
    """U-Net of three scales with the same width at each, plus the identity: ``z + net(z)``.

    Args:
        features: channels n.
        unused_layers: also build the layers that the published network owns and never uses (a third stride-two
            convolution and one more slope), so that its parameter count is met.
    """

    def __init__(self, features: int, *, unused_layers: bool = False) -> None:
        super().__init__()
        self.encoder_1 = _Encoder(features, down=True)
        self.encoder_2 = _Encoder(features, down=True)
        self.encoder_3 = _Encoder(features, down=unused_layers)
        self.decoder_2 = _Decoder(features)
        self.decoder_1 = _Decoder(features)
        slope = nn.PReLU()
        self.end = nn.Sequential(_chain(features, features, 3, slope), _conv(features, features))
        self.unused_slope = nn.PReLU() if unused_layers else None

    def forward(self, z: Tensor) -> Tensor:
        """Return ``z + net(z)`` for features ``(B, n, H, W)``, H and W divisible by 4."""
        fine = self.encoder_1(z)
        assert self.encoder_1.down is not None
        middle = self.encoder_2(self.encoder_1.down(fine))
        assert self.encoder_2.down is not None
        coarse = self.encoder_3(self.encoder_2.down(middle))
        return z + self.end(self.decoder_1(self.decoder_2(coarse, middle), fine))


class MCVarNet(nn.Module):
    r"""The learned modules of MC-VarNet, and its iteration apart from the data consistency.

    The reference is split as ``y = c + u`` into what it shares with the target (``c``) and what it does not (``u``);
    ``P`` and ``Q`` are the denoised copies of the two. All live on ``n`` channels of image size, made by repeating the
    image. With ``x^`` the data-consistent target, iteration ``k`` is

    .. math::
        x &\leftarrow x^ - \mu_k (\gamma_k D_x(E_x x - E_c c) + \lambda_k U_x x) \\
        c &\leftarrow T_c(y - u + \gamma'_k D_c E_x x + \alpha_k P), \quad
        u \leftarrow (y + \beta_k Q - c) / (1 + \beta_k), \quad P \leftarrow U_c c, \quad Q \leftarrow U_u u

    with all right-hand sides from before the iteration. What cannot reach the output any more is not computed: the last
    ``c``, the last two ``u``, ``P`` and ``Q``.

    ``forward`` runs the iterations without data consistency (``x^ = x``); a reconstructor calls :meth:`start`,
    :meth:`step` and :meth:`finish` around its own.

    Args:
        features: channels n (32 as published).
        iterations: K.
        learned_scalars: whether the six kinds of scalars are trained; the published implementation never trains them.
        learned_data_step: own a step of the data consistency for each iteration, started at 1 (not in the paper).
        unused_layers: own the published object's unused parameters, too.

    References:
        lei2023

    Example:
        >>> MCVarNet(8)(torch.zeros(1, 2, 16, 16)).shape
        torch.Size([1, 1, 16, 16])
    """

    def __init__(
        self,
        features: int = 32,
        *,
        iterations: int = 4,
        learned_scalars: bool = True,
        learned_data_step: bool = False,
        unused_layers: bool = False,
    ) -> None:
        super().__init__()
        if features < 1 or iterations < 1:
            raise ValueError(f"features, iterations: expected >= 1, got {features}, {iterations}")
        self.features, self.iterations = features, iterations
        self.encode_x, self.decode_x = feature_transform(features), feature_transform(features)
        self.encode_c, self.decode_c = feature_transform(features), feature_transform(features)
        self.transform_c = feature_transform(features)
        self.start_x = ResidualUNet(features, unused_layers=unused_layers)
        self.start_c = ResidualUNet(features, unused_layers=unused_layers)
        self.prior_x = ResidualUNet(features, unused_layers=unused_layers)
        self.prior_c = ResidualUNet(features, unused_layers=unused_layers)
        self.prior_u = ResidualUNet(features, unused_layers=unused_layers)
        self.image = _conv(features, 1)
        self.unused_image = _conv(features, 1) if unused_layers else None

        def scalars(value: float, count: int) -> nn.Parameter:
            count = iterations if unused_layers else max(0, count)
            return nn.Parameter(torch.full((count,), value), requires_grad=learned_scalars)

        self.mu, self.gamma_x, self.weight_x = (scalars(v, iterations) for v in (0.1, 1.0, 1.0))
        self.gamma_c, self.alpha = scalars(1.0, iterations - 1), scalars(1.0, iterations - 1)
        self.beta = scalars(1.0, iterations - 2)
        data_step = torch.ones(iterations)
        self.data_step: Tensor
        if learned_data_step:
            self.data_step = nn.Parameter(data_step)
        else:
            self.register_buffer("data_step", data_step, persistent=False)

    def forward(self, image: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Return the target ``(B, 1, H, W)`` of ``[zero-filled target, reference]``, ``(B, 2, H, W)``."""
        state = self.start(image[:, :1], image[:, 1:2])
        for k in range(self.iterations):
            state = self.step(k, state, state[0])
        return self.finish(state)

    @torch.jit.export
    def start(self, target: Tensor, reference: Tensor) -> list[Tensor]:
        """Return the state ``[x, c, u, P, Q, y]``, each ``(B, n, H, W)``, of two images ``(B, 1, H, W)``."""
        y = reference.expand(-1, self.features, -1, -1)
        x = self.start_x(target.expand(-1, self.features, -1, -1))
        c = self.start_c(y)
        u = y - c
        return [x, c, u, c, u, y]

    @torch.jit.export
    def step(self, k: int, state: list[Tensor], consistent: Tensor) -> list[Tensor]:
        """Return the state after iteration ``k``.

        Args:
            k: number of the iteration, from 0.
            state: the state before it.
            consistent: the target features before it, made consistent with the data, ``(B, n, H, W)``.
        """
        x, c, u, P, Q, y = state[0], state[1], state[2], state[3], state[4], state[5]
        encoded = self.encode_x(x)
        pull = self.gamma_x[k] * self.decode_x(encoded - self.encode_c(c)) + self.weight_x[k] * self.prior_x(x)
        new_x, new_c, new_u = consistent - self.mu[k] * pull, c, u
        if k < self.iterations - 1:
            new_c = self.transform_c(y - u + self.gamma_c[k] * self.decode_c(encoded) + self.alpha[k] * P)
        if k < self.iterations - 2:
            new_u = (y + self.beta[k] * Q - c) / (1 + self.beta[k])
            P = self.prior_c(new_c)
        if k < self.iterations - 3:
            Q = self.prior_u(new_u)
        return [new_x, new_c, new_u, P, Q, y]

    @torch.jit.export
    def finish(self, state: list[Tensor]) -> Tensor:
        """Return the target image ``(B, 1, H, W)`` of a state."""
        return self.image(state[0])
