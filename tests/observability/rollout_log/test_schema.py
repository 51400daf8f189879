import json
import re
from pathlib import Path

import pytest

from megatron_prime.observability.rollout_log.schema import COLUMNS, FileInfo, step_of, step_path


def test_a_description_survives_its_encoding():
    info = FileInfo(12, "train", 11, 0.05, 3, 64, 8, model={"tokenizer": "abc"})
    assert FileInfo.decode(info.encode()) == info


def test_a_description_may_have_fields_of_later_releases():
    later = json.loads(FileInfo(3).encode()) | {"colour": "red"}
    assert FileInfo.decode(json.dumps(later).encode()) == FileInfo(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 2, "step": 1}', "version 2 of the format.*reads version 1"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"schema": 1}', "damaged"),
        ('{"schema": 1, "step": "1"}', "damaged"),
        ('{"schema": 1, "step": 1, "kind": "other"}', "damaged"),
        (b"\xff", "damaged"),
    ],
)
def test_another_description_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        FileInfo.decode(text if isinstance(text, bytes) else text.encode())


def test_file_names_sort_as_steps_and_name_them(tmp_path):
    paths = [step_path(tmp_path, step) for step in (9, 10, 123456789, 1)]
    assert [step_of(path) for path in paths] == [9, 10, 123456789, 1]
    assert sorted(paths[:2]) == paths[:2]
    for name in ("step-1.parquet", ".step-00000001.parquet.tmp", "step-00000001.parquet.old", "x.parquet"):
        assert step_of(tmp_path / name) is None


def test_the_documentation_shows_every_column():
    page = (Path(__file__).parents[3] / "docs" / "rollouts.md").read_text()
    shown = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (.+) \|$", page, flags=re.MULTILINE)
    expected = [(column.name, _type(column), column.text) for column in COLUMNS]
    assert shown == expected


def _type(column):
    kind = str(column.type).replace("element: ", "").replace("float", "float32")
    return kind + (" or null" if column.is_optional else "")
