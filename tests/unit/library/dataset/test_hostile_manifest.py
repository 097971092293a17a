"""A manifest from elsewhere is not trusted with paths."""

from __future__ import annotations

import pydantic
import pytest

from library.dataset.manifest import FileEntry, ShardReport, Tally


@pytest.mark.parametrize(
    "name",
    ["../victim.parquet", "/etc/x.parquet", "part-000000.parquet/../x", "part-1.parquet", "_rejects/../x.parquet"],
)
def test_a_name_that_leads_out_of_the_dataset_is_refused(name: str) -> None:
    with pytest.raises(pydantic.ValidationError):
        FileEntry(name=name, rows=1, bytes=1, digest="")
    with pytest.raises(pydantic.ValidationError):
        ShardReport(
            stem=name,
            input_digest="",
            work_digest="",
            output=FileEntry(name="part-000000.parquet", rows=0, bytes=0, digest=""),
            tally=Tally(),
        )
