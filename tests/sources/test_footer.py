"""The footer's figures are those that Arrow tells of honest files; of others there are words."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterdoor.sources.footer import read_footer


@pytest.fixture
def file(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "img": pa.array([{"bytes": b"x" * row, "path": None} for row in range(300)], struct),
            "levels": [[[row % 256, 1], [2, 3]] for row in range(300)],
            "label": pa.array(np.arange(300) % 7 == 0),
            "ß": pa.array(["a", "b", None] * 100).dictionary_encode(),
        }
    )
    place = tmp_path / "a.parquet"
    pq.write_table(table, place, row_group_size=70, write_page_index=True)
    return place


def test_it_says_what_arrow_says(file):
    metadata = pq.read_metadata(file)
    rows, chunks = read_footer(file)
    assert rows == metadata.num_rows == 300
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    expected = [
        (each.path_in_schema, each.num_values, each.total_uncompressed_size, group.num_rows)
        for group in groups
        for each in (group.column(number) for number in range(group.num_columns))
    ]
    assert [(".".join(chunk.path), *chunk[1:4]) for chunk in chunks] == expected
    assert {chunk.path[-1] for chunk in chunks if chunk.kind == 6} == {"bytes", "path", "ß"}


def test_damage_is_told_in_words(file):
    whole = file.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.integers(len(whole) - 8 - length, len(whole) - 8, 3):
            damaged[place] = generator.integers(256)
        file.write_bytes(damaged)
        try:
            _, chunks = read_footer(file)
        except ValueError as error:
            assert "footer" in str(error)  # noqa: PT017
        else:
            assert all(isinstance(chunk.values, int) for chunk in chunks)
    for damaged in (b"", b"PAR1", whole[:-1], whole[-100:], b"\x1c" * 200 + b"\xc8\0\0\0PAR1"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="footer"):
            read_footer(file)
