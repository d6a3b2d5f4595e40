"""What the numbers of a run must be: one process, one batch a step, torch's AdamW, no DeepSpeed."""

from pathlib import Path

import torch

from stagecoach.data.streaming.dataset import ShardSet
from stagecoach.data.streaming.order import Order
from stagecoach.data.streaming.stream import collate
from stagecoach.data.streaming.windows import cut
from stagecoach.models.common.keyed import rng_keys
from stagecoach.models.trainable import freeze, trained_before
from stagecoach.models.weights.network import load_tensors
from stagecoach.models.weights.opening import open_weights
from stagecoach.trainer.engine import group_rate, parameter_groups
from stagecoach.trainer.recipe import Recipe
from stagecoach.trainer.stage_plan import StagePlan


def plain_losses(recipe: Recipe, index: int = 1, init: Path | None = None) -> list[float]:
    """Loss of each step of stage ``index``, from adapter ``init`` where it is not the first."""
    plan = StagePlan.resolve(recipe, index)
    family, config, stage, specs = plan.family, plan.config, plan.stage, plan.specs
    network = family.build(config, index, "cpu", torch.float32)
    family.load_base(network, config, "cpu")
    helpers = plan.helpers("cpu")
    entries = freeze(network, specs[index - 1])
    schema = family.schema(config)
    data = ShardSet.open(Path(recipe.data) / "train", schema)
    family.init_from_statistics(network, data.manifest.statistics)
    if init is not None:
        load_tensors(open_weights(init).files, network, trained_before(network, specs, index), init)
    groups = parameter_groups(network, entries, recipe.optimizer)
    trained = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate)
    order = Order(data.shard_sizes, recipe.seed)
    found = []
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = group_rate(group, stage, step)
        uids = range(step * stage.global_batch, (step + 1) * stage.global_batch)
        samples = [data.read(order.locate(uid)[1]) for uid in uids]
        window = plan.window(step, len(data))
        if window is not None:
            samples, starts = zip(
                *(cut(schema, sample, window, recipe.seed, uid) for sample, uid in zip(samples, uids, strict=True)),
                strict=True,
            )
        batch = collate(schema, samples)
        if window is not None:
            batch["window_start"] = torch.tensor(starts)
        batch |= {"uid": torch.tensor(list(uids)), "rng_key": rng_keys(recipe.seed, index, uids)}
        progress = plan.progress(step, helpers)
        output = network(batch, progress)["losses"]
        loss = sum(term.weight.at(progress) * output[term.name] for term in specs[index - 1].losses).mean()
        optimizer.zero_grad()
        loss.backward()
        if stage.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(trained, stage.gradient_clipping)
        optimizer.step()
        found.append(loss.item())
    return found
