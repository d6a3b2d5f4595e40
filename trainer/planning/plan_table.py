"""A plan as tables for people."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table


def show(plan: dict[str, Any]) -> None:
    """Print what ``trainer.planning.planner.plan`` returned."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(
        f"{plan['family']} {plan['size']}, {plan['precision']}, ZeRO-{plan['zero']}, frozen weights "
        f"{plan['frozen'].removesuffix('e')}ed, activation checkpointing "
        f"{plan['activation_checkpointing']}; {plan['gpu']} at {plan['utilisation']:.0%} of its peak, "
        f"{plan['bandwidth_bytes_per_second'] / 1e9:.0f} GB/s; GB = 1e9 bytes"
    )
    for index, stage in plan["stages"].items():
        flops, options = stage["flops_per_sample"], stage["options"]
        scales = {
            name: ""
            if row["lr_scale"] is None
            else f"x {row['lr_scale']:g}" + (f" from {row['start_fraction']:.0%} on" if row["start_fraction"] else "")
            for name, row in stage["modules"].items()
        }
        console.print(
            _table(
                f"Stage {index} ({stage['name']}): parameters",
                ("module", "modules", "trainable", "frozen", "learning rate"),
                [
                    (name, str(row["modules"]), f"{row['trainable']:,}", f"{row['frozen']:,}", scales[name])
                    for name, row in stage["modules"].items()
                ],
                [("all", "", f"{stage['trainable']:,}", f"{stage['frozen']:,}", "")],
            )
        )
        console.print(
            _table(
                "TFLOP per sample",
                ("module", "gradient", "linear", "attention", "forward", "training"),
                [
                    (
                        row["module"],
                        row["kind"],
                        *(_tera(row[key]) for key in ("linear", "attention", "forward", "training")),
                    )
                    for row in flops["modules"]
                ],
                [
                    *(
                        (part, "", "", "", _tera(value), _tera(flops["training_parts"][part]))
                        for part, value in flops["forward_parts"].items()
                    ),
                    *(
                        (f"all, recompute {policy}", "", "", "", _tera(flops["forward"]), _tera(value))
                        for policy, value in flops["by_activation_checkpointing"].items()
                    ),
                ],
            )
        )
        kept = ", ".join(f"{policy} {_giga(value)}" for policy, value in stage["activation_bytes"].items())
        parts = dict.fromkeys(part for o in options for part in o["memory_bytes"] if part != "total")
        console.print(
            _table(
                f"GB per GPU, {stage['gpus']} GPUs (activations under recompute: {kept})",
                ("part", *(f"ZeRO-{o['zero']} {o['frozen']}" for o in options)),
                [
                    (part.replace("_", " "), *(_giga(o["memory_bytes"].get(part, 0)) for o in options))
                    for part in (*parts, "total")
                ],
                [
                    (f"fits {plan['gpu']}", *("yes" if o["fits"] else "no" for o in options)),
                    ("traffic a step", *(_giga(o["traffic_bytes"]) for o in options)),
                    ("seconds a step", *(f"{o['step_seconds']:.4g}" for o in options)),
                ],
            )
        )
        moved = stage["elementwise"]
        console.print(
            f"Other operations than matrix products move {_giga(moved['bytes'])} GB a step. At the full rates of an "
            f"{plan['gpu']} that takes {moved['seconds']:.3g} s, next to {moved['arithmetic_seconds']:.3g} s of "
            f"arithmetic: bound by {moved['bound']}."
        )
        console.print(
            f"{stage['steps']:,} steps of {stage['global_batch']} samples = {stage['gpus']} GPUs x "
            f"{stage['micro_batch']} x {stage['accumulation']} accumulation: {stage['step_seconds']:.3g} s a step "
            f"(MFU {stage['mfu']:.0%}), {stage['hours']:,.1f} h, {stage['gpu_hours']:,.0f} GPU-hours. "
            f"{stage['advice']}\n"
        )


def _tera(value: float) -> str:
    return f"{value / 1e12:,.3f}"


def _giga(value: float) -> str:
    return f"{value / 1e9:.2f}"


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], sums: Iterable[Iterable[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    table.add_section()
    for row in sums:
        table.add_row(*row)
    return table
