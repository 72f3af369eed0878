"""Rows: what of a dataset is its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from parts.data import check_own, held_out
from parts.say import UserError

from launcher import spec
from launcher.plan import choices


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "https://elsewhere.org/rows.json",
        "hf://datasets/me/other@main/rows.json",
        "hf://datasets/me/rows2@main/rows.json",
        "zip://rows.json::/home/me/rows.zip",
        "rows.json",
    ],
)
def test_a_file_that_is_not_the_datasets_own_is_refused(path: str) -> None:
    own = "hf://datasets/me/rows@0a1b/train.json"
    check_own({"train": [own]}, None, "me/rows")
    with pytest.raises(UserError, match="no file of its own") as error:
        check_own({"train": [own], "test": [path]}, None, "me/rows")
    assert path in error.value.paragraph
    assert error.value.status == 3


def test_a_folder_holds_its_files_itself_or_in_the_hubs_cache(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--me--rows"
    folder, blob, outside = cache / "snapshots" / "0a1b", cache / "blobs" / "f", tmp_path / "secret.txt"
    for path in (folder / "rows.txt", blob, outside):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "cached.txt").symlink_to(blob)
    (folder / "link.txt").symlink_to(outside)
    check_own({"train": [str(folder / "rows.txt"), str(folder / "cached.txt")]}, folder, "rows")
    web = "hf://datasets/me/private/x.jsonl"
    above = folder / ".." / ".." / ".." / "secret.txt"
    for named in (str(folder / "link.txt"), str(outside), str(above), web):
        with pytest.raises(UserError, match="no file of its own"):
            check_own({"train": [named]}, folder, "rows")
    # Another folder of that name is no cache.
    other = tmp_path / "snapshots" / "rows"
    with pytest.raises(UserError, match="no file of its own"):
        check_own({"train": [str(other / ".." / ".." / "secret.txt")]}, other, "rows")


@pytest.mark.parametrize(("rows", "count"), [(0, 0), (9, 0), (72, 7), (640, 64), (15_806, 64)])
def test_a_tenth_is_held_out_at_most_as_the_plan_says(rows: int, count: int) -> None:
    planned = choices.eval_rows(spec.build({"model": "qwen3-8b"}), rows)
    assert held_out(rows, None) == planned.value == count
    assert held_out(rows, 64) == min(64, rows // 2)
