import base64
import io
import re

import numpy as np
from PIL import Image

from stagecoach.trainer.reporting.cluster_page import COLUMNS, cluster_html, heat_table


def records(lines: int, ranks: int, late: int) -> list[dict]:
    """A run in which rank ``late`` is slow for one log line in a thousand."""
    return [
        {
            "stage": 1,
            "step": 10 * (line + 1),
            "cluster/slowest_rank": late,
            "ranks": {"step_seconds": [3.0 if rank == late and line % 1000 == 7 else 1.0 for rank in range(ranks)]},
        }
        for line in range(lines)
    ]


def pixels(page: str) -> np.ndarray:
    (data,) = re.findall(r"base64,([^\"]+)", page)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_rank_that_was_slow_for_a_moment_is_a_red_spot_in_its_row():
    page = cluster_html(records(3000, 112, 37), 1, [f"node{rank // 8:02d}" for rank in range(112)])
    picture = pixels(page)
    assert picture.shape == (112 * 6, COLUMNS, 3)
    red = {int(row) // 6 for row in np.argwhere(picture[..., 1] < 100)[:, 0]}
    assert red == {37}
    assert "highest on the mean: rank 37 (node04)" in page
    assert "slowest_rank" in page


def test_of_a_run_that_went_on_with_other_ranks_the_newest_are_drawn():
    page = cluster_html(records(5, 8, 0) + records(4, 4, 1), 1, [])
    assert "Cluster: 4 ranks" in page
    assert pixels(page).shape[1] == 4


def test_without_numbers_by_rank_there_is_no_such_part():
    assert cluster_html([{"stage": 1, "step": 1, "loss": 0.5}], 1, []) == ""
    assert cluster_html(records(3, 2, 0), 2, []) == ""


def test_what_is_missing_stays_missing():
    assert heat_table([[None, None], [None, None]], relative=False) is None
    table = heat_table([[1.0, None], [2.0, 4.0]], relative=False)
    assert np.isnan(table[1, 0])
    assert table[1, 1] == 4.0
