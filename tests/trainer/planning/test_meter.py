"""The meter finds what can be counted by hand, and what the real wrappers and a real step do."""

import gc
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from stagecoach.models.family import Progress
from stagecoach.trainer.activation_checkpointing import apply_activation_checkpointing
from stagecoach.trainer.objective import weighted_total
from stagecoach.trainer.planning.kernel_stand_ins import KernelStandIns
from stagecoach.trainer.planning.meter import count, label, meta_network, step_costs
from stagecoach.trainer.planning.op_counter import OpCounter
from stagecoach.trainer.recipe import ROOT, load_recipe
from stagecoach.trainer.stage_plan import StagePlan

QUICK = {("fantasy_world", "tiny", 2), ("movie_post_production", "tiny", 2), ("dance_with_music", "tiny", 3)}
TINY = [
    pytest.param(family, profile, stage, marks=() if (family, profile, stage) in QUICK else pytest.mark.slow)
    for family, profile, stages in (
        ("fantasy_world", "tiny", 2),
        ("movie_post_production", "tiny", 3),
        ("dance_with_music", "tiny", 3),
        ("dance_with_music", "tiny-svd", 3),
    )
    for stage in range(1, stages + 1)
]
WIDTH, ROWS = 16, 6


class Unit(nn.Module):
    """Saves its input (by ``up``), the input of GELU, and that of ``down``."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(x)))


class Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(x), *self.kv(x).chunk(2, dim=-1)))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def counted(network, units, x):
    """Costs of ``network`` on ``x`` ``[B, N, WIDTH]``, a bf16 input that requires grad."""
    batch = {"x": x, "uid": torch.empty(len(x), device="meta")}
    return count(lambda: network(x).sum(), network, units, batch, {})


def meta(module):
    return module.to("meta", torch.bfloat16)


def given(grad=True):
    return torch.empty(2, ROWS, WIDTH, device="meta", dtype=torch.bfloat16, requires_grad=grad)


def sums(costs):
    return (
        sum(row.forward.linear for row in costs.rows),
        sum(row.forward.attention for row in costs.rows),
        sum(row.backward.linear for row in costs.rows),
        sum(row.backward.attention for row in costs.rows),
    )


def test_a_feed_forward_costs_and_keeps_what_its_formula_says():
    network = meta(nn.Sequential(Unit(), Unit(), Unit()))
    costs = counted(network, list(network), given())
    rows = 2 * ROWS
    once = 2 * 2 * rows * WIDTH * 4 * WIDTH
    assert sums(costs) == (3 * once, 0, 2 * 3 * once, 0)
    # A unit's own two wide tensors; its input is the output of the one before, which nobody keeps besides.
    wide, thin = 2 * rows * 4 * WIDTH, 2 * rows * WIDTH
    kept = costs.kept
    assert (kept.none, kept.boundaries) == (3 * 2 * wide + 2 * thin, 2 * thin)  # the first input is the batch's
    assert (kept.outside, kept.attention, kept.largest_unit) == (0, 0, 2 * wide)
    assert kept.full == kept.selective == 2 * thin + 2 * wide
    # ``down`` is the last layer and saves its input before it runs, so that no recomputation runs it.
    assert costs.recomputed.flops == 3 * once / 2


def test_attention_costs_four_products_and_keeps_what_a_flash_kernel_does():
    heads = 4
    network = meta(Attention(heads))
    costs = counted(network, [network], given())
    forward = 4 * 2 * ROWS * ROWS * WIDTH
    linear = 2 * 2 * ROWS * WIDTH * 3 * WIDTH
    assert sums(costs) == (linear, forward, 2 * linear, 2.5 * forward)
    out, log_sums = 2 * 2 * ROWS * WIDTH, 4 * 2 * heads * ROWS
    assert costs.kept.none == 3 * out + out + log_sums
    assert costs.kept.attention == out + log_sums
    assert costs.kept.selective == costs.kept.none == costs.kept.full


def test_a_frozen_layer_passes_gradients_for_half_the_cost_and_keeps_no_input():
    first, second = meta(nn.Linear(WIDTH, WIDTH)), meta(nn.Linear(WIDTH, WIDTH)).requires_grad_(False)
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH).to("meta", torch.bfloat16).requires_grad_(False), first, second)
    costs = counted(network, [], given(grad=False))
    assert [row.kind for row in costs.rows if row.forward.flops] == ["no_grad", "trained", "grad_passthrough"]
    once = 2 * 2 * ROWS * WIDTH * WIDTH
    backward = {row.kind: row.backward.linear for row in costs.rows}
    # The first that trains makes no gradient of an input that needs none.
    assert (backward["no_grad"], backward["trained"], backward["grad_passthrough"]) == (0, once, once)
    assert costs.kept.none == 2 * 2 * ROWS * WIDTH  # the input of the one that trains


def test_elementwise_operations_move_what_they_read_and_write():
    class Add(nn.Module):
        def forward(self, x):
            return x + x.new_empty(WIDTH).expand_as(x)

    size, row = 2 * 2 * ROWS * WIDTH, 2 * WIDTH
    costs = counted(Add(), [], given())
    (own,) = costs.rows
    # x, the expanded row once, the output; the sum over it, a bf16 number; and the first gradient, made like it.
    assert own.forward.traffic == (size + row + size) + (size + 2) + (2 + 2)
    assert costs.flops() == 0


def test_norms_keep_what_cuda_kernels_keep():
    network = meta(nn.RMSNorm(WIDTH))
    hidden = meta(nn.Linear(WIDTH, WIDTH))
    costs = counted(nn.Sequential(hidden, network), [], given())
    assert costs.kept.none == 2 * 2 * ROWS * WIDTH + 4 * 2 * ROWS  # the norm's input, and a number per row


def test_helpers_are_rows_of_their_own_and_names_of_one_kind_are_one_row():
    costs = step_costs(StagePlan.resolve(load_recipe(family="movie_post_production", profile="tiny"), 2), 1)
    rows = {row.module for row in costs.rows if row.forward.flops}
    assert {"helpers.vae.decoder", "helpers.dino.model"} <= rows
    assert label("transformer_blocks.12.attn.to_q") == "transformer_blocks.*.attn"
    assert label("") == "(network)"


class Alive(OpCounter):
    """Counts, and remembers by weak references what storages the operations make."""

    def __init__(self) -> None:
        super().__init__(lambda: 0, lambda out: None)
        self.made = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(op, types, args, kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def bytes(self, resident):
        """Of what is alive now and not ``resident``."""
        gc.collect()
        return sum(size for key, (ref, size) in self.made.items() if key not in resident and not ref.expired())


@pytest.mark.parametrize(("name", "profile", "stage"), TINY)
def test_policies_are_what_the_real_wrappers_do(name, profile, stage):
    """The step with ``apply_activation_checkpointing``: its FLOPs to the last one, and what is alive when the
    backward begins."""
    recipe = load_recipe(family=name, profile=profile)
    costs = step_costs(StagePlan.resolve(recipe, stage), 2)
    kept = costs.kept
    block = kept.outside + kept.boundaries
    for policy, expected in (("none", kept.none), ("full", block), ("selective", block + kept.attention)):
        flops, alive = run_wrapped(recipe, stage, policy)
        assert flops == costs.flops(policy), policy
        assert alive == pytest.approx(expected, rel=0.03), policy


def with_stand_ins(forward, *args, **kwargs):
    with KernelStandIns():
        return forward(*args, **kwargs)


def run_wrapped(recipe, stage, policy):
    """FLOPs of the step under the real wrappers of ``policy``, and the bytes that are alive before the backward."""
    plan = StagePlan.resolve(recipe, stage)
    family, config = plan.family, plan.config
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[recipe.precision]
    network, helpers = meta_network(family, config, stage, dtype)
    batch = family.example_batch(config, stage, 2, "meta", 0)
    units = list(family.recompute_units(network))
    for unit in units:
        unit.forward = partial(with_stand_ins, unit.forward)  # contexts around a backward do not reach into it
    apply_activation_checkpointing(units, policy)
    steps = recipe.stages[stage].steps
    progress, spec = Progress(steps - 1, steps, stage, 0, helpers=helpers), family.stages(config)[stage - 1]
    resident = {
        t.untyped_storage()._cdata for top in (network, *helpers.values()) for t in (*top.parameters(), *top.buffers())
    }
    resident |= {t.untyped_storage()._cdata for t in batch.values() if torch.is_tensor(t)}
    counter = Alive()
    with KernelStandIns(), counter:
        losses = network.train()(batch, progress)["losses"]
        total = weighted_total(losses, spec, recipe.stages[stage].loss_weights, progress).mean()
        alive = counter.bytes(resident)
        total.backward()
    done = [*counter.forward.values(), *counter.backward.values()]
    return sum(amount.flops for amount in done), alive


SHIPPED = sorted((path.parent.name, path.stem) for path in (ROOT / "launch" / "recipes").glob("*/*.yaml"))


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        pytest.param(*entry, marks=() if entry[1].startswith(("tiny", "demo")) else pytest.mark.slow)
        for entry in SHIPPED
    ],
)
def test_no_shipped_recipe_is_planned_with_zero_activations(name, profile):
    recipe = load_recipe(family=name, profile=profile)
    for stage in recipe.stages:
        costs = step_costs(StagePlan.resolve(recipe, stage), 1)
        assert min(costs.kept.none, costs.kept.selective, costs.kept.full) > 0
        assert costs.kept.full <= costs.kept.selective <= costs.kept.none
        assert 0 < costs.flops() <= costs.flops("selective") <= costs.flops("full")
        assert costs.traffic() > 0
