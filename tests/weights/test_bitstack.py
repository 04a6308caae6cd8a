"""BitStack: one artefact, any size. What the card says must be seen, at the scale of a test."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from holdall import BadInput, BudgetError, CorruptArtefact
from holdall.packed import Packed
from holdall.weights import BitStack, Model, RoundToNearest, quality
from holdall.weights.fuse import fuse
from holdall.weights.layout import Layout
from holdall.weights.perplexity import losses
from holdall.weights.scaling import Seen, Walk, windows
from holdall.weights.stack import by_gain, by_perplexity, groups

QUICK = BitStack(windows=4, window=128, slope_windows=2)


@pytest.fixture(scope="module")
def artefact(corner, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("bitstack") / "corner.hold")
    return path, QUICK.encode(corner, "16%", to=path)


def _plain(seed=0, **shapes):
    g = torch.Generator().manual_seed(seed)
    return Model({n: torch.randn(*s, generator=g) * 0.05 for n, s in shapes.items()})


def _formula(layout, count, packed):
    """Bytes of a prefix: everything that is no block, and m n / 8 + 2 k (m + n) for each block."""
    blocks = [layout.pieces[i] for i in layout.stack]
    sizes = [p.rows * math.ceil(p.columns / 8) + 2 * p.rank * (p.rows + p.columns) for p in blocks]
    return packed.nbytes - sum(sizes) + sum(sizes[:count])


def test_opening_at_a_budget_reads_that_budget(artefact, corner):
    path, whole = artefact
    for share in ("9%", "12%", "16%"):
        limit = int(share[:-1]) * corner.nbytes // 100
        with Packed.open(path) as packed:
            module = BitStack().open(packed, share)
            stack = module.holdall_stack
            assert packed.traffic == stack.nbytes == _formula(stack.layout, stack.count, whole) <= limit
            biggest = max(p.block_bytes for p in stack.layout.pieces)
            assert packed.traffic > limit - 2 * biggest or stack.count == len(stack.layout.stack)


def test_changing_the_budget_reads_exactly_the_difference_and_frees_the_rest(artefact):
    path, _ = artefact
    with Packed.open(path) as packed:
        stack = BitStack().open(packed, "8%").holdall_stack
        held = []
        for share in ("14%", "9%", "16%", "8%"):
            before, count, traffic = stack.nbytes, stack.count, packed.traffic
            read = stack.change(share)
            assert read == packed.traffic - traffic == max(0, stack.nbytes - before)
            assert (stack.count > count) == (read > 0)
            loaded = [0] * len(stack.parts)
            for i in stack.layout.stack[: stack.count]:
                loaded[i] += 1
            assert [part.levels for part in stack.parts] == loaded
            held.append(sum(part.nbytes for part in stack.parts))
        assert held[3] < held[1] < held[0] < held[2]  # memory follows the budget, both ways


def test_what_was_changed_to_is_what_would_have_been_opened(artefact, corner):
    path, _ = artefact
    ids = torch.tensor(
        [corner.tokenizer().encode("Let us see whether these two are one and the same model.")]
    )
    with Packed.open(path) as first, Packed.open(path) as second:
        wandered, fresh = BitStack().open(first, "16%"), BitStack().open(second, "10%")
        for share in ("9%", "14%", "10%"):
            wandered.holdall_stack.change(share)
        assert torch.equal(wandered(input_ids=ids).logits, fresh(input_ids=ids).logits)


def test_packed_modules_compute_what_the_decoded_model_computes(artefact, corner):
    path, whole = artefact
    ids = torch.tensor(
        [corner.tokenizer().encode("A packed model and its decoded form agree on a longer text.")]
    )
    with Packed.open(path) as packed:
        module = BitStack().open(packed)
    decoded = BitStack().decode(whole).build()
    names = {type(m).__name__ for m in module.modules()}
    assert {"PackedLinear", "PackedEmbedding"} <= names and not {"Linear", "Embedding"} & names
    assert sum(p.numel() for p in module.parameters()) < 0.01 * corner.elements  # only norms are plain
    for part in (ids, ids[:, :1]):  # many tokens rebuild W; one goes through the signs
        torch.testing.assert_close(
            module(input_ids=part).logits, decoded(input_ids=part).logits, rtol=1e-4, atol=1e-3
        )


def test_more_bytes_are_never_worse_within_two_percent(artefact, corner):
    """Twenty budgets from one artefact; the divergence of logits stands in for perplexity on a model this small."""
    path, _ = artefact
    tokens = windows(corner, 2, 96)
    original = corner.build()
    with Packed.open(path) as packed, torch.inference_mode():
        wanted = torch.log_softmax(original(input_ids=tokens).logits, -1)
        module = BitStack().open(packed, "8%")
        seen = []
        for share in np.linspace(0.08, 0.16, 20):
            module.holdall_stack.change(float(share))
            got = torch.log_softmax(module(input_ids=tokens).logits, -1)
            seen.append(float((wanted.exp() * (wanted - got)).sum(-1).mean()))
    assert all(b <= a * 1.02 + 0.02 * seen[0] for a, b in pairwise(seen)), seen
    assert seen[-1] < 0.25 * seen[0]


def test_levels_never_interleave_and_tables_run_ahead(artefact):
    layout = Layout.of(artefact[1])
    depth = [0] * len(layout.pieces)
    for i in layout.stack:
        depth[i] += 1
        linears = [d for d, p in zip(depth, layout.pieces, strict=True) if not p.table]
        tables = [d for d, p in zip(depth, layout.pieces, strict=True) if p.table]
        if min(linears):
            assert max(linears) - min(linears) <= 1
            assert min(tables) <= max(linears) + 1 and max(tables) <= max(linears) + 1


def test_sort_by_perplexity_puts_the_most_helpful_first_and_nan_takes_the_next_levels_place():
    pieces = Layout.of(QUICK.encode(_plain(a=(64, 64), b=(64, 64), c=(64, 64)), "30%")).pieces
    levels = groups(pieces, [3, 3, 3], lead=1)
    assert levels == [[(0, 1), (1, 1), (2, 1)], [(0, 2), (1, 2), (2, 2)]]
    loaded, worth = set(), {(0, 1): 1.0, (1, 1): 5.0, (2, 1): math.nan, (0, 2): 3.0, (1, 2): 1.0, (2, 2): 2.0}
    last = []

    def load(i, block):
        loaded.add((i, block))
        last[:] = [(i, block)]

    def perplexity():
        return 10.0 - worth[last[0]]

    order = by_perplexity(levels, load, lambda i, block: loaded.discard((i, block)), perplexity)
    # level 1: values 9, 5 and, for the third, that of its next level plus one (8 + 1): ties keep their order
    assert order == [1, 0, 2, 0, 2, 1]
    assert loaded == set(worth)  # every level stays loaded below the next
    assert by_gain(levels, lambda i, block: worth[i, block] if i < 2 else 4.0) == [1, 2, 0, 2, 0, 1]


def test_scales_are_the_papers_and_gradients_those_of_autograd(corner):
    tokens = windows(corner, 2, 64)
    module = corner.build()
    caught = {}
    target = module.model.layers[1].mlp.down_proj
    handle = target.register_forward_pre_hook(
        lambda _m, a: caught.setdefault("x", []).append(a[0][0].clone())
    )
    for ids in tokens:
        module(input_ids=ids[None])
    handle.remove()
    walk = Walk(module, tokens, 2)
    seen = {n: s for block in walk.statistics() for n, s in block.items()}
    mine = seen["model.layers.1.mlp.down_proj.weight"]
    both = torch.stack(caught["x"])
    torch.testing.assert_close(mine.scale, both.norm(dim=1).mean(0) + 1e-3, rtol=1e-4, atol=1e-5)
    flat = both.reshape(-1, both.shape[-1])
    torch.testing.assert_close(mine.gram, flat.T @ flat / len(flat), rtol=1e-3, atol=1e-6)
    assert seen["model.layers.0.self_attn.q_proj.weight"] is seen["model.layers.0.self_attn.v_proj.weight"]
    grads = []
    with torch.enable_grad():
        for ids in tokens:
            kept = []
            handle = target.register_forward_hook(
                lambda _m, _a, out, kept=kept: kept.append(out) or out.retain_grad()
            )
            embedded = module.get_input_embeddings()(ids[None]).clone().requires_grad_(True)
            logits = module(inputs_embeds=embedded).logits[0, :-1]
            torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").backward()
            handle.remove()
            grads.append(kept[0].grad[0])
    truth = torch.cat(grads).square().mean(0)
    torch.testing.assert_close(
        walk.slopes().outputs["model.layers.1.mlp.down_proj.weight"], truth, rtol=1e-3, atol=1e-9
    )


def test_the_papers_fusing_leaves_the_function_alone(corner):
    """Scaled columns and divided sources: same logits, q k v, gate and up, down scaled, o skipped (grouped queries)."""
    module = corner.build()
    tokens = windows(corner, 1, 48)
    walk, state, skipped = Walk(module, tokens, 0), dict(corner.state), []
    for seen in walk.statistics():
        before = dict(state)
        after = fuse(state, seen)
        skipped += [n for n in seen if "layers" in n and state[n] is before[n]]
        assert all(isinstance(s, Seen) for s in after.values())
    assert skipped == ["model.layers.0.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight"]
    assert not torch.equal(
        state["model.layers.0.input_layernorm.weight"], corner.state["model.layers.0.input_layernorm.weight"]
    )
    fused = Model(state, corner.files).build()
    torch.testing.assert_close(
        fused(input_ids=tokens).logits, module(input_ids=tokens).logits, rtol=1e-3, atol=1e-3
    )


def _divergence(corner, method, budget):
    """How far the decoded model's predictions are from the original's (nats), and the bytes of the file."""
    tokens = windows(corner, 2, 96, skip=32)
    packed = method.encode(corner, budget)
    with torch.inference_mode():
        wanted = torch.log_softmax(corner.build()(input_ids=tokens).logits, -1)
        got = torch.log_softmax(method.decode(packed).build()(input_ids=tokens).logits, -1)
    return float((wanted.exp() * (wanted - got)).sum(-1).mean()), packed.nbytes


def test_better_than_rounding_at_two_bits_and_better_with_each_of_its_parts(corner):
    rounded, size = _divergence(corner, RoundToNearest(bits=2, entropy=False), None)
    ours, mine = _divergence(corner, QUICK, size)
    assert mine <= size
    assert ours < 0.5 * rounded
    blind, _ = _divergence(corner, QUICK.but(scaling=False), size)
    paper, _ = _divergence(corner, QUICK.but(feedback=0.0, refit=False, stretch=1.0), size)
    assert ours < paper and ours < blind


@pytest.mark.slow
def test_sort_by_perplexity_runs_on_a_model_and_keeps_the_levels(corner):
    packed = QUICK.but(sort="perplexity").encode(corner, "9%")
    ours, other = Layout.of(packed).stack, Layout.of(QUICK.encode(corner, "9%")).stack
    assert ours != other and sorted(ours[: len(other)])[:5] == sorted(other)[:5]


def test_any_matrix_any_size(tmp_path):
    model = _plain(wide=(63, 200), tall=(200, 63), row=(1, 300), column=(300, 1), tiny=(2, 2))
    model.state["bias"] = torch.arange(7).float()
    path = str(tmp_path / "odd.hold")
    packed = BitStack().encode(model, "20%", to=path)
    assert packed.nbytes <= 0.2 * model.nbytes
    back = BitStack().decode(packed)
    assert {n: (t.shape, t.dtype) for n, t in back.state.items()} == {
        n: (t.shape, t.dtype) for n, t in model.state.items()
    }
    assert torch.equal(back.state["bias"], model.state["bias"])
    assert quality.loss(model, back) < 0.25


def test_without_a_budget_it_is_the_papers_point(corner):
    packed = BitStack().encode(_plain(w=(256, 256)))
    layout = Layout.of(packed)
    assert layout.pieces[0].rank == 16 and len(layout.stack) == 16
    told = Layout.of(QUICK.encode(corner))
    assert not any(p.table for p in told.pieces)  # embeddings stay in half precision
    assert {p.rank for p in told.pieces} == {16}


def test_budgets_that_cannot_be_kept_say_the_least(corner):
    with pytest.raises(BudgetError) as caught:
        QUICK.encode(corner, "3%")
    least = caught.value.least
    assert QUICK.encode(corner, least).nbytes <= least
    with pytest.raises(BudgetError):
        QUICK.encode(corner, least - 1)
    with (
        pytest.raises(BudgetError) as caught,
        Packed.from_bytes(QUICK.encode(corner, "12%").to_bytes()) as packed,
    ):
        BitStack().open(packed, 1000)
    assert caught.value.least > 1000


def test_bad_input_is_one_clear_line(corner):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(BadInput, match="tensor w"):
            BitStack().encode(Model({"w": torch.full((64, 64), bad)}), "50%")
    with pytest.raises(BadInput, match="calibration text"):
        BitStack().encode(Model(corner.state, corner.files, calibration=""), "20%")
    with pytest.raises(BadInput, match="fold"):
        BitStack(fold="elsewhere")


def test_forged_headers_are_refused(artefact):
    whole = Packed.open(artefact[0], lazy=False)
    for spoil in (
        lambda m: m["stack"].__setitem__(0, 5),
        lambda m: m["pieces"][0].__setitem__(3, 10**9),
        lambda m: m["pieces"].pop(1),
        lambda m: m["tensors"][0].__setitem__(1, "object"),
        lambda m: m.__setitem__("elements", None),
        lambda m: m["stack"].append(10**6),
    ):
        meta = json.loads(json.dumps(whole.meta))
        spoil(meta)
        with pytest.raises(CorruptArtefact):
            BitStack().decode(Packed(whole.arrays, meta))


def test_the_one_file_is_all_that_is_needed(artefact, corner):
    back = Model.read(artefact[0])
    assert back.files == corner.files
    assert back.tokenizer().encode("hello") == corner.tokenizer().encode("hello")
    assert float(losses(back.build(), windows(corner, 1, 32)).mean()) > 0
