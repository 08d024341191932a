"""Convolutional networks: classifiers, U-Nets, autoencoders."""

import torch
import torch.nn.functional as F
from torch import nn


class UNet3D(nn.Module):
    def __init__(self, c=4):
        super().__init__()

        def block(i, o):
            return nn.Sequential(
                nn.Conv3d(i, o, 3, padding=1), nn.InstanceNorm3d(o, affine=True), nn.LeakyReLU(0.01, inplace=True)
            )

        self.e1, self.e2 = block(1, c), block(c, 2 * c)
        self.down = nn.MaxPool3d(2)
        self.b = block(2 * c, 2 * c)
        self.u2 = nn.ConvTranspose3d(2 * c, 2 * c, 2, 2)
        self.d2 = block(4 * c, c)
        self.u1 = nn.ConvTranspose3d(c, c, 2, 2)
        self.d1 = block(2 * c, c)
        self.head = nn.Conv3d(c, 3, 1)

    def forward(self, x):
        a = self.e1(x)
        b = self.e2(self.down(a))
        z = self.b(self.down(b))
        z = self.d2(torch.cat([self.u2(z), b], 1))
        z = self.d1(torch.cat([self.u1(z), a], 1))
        return self.head(z)


class UNet2D(nn.Module):
    def __init__(self):
        super().__init__()

        def block(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))

        self.e1, self.e2, self.d = block(3, 4), block(4, 8), block(12, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image):
        a = self.e1(image)
        b = self.e2(F.max_pool2d(a, 2))
        u = F.interpolate(b, size=a.shape[-2:], mode="bilinear", align_corners=False)
        z = self.d(torch.cat([u, a], dim=1))
        return F.interpolate(self.head(z), scale_factor=2, mode="nearest").argmax(1), torch.sigmoid(self.head(z))


class UNetPad(nn.Module):
    """pads odd sizes"""

    def __init__(self):
        super().__init__()
        self.e1, self.e2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.d = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x):
        a = F.relu(self.e1(x))
        b = F.relu(self.e2(F.max_pool2d(a, 2)))
        u = self.up(b)
        dy, dx = a.size(2) - u.size(2), a.size(3) - u.size(3)
        u = F.pad(u, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.d(torch.cat([a, u], 1))


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 8, 5)
        self.drop = nn.Dropout2d()
        self.f1, self.f2 = nn.Linear(128, 20), nn.Linear(20, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.c1(x), 2))
        x = F.relu(F.max_pool2d(self.drop(self.c2(x)), 2))
        x = x.view(x.size(0), -1)
        x = F.dropout(F.relu(self.f1(x)), training=self.training)
        return F.log_softmax(self.f2(x), dim=1)


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Conv2d(3, 8, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.pos = nn.Parameter(torch.randn(1, 17, 8))
        self.enc = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.p(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.enc(x)[:, 0])


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(10, 8), nn.ReLU())
        self.mu, self.lv = nn.Linear(8, 3), nn.Linear(8, 3)
        self.dec = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 10), nn.Sigmoid())

    def forward(self, x):
        h = self.enc(x)
        mu, logvar = self.mu(h), self.lv(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
        return self.dec(z), mu, logvar


class GroupNet(nn.Module):
    """groupnorm, instance norm, pixel shuffle, depthwise, SE, hardswish"""

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 8, 3, padding=1)
        self.gn = nn.GroupNorm(4, 8)
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.inn = nn.InstanceNorm2d(8)
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1), nn.Hardsigmoid()
        )
        self.ps = nn.PixelShuffle(2)
        self.out = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        x = F.hardswish(self.gn(self.c(x)))
        x = self.inn(self.dw(x))
        x = x * self.se(x)
        return self.out(self.ps(x)), F.adaptive_max_pool2d(x, 2).flatten(1)


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.utils.spectral_norm(nn.Linear(6, 8))
        self.b = nn.utils.parametrizations.spectral_norm(nn.Conv1d(1, 4, 3))
        self.c = nn.utils.weight_norm(nn.Linear(24, 6))
        self.d = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.e = nn.utils.parametrizations.orthogonal(nn.Linear(6, 6))

    def forward(self, x):
        x = F.leaky_relu(self.a(x), 0.2)
        x = F.leaky_relu(self.b(x[:, None])).flatten(1)
        return self.e(self.d(self.c(x)))


class STN(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(64, 6)
        self.c = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        theta = self.loc(x.flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        return self.c(x)


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.backbone(x))
