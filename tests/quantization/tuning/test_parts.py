"""Steps with gradients go through a model block by block."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from qruntime.errors import QuantizationError
from qruntime.quantization.methods.gptq import GPTQ
from qruntime.quantization.recipe import Recipe
from qruntime.quantization.steps import Tuned
from tests.quantization.tuning.models import cnn, decoder, encoder
from tests.small_models import assert_same_bits, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")


@dataclass(frozen=True)
class Norms:
    """Learns norms and biases by what the block makes; `rate` 0 learns nothing."""

    rate: float = 1e-2
    follows_codes: bool = True
    role: tuple[str, ...] = ("norm", "bias")
    seen: list = field(default_factory=list, compare=False)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    def tune(self, part) -> Tuned:
        learned = {name: one.tensor().requires_grad_() for name, one in part.parameters.items() if one.role in self.role}
        optimizer = torch.optim.Adam(learned.values(), lr=self.rate)
        losses = []
        for _ in range(8):
            loss = sum((part.run(batch, learned) - part.target(batch)).square().mean() for batch in range(part.batches))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        self.seen.append((part.index, part.count, sorted(learned), losses, part))
        return Tuned({name: tensor.detach().numpy() for name, tensor in learned.items()}, facts={"loss": losses[-1]})


def feeds(count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": random(4, 6, 32, seed=10 + i)} for i in range(count)]


@pytest.mark.parametrize("follows", [False, True])
def test_every_block_learns_and_what_it_learns_stands_in_the_model(follows: bool):
    model, feed = encoder(layers=3)
    step = Norms(follows_codes=follows)
    tuned = model.quantize([step], scheme="W3A8", data=feeds())
    assert [seen[:2] for seen in step.seen] == [(0, 3), (1, 3), (2, 3)]
    for _, _, names, losses, _ in step.seen:
        assert len(names) == 4 + 6  # two norms of two, the biases of six layers
        assert losses[-1] < losses[0]
    plain = model.quantize(scheme="W3A8")
    exact = model(feed["x"])
    assert np.square(tuned(feed["x"]) - exact).mean() < np.square(plain(feed["x"]) - exact).mean()
    assert all("loss" in layer.facts[0] for layer in tuned.report.layers)


def test_learning_nothing_changes_nothing():
    model, feed = encoder()
    for step in (Norms(rate=0.0), Norms(rate=0.0, follows_codes=False, role=("norm", "bias", "weight"))):
        assert_same_bits(model.quantize([step], scheme="W4A8-g32", data=feeds())(feed["x"]), model.quantize(scheme="W4A8-g32")(feed["x"]))


def test_what_stands_around_codes_is_all_that_follows_them():
    model, _ = encoder()
    plain, tuned = (model.quantize(recipe, scheme="W3A16", data=feeds(6)) for recipe in ([GPTQ()], [GPTQ(), Norms(rate=0.0)]))
    for before, after in zip(plain.graph.stored_constants(), tuned.graph.stored_constants(), strict=True):
        assert_same_bits(before.stored.unpacked(), after.stored.unpacked())
    learned = model.quantize([GPTQ(), Norms()], scheme="W3A16", data=feeds(6))
    first, *_ = [node for node in plain.graph.nodes if node.op_type == "MatMul"]
    same, *_ = [node for node in learned.graph.nodes if node.op_type == "MatMul"]
    assert_same_bits(first.inputs[1].stored.unpacked(), same.inputs[1].stored.unpacked())


def test_a_block_sees_both_streams():
    model, _ = encoder()
    step = Norms(rate=0.0)
    quantized = model.quantize([step], scheme="W3A16", data=feeds())
    for *_, part in step.seen:
        for batch in range(part.batches):
            of_float, of_codes = (part.inputs(batch, stream)[part.block.start] for stream in ("float", "quantized"))
            assert (part.index == 0) == np.array_equal(of_float, of_codes)
            assert (part.run(batch).detach() - part.target(batch, "quantized")).abs().max() > 0
    *_, last = step.seen
    part = last[-1]
    y = quantized.run(feeds()[0])["y"]
    assert np.abs(part.run(0).detach().numpy() - y).max() <= 1e-5 * np.abs(y).max()
    exact = model.run(feeds()[0])["y"]
    assert np.abs(part.target(0).numpy() - exact).max() <= 1e-5 * np.abs(exact).max()


def test_what_the_float_block_makes_is_computed_once():
    model, _ = encoder(layers=3)
    step = Norms(rate=0.0)
    model.quantize([step], scheme="W3A16", data=feeds())
    parts = [seen[-1] for seen in step.seen]
    for part, later in pairwise(parts):
        for batch in range(part.batches):
            assert np.shares_memory(part.target(batch).numpy(), later.inputs(batch, "float")[later.block.start])


def test_a_sample_has_rows_from_all_over_the_data():
    model, _ = encoder(layers=1)
    step = Norms(rate=0.0)
    data = [{"x": random(1, 1500, 32, seed=i)} for i in range(7)]
    model.quantize([step], scheme="W4A16", data=data)
    part = step.seen[0][-1]
    assert part.some == [0, 2, 4]  # 4,500 rows
    assert len(part.sample.batches) == 3
    for place, batch in zip(part.some, part.sample.batches, strict=True):
        assert batch[part.block.start] is part.inputs(place)[part.block.start]


def test_norms_that_begin_alike_are_learned_apart():
    model, _ = encoder()
    step = Norms()
    model.quantize([step], scheme="W4A16", data=feeds())
    names = [name for seen in step.seen for name in seen[2]]
    assert len(names) == len(set(names)) == 20
    changed = [part.parameters[name].value.data for *_, part in step.seen for name, one in part.parameters.items() if one.role == "norm"]
    assert len(changed) == 8
    assert len({array.tobytes() for array in changed}) == 8


@dataclass(frozen=True)
class Clipped:
    """Grids of 0.9 of the range, for weights of layers."""

    follows_codes: bool = False

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    def tune(self, part) -> Tuned:
        from qruntime.quantization.tuning.fake_quantization import parameters, with_parameters

        grids, weights = {}, {}
        for name, one in part.parameters.items():
            if one.args is not None:
                made = [parameters(matrix, one.args) for matrix in one.matrices(one.tensor())]
                clipped = [(scale * 0.9, zero) for scale, zero in made]
                rounded = [with_parameters(m, one.args, *grid) for m, grid in zip(one.matrices(one.tensor()), clipped, strict=True)]
                weights[name] = one.joined(rounded)
                grids[name] = [(scale.numpy(), None if zero is None else zero.numpy()) for scale, zero in clipped]
        assert (part.run(0, weights=weights) - part.run(0)).abs().max() > 0
        return Tuned(grids=grids)


def test_codes_lie_on_the_grids_that_were_learned():
    model, _ = encoder()
    clipped, plain = (model.quantize(recipe, scheme="W4A16-g16", data=feeds()) for recipe in ([Clipped()], None))
    stored = list(zip(clipped.graph.stored_constants(), plain.graph.stored_constants(), strict=True))
    assert len(stored) == 12
    for one, other in stored:
        assert_same_bits(one.stored.scale, other.stored.scale * np.float32(0.9))
    with pytest.raises(QuantizationError, match="Clipped learns the grids of codes, and GPTQ would not keep to them"):
        model.quantize([Clipped(), GPTQ()], scheme="W4A16", data=feeds())


def test_steps_with_gradients_have_their_place():
    assert Recipe("", steps=(Norms(follows_codes=False), GPTQ(), Norms())).tuning == [Norms(follows_codes=False), Norms()]
    around, before = "learns what stands around the codes", "learns what the codes are made of"
    with pytest.raises(QuantizationError, match=f"GPTQ makes the codes, so it cannot follow Norms, which {around}"):
        Recipe("", steps=(Norms(), GPTQ()))
    with pytest.raises(QuantizationError, match=f"Norms {before}, so it cannot follow GPTQ, which makes the codes"):
        Recipe("", steps=(GPTQ(), Norms(follows_codes=False)))
    model, _ = encoder()
    with pytest.raises(QuantizationError, match="Norms looks at activations"):
        model.quantize([Norms()])


def test_models_without_blocks_say_so():
    model, feed = cnn()
    with pytest.raises(QuantizationError, match="the model has no blocks"):
        model.quantize([Norms()], scheme="W4A16", data=[feed])


def test_decoders_with_caches_go_block_by_block():
    model, feed = decoder("stacked")
    step = Norms(follows_codes=False, role=("weight",))
    model.quantize([step], scheme="W3A8", data=[feed])
    assert [len(seen[2]) for seen in step.seen] == [3, 3]
    assert all(seen[3][-1] < seen[3][0] for seen in step.seen)
