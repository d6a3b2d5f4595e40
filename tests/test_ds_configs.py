"""Every DeepSpeed file loads as it is, and says in the README why each value is what it is."""

import json
from pathlib import Path

import pytest

from stagecoach.trainer.ds_config import OWNED
from stagecoach.trainer.recipe import DS_CONFIGS

FILES = sorted(DS_CONFIGS.glob("*.json"))
NAMES = ["zero1", "zero2", "zero3", "zero3_cpu", "zero3_hpz", "zero3_offload"]


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def readme_table() -> dict[str, dict[str, str]]:
    """Key -> column -> cell of the README's table of values."""
    lines = [line for line in (DS_CONFIGS / "README.md").read_text().splitlines() if line.startswith("|")]
    start = next(i for i, line in enumerate(lines) if line.startswith("| key |"))
    columns = [cell.strip() for cell in lines[start].strip("|").split("|")]
    table = {}
    for line in lines[start + 2 :]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(columns), line
        table[cells[0].strip("`")] = dict(zip(columns[1:], cells[1:], strict=True))
    return table


def test_every_file_is_known():
    assert [path.stem for path in FILES] == NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_deepspeed_reads_each_file_in_each_precision(path: Path, precision: str):
    from deepspeed.runtime.config import DeepSpeedConfig

    values = json.loads(path.read_text())
    assert not set(values) & set(OWNED)
    values |= {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}
    if precision != "fp32":
        values[precision] = {"enabled": True}
    config = DeepSpeedConfig(values)
    zero = config.zero_config
    assert zero.stage == int(path.stem[4])
    assert zero.memory_efficient_linear is False
    assert zero.overlap_comm is (zero.stage == 3)
    assert str(config.communication_data_type) == "torch.float32"
    assert config.grad_accum_dtype == "fp32"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_key_of_a_file_is_unknown_to_deepspeed(path: Path):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    def known(model) -> set[str]:
        return set(model.model_fields) | {field.alias for field in model.model_fields.values()}

    section = json.loads(path.read_text())["zero_optimization"]
    assert set(section) <= known(DeepSpeedZeroConfig)
    assert set(section.get("offload_optimizer", {})) <= known(DeepSpeedZeroOffloadOptimizerConfig)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_value_has_its_line_in_the_readme(path: Path):
    table = readme_table()
    values = flat(json.loads(path.read_text()))
    for key, value in values.items():
        assert key in table, f"{path.name}: {key} has no line"
        assert table[key][path.stem] == json.dumps(value), f"{path.name}: {key} differs from the README"
        assert len(table[key]["why"]) > 10
    for key, row in table.items():
        assert (row[path.stem] == "-") == (key not in values), f"README: {key} of {path.stem}"


def test_the_reuse_distance_covers_every_trained_weight_of_stage_2():
    distance = json.loads((DS_CONFIGS / "zero3.json").read_text())["zero_optimization"]["stage3_max_reuse_distance"]
    assert distance >= 2 * 1.19e9
