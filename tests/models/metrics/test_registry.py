"""Metrics are declared once, and the page on evaluation says of each what its declaration says."""

import subprocess
import sys
from pathlib import Path

from stagecoach.models.metrics import registry

PAGE = Path(__file__).resolve().parents[3] / "docs" / "evaluation.md"


def test_each_metric_is_declared_once():
    assert len(registry.METRICS) == sum(len(module.METRICS) for module in registry._MODULES)


def test_the_page_has_a_row_of_each_metric_as_it_is_declared():
    rows = {}
    for line in PAGE.read_text().replace("\\|", "/").splitlines():
        if line.startswith("| `"):
            name, definition, *facts = (cell.strip() for cell in line.strip("|").split("|"))
            assert definition, line
            assert name.strip("`") not in rows, line
            rows[name.strip("`")] = facts
    declared = {name: [metric.unit, metric.better, metric.needs] for name, metric in registry.METRICS.items()}
    assert rows == declared


def test_declarations_and_what_training_measures_need_no_package_of_the_extra():
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('scipy', 'torchmetrics', 'torchvision')))\n"
        "from stagecoach.models.metrics import registry\n"
        "from stagecoach.models import FAMILIES, get_family\n"
        "[get_family(name) for name in FAMILIES]\n"
        "import torch\n"
        "from stagecoach.models.metrics.metric import measured\n"
        "from stagecoach.models.metrics.pictures import psnr, ssim\n"
        "x = torch.ones(1, 1, 3, 16, 16)\n"
        "print(psnr(x, x)[0].item(), measured(ssim, x, x).reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("100.0 torchmetrics.functional.image cannot be imported")
    assert done.stdout.rstrip().endswith("pip install 'stagecoach[evaluate]'")
