"""The condition: text, structure and weights are all heard, and no row hears another's."""

from itertools import combinations

import pytest
import torch

from oral_lib.errors import OralError, UsageError
from oral_lib.generator import GeneratorConfig, describe_base
from oral_lib.method import conditioning
from oral_lib.method.conditioning import Condition
from oral_lib.models import loading
from oral_lib.models.text_encoder import ENCODERS, TextEncoder

torch.set_num_threads(1)
TEXTS = ["Is the film good?", "Decide whether a news headline is serious or sarcastic.", "film"]
E, M = 6, 8


# ---------------------------------------------------------------- the text encoder
@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_have_unit_length_and_the_stated_width(name):
    seen = TextEncoder(name).encode(TEXTS)
    assert seen.shape == (len(TEXTS), ENCODERS[name]) and seen.dtype == torch.float32
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(len(TEXTS)))
    assert not seen.is_inference()  # training may read it


@pytest.mark.parametrize("name", ENCODERS)
def test_neighbours_in_a_batch_do_not_change_an_embedding(name):
    encoder = TextEncoder(name)
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.encode(TEXTS), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_the_same_in_every_process(name):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fresh = TextEncoder(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(fresh.encode(TEXTS), TextEncoder(name).encode(TEXTS))


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "tiny"])
def test_no_words_at_all_have_an_embedding_too(name):
    seen = TextEncoder(name).encode(["", "film"])
    torch.testing.assert_close(seen.norm(dim=-1), torch.ones(2))
    assert seen[0] @ seen[1] < 0.99


def test_encoders_hear_different_things():
    seen = [TextEncoder(name).encode(TEXTS) for name in ENCODERS if name != "tiny"]
    for one, other in combinations(seen, 2):
        assert not torch.allclose(one, other, atol=0.05)


def test_a_bag_of_words_knows_no_order_and_the_others_do():
    turned = ["is the film good", "good film the is"]
    for name in ENCODERS:
        one, other = TextEncoder(name).encode(turned)
        assert (one @ other > 1 - 1e-5) == name.endswith("-words")


def test_a_generator_may_have_any_of_them():
    for name in ENCODERS:
        assert GeneratorConfig(text_encoder=name).text_encoder == name


@pytest.mark.parametrize("name", ENCODERS)
def test_a_very_long_text_is_cut(name):
    assert TextEncoder(name).encode(["a superb film " * 1000]).isfinite().all()


def test_an_unknown_encoder_suggests_the_nearest(refused):
    with refused(UsageError, "'minilm'", "'minilm-l6'"):
        TextEncoder("minilm")


def test_a_base_is_told_by_its_structure_and_its_weights():
    encoder, base = TextEncoder("tiny"), loading.load("tiny-causal")
    structure, fingerprint = describe_base(base, encoder)
    assert torch.equal(structure, encoder.encode([base.describe()])[0])
    assert torch.equal(fingerprint, base.fingerprint())


# ---------------------------------------------------------------- the fused condition
def inputs(b=3):
    g = torch.Generator().manual_seed(0)
    text, structure = torch.randn(b, E, generator=g), torch.randn(b, E, generator=g)
    fingerprint = torch.randn(b, conditioning.FINGERPRINT, generator=g)
    unit = torch.nn.functional.normalize
    return unit(text, dim=-1), torch.ones(b, dtype=torch.bool), unit(structure, dim=-1), fingerprint


def fused(arm="fingerprint"):
    torch.manual_seed(0)
    made = Condition(E, M, arm)
    torch.nn.init.normal_(made.no_text)
    return made


def moved(arm, place):
    """Whether c [b, m] moves in every row when input number `place` turns round."""
    net, told = fused(arm), list(inputs())
    before = net(*told)
    told[place] = told[place].roll(1, -1)
    return (net(*told) - before).abs().amax(-1) > 1e-3


@pytest.mark.parametrize("arm", conditioning.ARMS)
@pytest.mark.parametrize("place", [0, 2])
def test_text_and_structure_are_heard(arm, place):
    assert moved(arm, place).all()


def test_the_fingerprint_is_heard_in_its_arm_only():
    assert moved("fingerprint", 3).all()
    net, (text, given, structure, fingerprint) = fused("describe"), inputs()
    said = net(text, given, structure, fingerprint)
    assert torch.equal(net(text, given, structure, torch.full_like(fingerprint, 9.0)), said)


def test_a_dropped_text_is_the_learned_vector():
    net, (text, given, structure, fingerprint) = fused(), inputs()
    none = torch.zeros_like(given)
    said = net(text, none, structure, fingerprint)
    assert torch.equal(net(-text, none, structure, fingerprint), said)
    said.sum().backward()
    assert net.no_text.grad.abs().sum() > 0
    net.no_text.grad = None
    net(text, given, structure, fingerprint).sum().backward()
    assert net.no_text.grad.abs().sum() == 0


def test_a_row_is_dropped_alone():
    net, (text, given, structure, fingerprint) = fused(), inputs()
    said = net(text, given, structure, fingerprint)
    given[1] = False
    mixed = net(text, given, structure, fingerprint)
    torch.testing.assert_close(mixed[[0, 2]], said[[0, 2]])
    assert not torch.allclose(mixed[1], said[1])


def test_an_unknown_arm_suggests_the_nearest(refused):
    with refused(UsageError, "'describ'", "'describe'"):
        Condition(E, M, "describ")


# ---------------------------------------------------------------- the fingerprint
def test_a_fingerprint_depends_on_weights_and_names_and_not_on_their_order():
    draw = torch.Generator().manual_seed(0)
    weights = {f"layers.{i}.q": torch.randn(7, 5, generator=draw) for i in range(3)}
    sketch = conditioning.fingerprint(weights)
    assert torch.equal(conditioning.fingerprint(dict(reversed(weights.items()))), sketch)
    moved = weights | {"layers.1.q": 1.1 * weights["layers.1.q"]}
    swapped = dict(zip(weights, reversed(weights.values()), strict=True))
    for other in (moved, swapped):
        assert not torch.allclose(conditioning.fingerprint(other), sketch, atol=1e-3)


def test_a_fingerprint_of_nothing_is_refused(refused):
    with refused(OralError, "at least one weight matrix"):
        conditioning.fingerprint({})
