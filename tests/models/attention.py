"""Transformers, language models and attention pooling."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class MHA(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Linear(6, 8)
        self.att = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x, mask):
        h = self.emb(x)
        a, w = self.att(h, h, h, key_padding_mask=mask)
        h = self.norm(h + a)
        return self.head(h), w


class Encoder(nn.Module):
    def __init__(self, norm_first=False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first, activation="gelu")
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.emb = nn.Embedding(50, 8)
        self.pos = nn.Parameter(torch.randn(1, 64, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, ids, pad):
        x = self.emb(ids) + self.pos[:, : ids.shape[1]]
        x = self.enc(x, src_key_padding_mask=pad)
        return self.head(x[:, 0])


class EncoderPlain(nn.Module):
    """as most write it: nested tensor fast path enabled, batch_first False"""

    def __init__(self):
        super().__init__()
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.enc(x))


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.src = nn.Embedding(40, 8)
        self.tgt = nn.Embedding(30, 8)
        self.t = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
        self.out = nn.Linear(8, 30)

    def forward(self, src, tgt, src_pad):
        m = nn.Transformer.generate_square_subsequent_mask(tgt.size(1))
        y = self.t(
            self.src(src) * math.sqrt(8),
            self.tgt(tgt) * math.sqrt(8),
            tgt_mask=m,
            tgt_is_causal=True,
            src_key_padding_mask=src_pad,
            memory_key_padding_mask=src_pad,
        )
        return self.out(y)


class TiedLM(nn.Module):
    def __init__(self, vocab=60, d=8, max_len=64):
        super().__init__()
        self.wte = nn.Embedding(vocab, d)
        self.wpe = nn.Embedding(max_len, d)
        self.ln = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)
        self.register_buffer(
            "bias", torch.tril(torch.ones(max_len, max_len)).view(1, 1, max_len, max_len), persistent=False
        )
        self.lm_head = nn.Linear(d, vocab, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, idx):
        B, T = idx.size()
        pos = torch.arange(0, T, dtype=torch.long, device=idx.device)
        x = self.wte(idx) + self.wpe(pos)
        h = self.ln(x)
        q, k, v = self.qkv(h).split(8, dim=2)
        q = q.view(B, T, 2, 4).transpose(1, 2)
        k = k.view(B, T, 2, 4).transpose(1, 2)
        v = v.view(B, T, 2, 4).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        y = (att @ v).transpose(1, 2).contiguous().view(B, T, 8)
        x = x + self.proj(y)
        return self.lm_head(x)


def rot(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(100, 16)
        self.q, self.k, self.v, self.o = (
            nn.Linear(16, 16, False),
            nn.Linear(16, 8, False),
            nn.Linear(16, 8, False),
            nn.Linear(16, 16, False),
        )
        self.w1, self.w2, self.w3 = nn.Linear(16, 24, False), nn.Linear(24, 16, False), nn.Linear(16, 24, False)
        self.n1, self.n2 = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(16))
        self.register_buffer("inv", 1.0 / (10000 ** (torch.arange(0, 4, 2).float() / 4)), persistent=False)

    def rms(self, x, w):
        return w * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(self, ids, attention_mask):
        b, s = ids.shape
        x = self.emb(ids)
        f = torch.outer(torch.arange(s, device=ids.device, dtype=self.inv.dtype), self.inv)
        e = torch.cat([f, f], -1)
        cos, sin = e.cos()[None, None], e.sin()[None, None]
        h = self.rms(x, self.n1)
        q = self.q(h).view(b, s, 4, 4).transpose(1, 2)
        k = self.k(h).view(b, s, 2, 4).transpose(1, 2)
        v = self.v(h).view(b, s, 2, 4).transpose(1, 2)
        q, k = q * cos + rot(q) * sin, k * cos + rot(k) * sin
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mask = torch.full((s, s), float("-inf"), device=ids.device).triu(1)[None, None]
        mask = mask + (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.clamp(min=torch.finfo(x.dtype).min))
        x = x + self.o(y.transpose(1, 2).reshape(b, s, 16))
        h = self.rms(x, self.n2)
        x = x + self.w2(F.silu(self.w1(h)) * self.w3(h))
        return x @ self.emb.weight.T


class AttPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.v, self.u, self.w, self.c = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 1), nn.Linear(6, 2)

    def forward(self, bag):
        a = self.w(torch.tanh(self.v(bag)) * torch.sigmoid(self.u(bag)))
        a = torch.softmax(a, dim=1)
        z = torch.sum(a * bag, dim=1)
        return self.c(z), a.squeeze(-1)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.tgt = nn.Embedding(30, 8)
        self.t = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1)
        self.out = nn.Linear(8, 30)

    def forward(self, memory, tgt, tgt_pad):
        m = torch.triu(torch.ones(tgt.size(1), tgt.size(1), dtype=torch.bool), 1)
        return self.out(self.t(self.tgt(tgt), memory, tgt_mask=m, tgt_key_padding_mask=tgt_pad))


class TutorialLM(nn.Module):
    """The PyTorch tutorial's language model: encoder with a float causal mask made in forward."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(40, 8)
        self.register_buffer("pe", torch.randn(64, 1, 8))
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.2), 2)
        self.lin = nn.Linear(8, 40)

    def forward(self, src, src_mask=None):
        src = self.emb(src) * math.sqrt(8)
        src = src + self.pe[: src.size(0)]
        if src_mask is None:
            src_mask = nn.Transformer.generate_square_subsequent_mask(len(src))
        return self.lin(self.enc(src, src_mask))
