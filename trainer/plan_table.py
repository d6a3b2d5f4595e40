"""A plan as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show(plan: dict[str, Any]) -> None:
    """Print what ``trainer.planner.plan`` returned."""
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(f"{plan['family']} {plan['size']}, {plan['precision']}, ZeRO-{plan['zero']}, frozen weights "
                  f"{plan['frozen']}d, recompute {plan['recompute']}; {plan['gpu']} at {plan['utilisation']:.0%} of "
                  f"its peak, {plan['bandwidth_bytes_per_second'] / 1e9:.0f} GB/s; GB = 1e9 bytes", highlight=False)
    for index, stage in plan["stages"].items():
        console.print(_modules(f"Stage {index} ({stage['name']}): parameters", stage))
        console.print(_flops(stage["flops_per_sample"]))
        console.print(_memory(plan, stage))
        console.print(
            f"{stage['steps']:,} steps of {stage['global_batch']} samples = {stage['gpus']} GPUs x "
            f"{stage['micro_batch']} x {stage['accumulation']} accumulation: {stage['step_seconds']:.3g} s a step "
            f"(MFU {stage['mfu']:.0%}), {stage['hours']:,.1f} h, {stage['gpu_hours']:,.0f} GPU-hours. "
            f"{stage['advice']}\n", highlight=False)


def _modules(title: str, stage: dict[str, Any]) -> Table:
    table = _table(title, "module", "modules", "trainable", "frozen", "learning rate")
    for name, row in stage["modules"].items():
        scale = "" if row["lr_scale"] is None else f"x {row['lr_scale']:g}"
        table.add_row(name, str(row["modules"]), f"{row['trainable']:,}", f"{row['frozen']:,}", scale)
    table.add_section()
    table.add_row("all", "", f"{stage['trainable']:,}", f"{stage['frozen']:,}", "")
    return table


def _flops(flops: dict[str, Any]) -> Table:
    table = _table("TFLOP per sample", "module", "gradient", "linear", "attention", "forward", "training")
    for row in flops["modules"]:
        table.add_row(row["module"] + (" (head)" if row["head"] else ""), row["kind"],
                      *(f"{row[key] / 1e12:,.3f}" for key in ("linear", "attention", "forward", "training")))
    table.add_section()
    for part in flops["forward_parts"]:
        table.add_row(part, "", "", "", f"{flops['forward_parts'][part] / 1e12:,.3f}",
                      f"{flops['training_parts'][part] / 1e12:,.3f}")
    for policy, value in flops["by_recompute"].items():
        table.add_row(f"all, recompute {policy}", "", "", "", f"{flops['forward'] / 1e12:,.3f}",
                      f"{value / 1e12:,.3f}")
    return table


def _memory(plan: dict[str, Any], stage: dict[str, Any]) -> Table:
    names = [f"ZeRO-{o['zero']} {o['frozen']}" for o in stage["options"]]
    table = _table(f"GB per GPU, {stage['gpus']} GPUs (activations under recompute: " + ", ".join(
        f"{name} {value / 1e9:.1f}" for name, value in stage["activation_bytes"].items()) + ")", "part", *names)
    parts = list(dict.fromkeys(part for o in stage["options"] for part in o["memory_bytes"] if part != "total"))
    for part in [*parts, "total"]:
        table.add_row(part.replace("_", " "), *(f"{o['memory_bytes'].get(part, 0) / 1e9:.2f}"
                                                for o in stage["options"]))
    table.add_section()
    table.add_row(f"fits {plan['gpu']}", *("yes" if o["fits"] else "no" for o in stage["options"]))
    table.add_row("traffic a step", *(f"{o['traffic_bytes'] / 1e9:.2f}" for o in stage["options"]))
    table.add_row("seconds a step", *(f"{o['step_seconds']:.3g}" for o in stage["options"]))
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
