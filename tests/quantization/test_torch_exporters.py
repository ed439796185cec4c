"""Models as the two exporters of torch write them, TorchScript and dynamo: the same layers, places and choices in both."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

import qruntime
from qruntime.quantization import recipes
from qruntime.quantization.layers import Layer, layer_of
from qruntime.quantization.selection import layer_kind, layer_name, module_names
from qruntime.quantization.sites import find_sites
from tests.quantization.architectures import NAMES

torch = pytest.importorskip("torch", reason="its exporters are what is tested: make test-train installs it")

EXPORTERS = {"TorchScript": False, "dynamo": True}
K, HEADS, KV_HEADS, SIZE, HIDDEN, VOCABULARY, LAYERS, PAST = 32, 4, 2, 8, 48, 64, 2, 3

Feed = Mapping[str, np.ndarray]


class RMSNorm(torch.nn.Module):  # type: ignore[misc]
    """Of the operators that both exporters know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(K))

    def forward(self, x: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def with_outliers(model: Any) -> Any:
    """In the channels of norms, as real models have them."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.LayerNorm, RMSNorm)):
                module.weight[:: K // 3] *= 10
    return model.eval()


def bert() -> Any:
    """Post-norm: every norm is read by layers and by a residual sum; GELU, a mask, a pooled token."""
    nn = torch.nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.output = (nn.Linear(K, K) for _ in range(4))
            self.up, self.down = nn.Linear(K, HIDDEN), nn.Linear(HIDDEN, K)
            self.norm1, self.norm2 = nn.LayerNorm(K), nn.LayerNorm(K)

        def forward(self, x: Any, hidden: Any) -> Any:
            q, k, v = (f(x).view(x.shape[0], -1, HEADS, SIZE).transpose(1, 2) for f in (self.query, self.key, self.value))
            scores = torch.softmax(q @ k.transpose(-1, -2) / SIZE**0.5 + hidden, -1)
            x = self.norm1(x + self.output((scores @ v).transpose(1, 2).reshape(x.shape[0], -1, K)))
            return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.positions, self.norm = nn.Embedding(VOCABULARY, K), nn.Embedding(16, K), nn.LayerNorm(K)
            self.layer = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.pooler = nn.Linear(K, K)

        def forward(self, ids: Any, mask: Any) -> Any:
            x = self.norm(self.words(ids) + self.positions(torch.arange(ids.shape[1])))
            hidden = (1.0 - mask[:, None, None].to(torch.float32)) * -1e4
            for layer in self.layer:
                x = layer(x, hidden)
            return x, torch.tanh(self.pooler(x[:, 0]))

    return Bert()


def encoder() -> Any:
    """Pre-norm, of torch's own layers: one weight for queries, keys and values, ReLU between the others."""
    nn = torch.nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(VOCABULARY, K)
            layer = nn.TransformerEncoderLayer(K, HEADS, HIDDEN, dropout=0.0, norm_first=True, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(K), enable_nested_tensor=False)
            for parameter in self.encoder.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
            self.head = nn.Linear(K, 7)

        def forward(self, ids: Any) -> Any:
            return self.head(self.encoder(self.words(ids)))

    return Encoder()


def decoder() -> Any:
    """RMSNorm, rotary positions, heads that share keys and values, a gated MLP, and a cache."""
    nn = torch.nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.o = nn.Linear(K, K, bias=False), nn.Linear(K, K, bias=False)
            self.k, self.v = (nn.Linear(K, KV_HEADS * SIZE, bias=False) for _ in range(2))
            self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((K, HIDDEN), (K, HIDDEN), (HIDDEN, K)))
            self.norm1, self.norm2 = RMSNorm(), RMSNorm()

        def forward(self, x: Any, past: Any, cos: Any, sin: Any, mask: Any) -> Any:
            h = self.norm1(x)
            q, k, v = (f(h).view(h.shape[0], h.shape[1], -1, SIZE).transpose(1, 2) for f in (self.q, self.k, self.v))
            q, k = (one * cos + torch.cat((-one[..., SIZE // 2 :], one[..., : SIZE // 2]), -1) * sin for one in (q, k))
            k, v = torch.cat((past[:, 0], k), 2), torch.cat((past[:, 1], v), 2)
            keys, values = (one.repeat_interleave(HEADS // KV_HEADS, 1) for one in (k, v))
            read = torch.softmax(q @ keys.transpose(-1, -2) / SIZE**0.5 + mask, -1) @ values
            x = x + self.o(read.transpose(1, 2).reshape(h.shape[0], h.shape[1], K))
            h = self.norm2(x)
            return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h)), torch.stack((k, v), 1)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(VOCABULARY, K)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.norm, self.head = RMSNorm(), nn.Linear(K, VOCABULARY, bias=False)

        def forward(self, ids: Any, past: Any) -> Any:
            x, before = self.words(ids), past.shape[4]
            places = torch.arange(ids.shape[1]) + before
            angles = places[:, None] * (1e4 ** (-torch.arange(0, SIZE, 2) / SIZE)).repeat(2)
            mask = torch.where(torch.arange(ids.shape[1] + before) <= places[:, None], 0.0, -1e9)
            kept = []
            for i, layer in enumerate(self.layers):
                x, grown = layer(x, past[i], angles.cos(), angles.sin(), mask)
                kept.append(grown)
            return self.head(self.norm(x)), torch.stack(kept)

    return Decoder()


MODELS = {"bert": bert, "encoder": encoder, "decoder": decoder}
AXES: dict[str, dict[str, dict[int, str]]] = {
    "bert": {"ids": {0: "b", 1: "s"}, "mask": {0: "b", 1: "s"}},
    "encoder": {"ids": {0: "b", 1: "s"}},
    "decoder": {"ids": {0: "b", 1: "s"}, "past": {1: "b", 4: "t"}},
}


def feed_of(kind: str, seed: int, batch: int = 8) -> Feed:
    random = np.random.default_rng(seed)
    feed = {"ids": random.integers(0, VOCABULARY, (batch, 6))}
    if kind == "bert":
        feed["mask"] = (np.arange(6) < random.integers(3, 7, (batch, 1))).astype(np.int64)
    if kind == "decoder":
        feed["past"] = random.standard_normal((LAYERS, batch, 2, KV_HEADS, PAST, SIZE), dtype=np.float32)
    return feed


@cache
def made(kind: str) -> Any:
    torch.manual_seed(0)
    return with_outliers(MODELS[kind]())


@cache
def exported(kind: str, exporter: str) -> bytes:
    feed = {name: torch.from_numpy(array) for name, array in feed_of(kind, 0, 2).items()}
    file, is_dynamo = io.BytesIO(), EXPORTERS[exporter]
    if is_dynamo:
        pytest.importorskip("onnxscript", reason="the dynamo exporter needs it")
        dims = {name: {i: torch.export.Dim(n) for i, n in own.items()} for name, own in AXES[kind].items()}
        axes: dict[str, Any] = {"dynamic_shapes": dims}
    else:
        axes = {"dynamic_axes": AXES[kind]}
    torch.backends.mha.set_fastpath_enabled(False)  # an operator that neither exporter knows
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            made(kind), tuple(feed.values()), None if is_dynamo else file, dynamo=is_dynamo, input_names=list(feed), **axes
        )
    return program.model_proto.SerializeToString() if is_dynamo else file.getvalue()


def load(kind: str, exporter: str) -> qruntime.Model:
    return qruntime.load(exported(kind, exporter), threads=1)


def weighted(model: qruntime.Model) -> list[Layer]:
    """Its layers with a weight, in running order."""
    found = [layer_of(node) for node in model.graph.walk_nodes() if layer_kind(node)]
    return [layer for layer in found if layer is not None and layer.shapes]


def layers(model: qruntime.Model) -> list[tuple[str, tuple[int, ...]]]:
    """Modules and sizes. What attention does itself is attention's."""
    return [(module_of(layer.node), layer.size) for layer in weighted(model)]


def module_of(node: Any) -> str:
    return ".".join(module_names(node)).partition(".self_attn.")[0].removesuffix(".self_attn")


def both(kind: str, see: Any) -> list[Any]:
    return [see(load(kind, exporter)) for exporter in EXPORTERS]


OF_KIND = pytest.mark.parametrize("kind", MODELS)


@OF_KIND
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_model_is_what_torch_has(kind: str, exporter: str) -> None:
    feed = feed_of(kind, 1, 3)
    with torch.no_grad():
        wanted = made(kind)(*(torch.from_numpy(array) for array in feed.values()))
    for one, other in zip(wanted if isinstance(wanted, tuple) else (wanted,), load(kind, exporter).run(feed).values(), strict=True):
        np.testing.assert_allclose(other, one.numpy(), rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@OF_KIND
def test_the_same_layers_are_found(kind: str) -> None:
    one, other = both(kind, layers)
    assert one == other
    assert len(one) == {"bert": 2 + 6 * LAYERS + 1, "encoder": 1 + 4 * LAYERS + 1, "decoder": 1 + 7 * LAYERS + 1}[kind]


def sites(model: qruntime.Model) -> list[tuple[str, tuple[str, ...], list[str], int]]:
    """Of tensors in running order, what stands before each, what it may become, which modules read it, and how many heads are tied."""
    found = find_sites(model.graph, [layer for layer in weighted(model) if layer.kind == "Linear"])
    ties = [site.channels if site.ties is None else len(np.unique(site.ties)) for site in found]
    readers = [[module_of(reader.node) for reader in site.readers] for site in found]
    return [(site.role, tuple(sorted(site.allows)), names, free) for site, names, free in zip(found, readers, ties, strict=True)]


@OF_KIND
def test_the_same_places_can_be_changed(kind: str) -> None:
    one, other = both(kind, sites)
    assert one == other
    roles = [role for role, *_ in one]
    wanted = {
        "bert": {"values": LAYERS, "activation": LAYERS, "none": 2 * LAYERS + 1},
        "encoder": {"norm": 2 * LAYERS + 1, "values": LAYERS, "relu": LAYERS},
        "decoder": {"norm": 2 * LAYERS + 1, "none": LAYERS, "gated": LAYERS},  # a cache holds the values as they are
    }[kind]
    assert {role: roles.count(role) for role in roles} == wanted


PATTERNS = {
    "bert": ["layer.1", "layer.*.query", "/layer", "up", "*/o*", "pooler", "layer.0.output", "Embedding", "Linear", "words"],
    "encoder": ["encoder", "layers.0", "*.self_attn", "self_attn.out_proj", "linear1", "encoder.layers.1.linear2", "head", "Linear"],
    "decoder": ["layers.0", "layers.*.q", "*/o/*", "gate", "/head", "layers.1.down", "layers.[01].[kv]", "words", "Linear"],
}


@OF_KIND
def test_patterns_mean_the_same_layers(kind: str) -> None:
    for pattern in PATTERNS[kind]:
        one, other = both(kind, lambda model, pattern=pattern: excluded_by(pattern, model))
        assert one == other, pattern
        assert 0 < len(one) < len(both(kind, layers)[0]), pattern


def excluded_by(pattern: str, model: qruntime.Model) -> list[str]:
    left = model.quantize(scheme="W8A16", overrides={"Embedding": "W8A16"}, exclude=[pattern], strict=True).report
    kept = {row.name for row in left.skipped if row.reason.startswith("excluded")}
    return [module_of(layer.node) for layer in weighted(model) if layer_name(layer.node) in kept]


def scheme_of(name: str) -> str:
    return recipes[name].scheme.replace("-g128", "-g16").replace("-g256", "-g32")


@OF_KIND
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_does_the_same(kind: str, name: str) -> None:
    """Both files hold the same weights: what is lost at each layer, and what was left out and why, differs by rounding alone."""
    data, feed = [feed_of(kind, seed) for seed in range(4)], feed_of(kind, 100)
    one, other = both(kind, lambda model: model.quantize(name, scheme=scheme_of(name), data=data))
    rows = [[(row.shape, row.scheme, row.kind) for row in model.report.layers] for model in (one, other)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == len(both(kind, layers)[0]) - (2 if kind == "bert" else 1)  # all but tables
    assert sorted(row.reason for row in one.report.skipped) == sorted(row.reason for row in other.report.skipped)
    errors = np.array([[row.error for row in model.report.layers] for model in (one, other)])
    np.testing.assert_allclose(*errors, rtol=0.2)
    assert errors.max() < 0.5
    for a, b in zip(one.run(feed).values(), other.run(feed).values(), strict=True):
        assert np.sqrt(np.mean((a - b) ** 2)) < 0.1 * np.sqrt(np.mean(a**2))
