"""``--init`` starts a stage from an adapter, an exported file, a checkpoint, its average, or the base."""

from pathlib import Path

import pytest
import torch

from stagecoach.data.weight_files import AVERAGE
from stagecoach.models import FAMILIES
from stagecoach.models.weights import open_weights
from stagecoach.trainer.export import export_adapter
from tests.distributed import cases
from tests.distributed.cases import toy_recipe
from tests.pair import Pair
from tests.toy import write_toy_shards


@pytest.fixture(scope="module")
def alone():
    process = Pair(size=1)
    yield process
    process.close()


def start_from(recipe: dict, init: str) -> None:
    cases.train(recipe, [2], init=Path(init))


def test_a_stage_starts_from_each_form_of_the_weights_of_the_stage_before(alone, tmp_path, monkeypatch):
    """Stage 2 keeps what stage 1 trained, so that its adapter and its checkpoint show what it started from."""
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy:ToyFamily")
    write_toy_shards(tmp_path / "shards")

    def recipe(run: Path) -> dict:
        short = {"steps": 3, "checkpoint_every": 3, "validation_samples": 0, "preview_samples": 0}
        model = {"keep_first": True}
        return toy_recipe(str(tmp_path / "shards"), str(run), ema={"decay": 0.5}, model=model, **short).model_dump()

    first = tmp_path / "first"
    alone.run(cases.train, recipe(first), [1])
    adapter, checkpoint = first / "stage1/adapter", first / "stage1/checkpoints/checkpoint_3"
    export_adapter(adapter, tmp_path / "fp32.safetensors", "fp32")
    export_adapter(adapter, tmp_path / "bf16.safetensors", "bf16")
    losses = {}
    for name, init in {
        "adapter": adapter,
        "file": tmp_path / "fp32.safetensors",
        "checkpoint": checkpoint,
        "average": checkpoint / AVERAGE,
        "bf16": tmp_path / "bf16.safetensors",
        "base": Path("base"),
    }.items():
        run = tmp_path / name
        alone.run(start_from, recipe(run), str(init))
        losses[name] = cases.losses(run, 2)
        end = open_weights(run / "stage2/adapter")
        if name == "base":
            assert (end.card.predecessor, end.card.started_from) == (None, {})
            with pytest.raises(ValueError, match=r"12 \(layers\.0\.first.* in no file, since its stage started from"):
                open_weights(run / "stage2/checkpoints/checkpoint_3")
            continue
        before = open_weights(init)
        assert end.card.predecessor == before.sha256
        kept = before.tensors()
        assert all(torch.equal(value, kept[key]) for key, value in end.tensors(kept).items()), name
        assert open_weights(run / "stage2/checkpoints/checkpoint_3").sha256 == end.sha256
    assert losses["adapter"] == losses["file"] == losses["checkpoint"]
    assert len({tuple(values) for values in losses.values()}) == 4
    with pytest.raises(AssertionError, match="adapter of stage 2, expected 1 to start stage 1"):
        alone.run(wrong_stage, recipe(tmp_path / "wrong"), str(tmp_path / "base/stage2/adapter"))
    assert not (tmp_path / "wrong").exists()


def wrong_stage(recipe: dict, init: str) -> None:
    cases.train(recipe, [1], init=Path(init))
