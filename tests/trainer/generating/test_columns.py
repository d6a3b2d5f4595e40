"""Which weights a page compares."""

import pytest

from stagecoach.trainer.generating.columns import Column, columns_of_run, parse_column


def test_a_column_has_a_name_weights_and_an_average():
    assert parse_column("run/stage1/adapter") == Column("run/stage1/adapter", "run/stage1/adapter")
    assert parse_column("late=run/c:average") == Column("late", "run/c", "ema")
    assert parse_column("plain=base") == Column("plain", "base")
    assert Column("stage 2, average!", "x").folder == "stage_2_average"
    for wrong in ("=x", "x=", "base:average"):
        with pytest.raises(ValueError, match=f"--column {wrong}: "):
            parse_column(wrong)


def test_the_columns_of_a_run_are_base_stages_and_the_newest_checkpoint(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    with pytest.raises(ValueError, match="holds no adapter and no checkpoint"):
        columns_of_run(tmp_path)
    touch("stage1/adapter/adapter.json", "stage1/checkpoints/checkpoint_10/training_state.json")
    assert [c.name for c in columns_of_run(tmp_path)] == ["base", "stage1"]
    names = ("training_state.json", "ema.safetensors")
    touch(*(f"stage2/checkpoints/checkpoint_{n}/{name}" for n in (5, 20) for name in names))
    assert [(c.name, c.which) for c in columns_of_run(tmp_path)] == [
        ("base", "raw"),
        ("stage1", "raw"),
        ("stage2 checkpoint_20", "raw"),
        ("stage2 checkpoint_20 average", "ema"),
    ]
    touch("stage2/adapter/adapter.json")
    assert [c.name for c in columns_of_run(tmp_path)][2:] == ["stage2", "stage2 checkpoint_20 average"]
