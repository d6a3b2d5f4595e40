"""The engine holds the trainable subset and nothing else; a stage is a declaration."""

import pytest
import torch
from torch import nn

from stagecoach.models.family import AllowNoGradient, LossTerm, Schedule, StageSpec, Trainable
from stagecoach.models.trainable import freeze, matching_modules, trainable_names
from stagecoach.trainer.freeze import freeze_table, may_lack_gradient
from stagecoach.trainer.subset import TrainableSubset, WholeNetwork, engine_module
from tests.toy import ToyConfig, ToyFamily


def toy(stage=1):
    family, config = ToyFamily(), ToyConfig()
    network = family.build(config, stage, "cpu", torch.float32)
    return network, family.stages(config)[stage - 1]


def spec(*patterns, allow_no_gradient=()):
    return StageSpec(
        1,
        "test",
        tuple(Trainable(p) for p in patterns),
        (LossTerm("fit", Schedule(1.0)),),
        allow_no_gradient=allow_no_gradient,
    )


def test_subset_registers_the_very_modules_that_train_and_hides_the_rest():
    network, declared = toy()
    freeze(network, declared)
    subset = TrainableSubset(network)
    assert [name for name, _ in subset.named_children()] == ["layers-0-first", "layers-1-first"]
    assert {id(p) for p in subset.parameters()} == {id(p) for p in network.parameters() if p.requires_grad}
    assert subset.get_submodule("layers-0-first") is network.layers[0].first


def test_a_bare_trainable_parameter_on_a_mixed_module_is_an_error_that_names_it():
    network, declared = toy()
    network.layers[0].gate = nn.Parameter(torch.zeros(1))
    freeze(network, declared)
    network.layers[0].gate.requires_grad_(True)
    with pytest.raises(ValueError, match=r"layers\.0\.gate trains but layers\.0 holds frozen"):
        TrainableSubset(network)


def test_a_network_that_trains_as_a_whole_is_the_engines_module():
    network, _ = toy()
    assert isinstance(engine_module(network, "replicate"), WholeNetwork)


def test_frozen_dtypes_survive_a_cast_of_the_engine_module():
    network, declared = toy()
    freeze(network, declared)
    subset = TrainableSubset(network)
    subset.bfloat16()
    subset.to("cpu")
    assert network.layers[0].frozen.weight.dtype == torch.float32
    assert network.layers[0].first.up.weight.dtype == torch.bfloat16


def test_train_and_eval_reach_the_hidden_part():
    network, declared = toy()
    freeze(network, declared)
    subset = TrainableSubset(network)
    subset.eval()
    assert not network.layers[0].frozen.training
    subset.train()
    assert network.layers[0].frozen.training


def test_a_star_stands_for_one_part_of_a_name():
    network, _ = toy(2)
    assert matching_modules(network, "layers.*") == ["layers.0", "layers.1"]
    assert matching_modules(network, "*.first") == []


def test_a_pattern_that_matches_nothing_is_an_error_with_the_top_level_names():
    network, _ = toy()
    with pytest.raises(ValueError, match=r"'layers\.\*\.third' matches no module.*\['layers'\]"):
        freeze(network, spec("layers.*.third"))


def test_two_patterns_for_one_parameter_are_an_error():
    network, _ = toy()
    with pytest.raises(ValueError, match=r"layers\.0\.first\.norm\.weight is claimed by the patterns"):
        freeze(network, spec("layers.*.first", "layers.*.first.norm"))


def test_freeze_leaves_exactly_the_declared_parameters_trainable():
    network, declared = toy(2)
    trained = freeze(network, declared)
    assert {n for n, p in network.named_parameters() if p.requires_grad} == set(trained)
    assert {entry.lr_scale for name, entry in trained.items() if "second" in name} == {0.5}
    assert trainable_names(network, declared) == trained


def test_the_freeze_table_counts_every_parameter_once():
    network, declared = toy(2)
    rows = freeze_table(network, declared)
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in network.parameters())
    assert [row.pattern for row in rows if row.lr_scale is None] == ["layers.*.frozen"]


def test_a_missing_gradient_is_allowed_for_named_tensors_until_its_step():
    declared = spec("layers.*.first", allow_no_gradient=(AllowNoGradient("layers.0.*", "waits", until_step=5),))
    assert may_lack_gradient(declared, "layers.0.first.up.weight", 5)
    assert not may_lack_gradient(declared, "layers.0.first.up.weight", 6)
    assert not may_lack_gradient(declared, "layers.1.first.up.weight", 1)
