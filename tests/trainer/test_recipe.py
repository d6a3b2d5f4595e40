import json
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stagecoach.models import get_family
from stagecoach.models.metrics.metric import Metric
from stagecoach.trainer.ds_config import OWNED, read_ds_config
from stagecoach.trainer.recipe import DS_CONFIGS, RECIPES, Recipe, StageRecipe, load_recipe
from stagecoach.trainer.settings import RecipeError, overlay, parse_override, read_yaml
from stagecoach.trainer.stage_plan import StagePlan


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe=path, overrides=overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_is_overlaid_by_arguments_and_those_by_overrides(recipe_file):
    recipe = load_recipe(
        recipe=recipe_file, size="large", data="elsewhere", overrides=["seed=7", "stages.2.steps=5", "data=third"]
    )
    assert (recipe.size, recipe.seed, recipe.data) == ("large", 7, "third")
    assert (recipe.stages[1].steps, recipe.stages[2].steps, recipe.stages[2].global_batch) == (100, 5, 4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("2.5E+3", 2500.0),
        (".5", 0.5),
        ("20_000", 20000),
        ("-3", -3),
        ("true", True),
        ("off", "off"),
        ("yes", "yes"),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("{decay: 0.9}", {"decay": 0.9}),
        ("1:30", "1:30"),
        ("010", "010"),
        ("a=b", "a=b"),
        ("", None),
    ],
)
def test_override_values_are_yaml_1_2(text, value):
    path, parsed = parse_override(f"stages.1.key={text}")
    assert path == ("stages", 1, "key")
    assert parsed == value
    assert type(parsed) is type(value)


def test_files_read_numbers_as_overrides_do(tmp_path):
    (tmp_path / "a.yaml").write_text("rate: 1e-5\nmode: off\n")
    assert read_yaml(tmp_path / "a.yaml") == {"rate": 1e-5, "mode": "off"}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_survives_an_override(value):
    assert parse_override(f"x={value!r}")[1] == value


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("sed=1", "sed", "seed"),
        ("stages.1.lerning_rate=1", "stages.1.lerning_rate", "learning_rate"),
        ("logging.evry=1", "logging.evry", "every"),
        ("model.clip.frame=1", "model.clip.frame", "frames"),
        ("stages.2.model.dropot=1", "stages.2.model.dropot", "dropout"),
        ("stages.1.loss_weights.dept=1", "stages.1.loss_weights.dept", "depth"),
        ("ema.decy=0.9", "ema.decy", "decay"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest_one(recipe_file, override, key, nearest):
    assert refused(recipe_file, override) == f"--set {override}: unknown key {key}; did you mean '{nearest}'?"


def test_an_unknown_key_in_a_file_names_the_file(recipe_file, recipe_values):
    recipe_values["stages"][2]["model"] = {"clip": {"fames": 3}}
    recipe_file.write_text(yaml.safe_dump(recipe_values))
    assert refused(recipe_file) == f"{recipe_file}: unknown key stages.2.model.clip.fames; did you mean 'frames'?"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stages.1.steps=0"], ["--set stages.1.steps=0", "found 0", "greater than or equal to 1"]),
        (["precision=fp8"], ["precision", "'fp8'", "'bf16', 'fp16' or 'fp32'"]),
        (["model.clip.frames=0"], ["--set model.clip.frames=0", "model.clip.frames", "found 0"]),
        (["stages.1.global_batch=0"], ["stages.1.global_batch", "found 0"]),
        (["stages.1.warmup_steps=101"], ["stages.1", "warmup_steps is 101", "at most", "100"]),
        (["frozen=shard", "zero=2"], ["frozen is 'shard'", "zero is 2", "expected zero: 3"]),
        (["leaf_modules=true", "zero=1"], ["leaf_modules", "expected zero: 3"]),
        (["export_weights=ema"], ["export_weights is 'ema'", "expected ema"]),
        (["attention=flash", "precision=fp32"], ["attention is 'flash'", "'fp32'", "expected bf16 or fp16"]),
        (["stages.3.steps=1", "stages.3.global_batch=1", "stages.3.learning_rate=1"], ["stages.3", "there are 1, 2"]),
        (["size=tinny"], ["--set size=tinny", "did you mean 'tiny'"]),
        (["family=declred"], ["--set family=declred", "unknown"]),
        (["stages.1.loss_weights.diffusion=1"], ["stages.1.loss_weights.diffusion", "there are camera, depth"]),
        (["nonsense"], ["--set nonsense", "expected a.b=c"]),
        (["seed=[1"], ["--set seed=[1", "not a YAML value"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(recipe_file, overrides, words):
    message = refused(recipe_file, *overrides)
    for word in words:
        assert word in message


def test_a_missing_value_is_named(recipe_file, recipe_values):
    del recipe_values["stages"][1]["steps"]
    recipe_file.write_text(yaml.safe_dump(recipe_values))
    assert refused(recipe_file) == f"{recipe_file}: stages.1.steps: missing, expected a value"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nseed: 2\n", ["line 1", "'seed' is there twice"]),
        ("- 1\n", ["holds a list", "expected a mapping"]),
        ("a: [1\n", ["line", "expected YAML"]),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refused(path)
    assert str(path) in message
    for word in words:
        assert word in message


def test_a_missing_file_a_profile_and_another_family_are_named(recipe_file, declared_family):
    assert "No such file" in refused(recipe_file.with_name("none.yaml"))
    with pytest.raises(RecipeError, match="did you mean 'default'"):
        load_recipe(profile="defaultt")
    with pytest.raises(RecipeError, match="family is 'declared', but 'fantasy_world' was asked for"):
        load_recipe(recipe=recipe_file, family="fantasy_world")


def test_the_family_config_is_the_size_overlaid_by_the_run_and_then_by_the_stage(recipe_file):
    recipe = load_recipe(
        recipe=recipe_file, size="large", overrides=["model.dropout=0.2", "stages.2.model.clip.frames=5"]
    )
    assert (StagePlan.resolve(recipe, 1).config.clip.frames, StagePlan.resolve(recipe, 1).config.dropout) == (81, 0.2)
    assert (StagePlan.resolve(recipe, 2).config.clip.frames, StagePlan.resolve(recipe, 2).config.dropout) == (5, 0.2)
    assert get_family("declared").sizes["large"].clip.frames == 81
    assert StagePlan.resolve(recipe, 2).spec.name == "unified"


def test_a_dump_holds_every_default_and_loads_to_the_same_recipe(recipe_file, tmp_path):
    recipe = load_recipe(
        recipe=recipe_file,
        overrides=["ema.decay=0.999", "stages.1.loss_weights.depth=2", "optimizer.eps=1e-15", "model.clip.frames=5"],
    )
    text = recipe.dump()
    (tmp_path / "dumped.yaml").write_text(text)
    assert load_recipe(recipe=tmp_path / "dumped.yaml") == recipe
    assert set(yaml.safe_load(text)) == set(Recipe.model_fields)
    assert set(yaml.safe_load(text)["stages"][1]) == set(StageRecipe.model_fields)


def test_the_digest_follows_what_changes_the_numbers_and_nothing_else(recipe_file):
    def digest(*overrides: str) -> str:
        return load_recipe(recipe=recipe_file, overrides=overrides).digest(get_family("declared"))

    plain = digest()
    for same in (
        "data=x",
        "run=y",
        "logging.every=3",
        "profile=z",
        "model.clip.frames=9",
        "stages.1.model.dropout=0.1",
        "validation.every=7",
    ):
        assert digest(same) == plain
    for other in (
        "seed=1",
        "model.dropout=0.2",
        "stages.2.learning_rate=2e-5",
        "stages.1.model.clip.frames=5",
        "size=large",
        "optimizer.eps=1e-7",
    ):
        assert digest(other) != plain


@given(st.integers(3, 30_000))
def test_the_gradient_check_is_a_twentieth_of_the_stage_within_bounds(steps):
    stage = StageRecipe(steps=steps, global_batch=1, learning_rate=1e-5)
    assert 3 <= stage.checked_steps <= min(50, steps)
    if 60 <= steps <= 1000:
        assert stage.checked_steps == round(steps / 20)
    assert StageRecipe(steps=steps, global_batch=1, learning_rate=1e-5, gradient_check_steps=7).checked_steps == min(
        7, steps
    )


def test_a_recipe_is_frozen(recipe_file):
    recipe = load_recipe(recipe=recipe_file)
    with pytest.raises(ValidationError):
        recipe.seed = 3


def test_the_deepspeed_file_follows_the_zero_stage_or_is_the_one_named(recipe_file, tmp_path, monkeypatch):
    assert load_recipe(recipe=recipe_file).deepspeed_file() == DS_CONFIGS / "zero3.json"
    assert load_recipe(recipe=recipe_file, overrides=["zero=1"]).deepspeed_file() == DS_CONFIGS / "zero1.json"
    monkeypatch.chdir(tmp_path)
    named = load_recipe(recipe=recipe_file, overrides=["ds_config=ds_configs/zero3_hpz.json"])
    assert read_ds_config(named)["zero_optimization"]["zero_hpz_partition_size"] == 8


@pytest.mark.parametrize("key", OWNED)
def test_a_deepspeed_file_must_not_decide_what_the_recipe_decides(recipe_file, tmp_path, key):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, key: 1}))
    assert f"{path}: holds {key}, which the recipe decides" in refused(recipe_file, f"ds_config={path}")


def test_a_deepspeed_file_of_another_stage_or_none_is_refused(recipe_file, tmp_path):
    assert "stage is 2, expected 3" in refused(recipe_file, f"ds_config={DS_CONFIGS / 'zero2.json'}")
    assert "not a DeepSpeed config" in refused(recipe_file, f"ds_config={tmp_path / 'none.json'}")
    (tmp_path / "list.json").write_text("[]")
    assert "not a DeepSpeed config" in refused(recipe_file, f"ds_config={tmp_path / 'list.json'}")


@pytest.mark.parametrize("offload", [{"device": "cpu", "ratio": 0.5}, {"device": "nvme"}])
def test_an_optimizer_that_checkpoints_do_not_find_is_refused(recipe_file, tmp_path, offload):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": offload}}))
    assert "offload_optimizer has device" in refused(recipe_file, f"ds_config={path}")
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}))
    load_recipe(recipe=recipe_file, overrides=[f"ds_config={path}"])


def test_an_overlay_changes_neither_of_its_sources():
    base, over = {"a": {"b": 1, "c": [1]}}, {"a": {"b": 2}}
    result = overlay(base, over)
    result["a"]["c"].append(2)
    assert result == {"a": {"b": 2, "c": [1, 2]}}
    assert (base, over) == ({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2}})


def test_shipped_recipes_are_the_users_stages():
    for profile, clipping in (("default", 1.0), ("default-i2v", 1.0), ("reference", 0.0)):
        values = read_yaml(RECIPES / "fantasy_world" / f"{profile}.yaml")
        stages = {number: StageRecipe(**stage) for number, stage in values["stages"].items()}
        assert [(s.steps, s.global_batch, s.learning_rate, s.checkpoint_every) for s in stages.values()] == [
            (20_000, 64, 1e-5, 1000),
            (10_000, 112, 1e-5, 1000),
        ]
        assert values["size"] == ("wan2.1-1.3b-i2v" if profile == "default-i2v" else "wan2.1-1.3b")
        assert values["model"]["camera_dropout"] == 0.17
        assert {s.gradient_clipping for s in stages.values()} == {clipping}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_recipe_loads_with_its_own_name(path):
    pytest.importorskip(f"stagecoach.models.{path.parent.name}.family")
    recipe = load_recipe(family=path.parent.name, profile=path.stem)
    assert recipe.profile == path.stem
    assert recipe.run == f"runs/{path.parent.name}/{path.stem}"
    for stage in recipe.stages:
        assert StagePlan.resolve(recipe, stage).index == stage


def numbers(values, path=()):
    """Paths of the numbers in a nested mapping."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, key)


@pytest.mark.parametrize("family", ["fantasy_world", "dance_with_music", "movie_post_production", "stable_diffusion_3"])
def test_no_number_of_a_recipe_may_be_infinite_or_none_at_all(family):
    whole = ["ema.decay=0.9", "stream.cache.directory=x", "model.allow_random_init=true"]
    recipe = load_recipe(family=family, profile="tiny", overrides=whole)
    config = recipe.family_config(get_family(family), min(recipe.stages)).model_dump()
    everything = recipe.model_dump(exclude={"model"}) | {"model": config}
    found = [".".join(map(str, path)) for path in numbers(everything)]
    assert {"optimizer.eps", "ema.decay", "stages.1.learning_rate", "stream.timeout"} <= set(found)
    for key in found:
        for value in (".inf", "-.inf", ".nan"):
            with pytest.raises(RecipeError) as caught:
                load_recipe(family=family, profile="tiny", overrides=[*whole, f"{key}={value}"])
            assert key in str(caught.value) or "unknown key" in str(caught.value), (key, str(caught.value))


def test_home_and_variables_of_paths_are_filled_in_and_an_unknown_one_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SHARDS", "/mnt/shards")
    words = ["stream.cache.directory=${SHARDS}/cache", "model.base=$SHARDS/wan", "ds_config=null"]
    recipe = load_recipe(profile="tiny", data="$SHARDS/a", run="~/runs/x", overrides=words)
    assert (recipe.data, recipe.run) == ("/mnt/shards/a", "/home/ada/runs/x")
    assert recipe.stream.cache.directory == "/mnt/shards/cache"
    assert recipe.family_config(get_family("fantasy_world"), 1).base == "/mnt/shards/wan"
    mixed = load_recipe(profile="tiny", overrides=["data=[{path: $SHARDS/a}, {path: 's3://bucket/b'}]"])
    assert [part.path for part in mixed.stage_sources(1)] == ["/mnt/shards/a", "s3://bucket/b"]
    own = load_recipe(profile="tiny", data="/all", overrides=["stages.1.data=$SHARDS/low"])
    assert [own.stage_sources(stage)[0].path for stage in (1, 2)] == ["/mnt/shards/low", "/all"]
    monkeypatch.delenv("SHARDS")
    for words in (["run=$SHARDS/x"], ["model.base=$SHARDS/x"], ["data=[{path: '${SHARDS}/a'}]"]):
        with pytest.raises(RecipeError, match=r"the environment has no variable 'SHARDS'"):
            load_recipe(profile="tiny", overrides=words)


@pytest.mark.parametrize(
    ("steps", "asked", "checked"), [(1, None, 0), (2, 3, 0), (1, 1, 1), (2, 2, 2), (3, None, 3), (20, 50, 20)]
)
def test_a_stage_too_short_for_gradients_behind_a_zero_gate_is_not_checked_for_them(steps, asked, checked):
    stage = StageRecipe(steps=steps, global_batch=1, learning_rate=1.0, gradient_check_steps=asked)
    assert stage.checked_steps == checked


def test_a_deepspeed_config_that_is_none_is_said_of_the_key_that_names_it(recipe_file, tmp_path):
    (tmp_path / "deep.json").write_text("[" * 50_000)
    words = refused(recipe_file, f"ds_config={tmp_path / 'deep.json'}")
    assert "--set ds_config=" in words
    assert "not a DeepSpeed config" in words


def test_metrics_of_validation_are_known_by_name_and_others_refused_with_those_that_are(declared_family, recipe_file):
    class Measured(declared_family):
        metrics = (Metric("val_depth_error"), Metric("depth_loss"))
        sampled_metrics = ("depth_abs_rel", "psnr")

    sys.modules["declared_family"].DeclaredFamily = Measured
    chosen = "validation.metrics=[val_depth_error,psnr]"
    recipe = load_recipe(recipe=recipe_file, overrides=[chosen, "validation.weights.clip=CLIP"])
    (sampled,) = recipe.sampled_metrics
    assert (sampled.name, sampled.unit, sampled.higher_is_better) == ("val_sampled_psnr", "dB", True)
    for name, words in {"pnsr": "did you mean 'psnr'", "depth_loss": "", "fid": "there are"}.items():
        message = refused(recipe_file, f"validation.metrics=[val_depth_error,{name}]")
        assert f"validation.metrics.1 is '{name}'" in message
        assert words in message
    assert "there are depth_abs_rel, psnr, val_depth_error" in refused(recipe_file, "validation.metrics=[fid]")
    message = refused(recipe_file, "validation.weights={clop: CLIP}")
    assert message.endswith("unknown key validation.weights.clop; did you mean 'clip'?")
