import io
import pickle

from lesion_d2.data.formats.table_pickle import load_table

import numpy as np
import pandas as pd
import pytest
from pandas._libs import internals
from pandas.core.indexes import base
from pandas.core.internals import BlockManager
from pickled_calls import Call


def frame() -> pd.DataFrame:
    """As the preprocessing of the medical detection toolkit makes it: row by row."""
    table = pd.DataFrame(columns=["pid", "class_target", "spacing", "fg_slices"])
    table.loc[0] = ["p1", np.array([1.0, 3.5]), (0.7, 0.7, 1.25), [np.int64(3), np.int64(4)]]
    table.loc[1] = ["p2", np.array([]), (0.7, 0.7, 1.25), []]
    return table


def same(found, table):
    assert list(found) == list(table.columns)
    for name in table.columns:
        assert len(found[name]) == len(table)
        for value, expected in zip(found[name], table[name], strict=True):
            assert np.array_equal(value, expected) and type(value) is type(expected)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tables_as_pandas_has_them(tmp_path, protocol):
    file = tmp_path / "a.pickle"
    mixed = pd.DataFrame({"n": [1, 2, 3], "x": [0.5, np.inf, -1.0], "ok": [True, False, True]})
    with_text = pd.DataFrame({"pid": ["a", "b"], "k": [1, 2]}, index=["r", "s"])
    for table in (frame(), mixed, with_text, frame().iloc[:0], mixed[["x"]]):
        table.to_pickle(file, protocol=protocol)
        found = load_table(file)
        assert list(found) == list(table.columns)
        for name in table.columns:
            for value, expected in zip(found[name], table[name], strict=True):
                assert np.array_equal(value, expected)
    assert isinstance(found["x"][0], float)


class OldPickler(pickle._Pickler):
    """Writes pandas' classes under the names, and with the state, that pandas 0.23 gave them."""

    class Manager:
        def __init__(self, frame):
            self.frame = frame

    class Index:
        def __init__(self, values):
            self.values = values

    def save_global_name(self, module, name):
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, pd.DataFrame):
            self._save_object("pandas.core.frame", "DataFrame", {"_data": self.Manager(obj)})
        elif isinstance(obj, self.Manager):
            table = obj.frame
            values = np.array([table[name].to_numpy(object) for name in table.columns], object)
            block = {"values": values, "mgr_locs": slice(0, len(table.columns), 1)}
            columns = np.array(list(table.columns), object)
            axes = [self.Index(columns), self.Index(np.arange(len(table)))]
            extra = {"0.14.1": {"axes": axes, "blocks": [block]}}
            state = ([columns], [values], [columns], extra)
            self._save_object("pandas.core.internals", "BlockManager", state)
        elif isinstance(obj, self.Index):
            kind = "Int64Index" if obj.values.dtype.kind == "i" else "Index"
            module = "numeric" if kind == "Int64Index" else "base"
            self.save_global_name("pandas.core.indexes.base", "_new_Index")
            self.save_global_name(f"pandas.core.indexes.{module}", kind)
            super().save({"data": obj.values, "name": None})
            self.write(pickle.TUPLE2 + pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)

    def _save_object(self, module, name, state):
        self.save_global_name(module, name)
        self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        super().save(state)
        self.write(pickle.BUILD)


def test_tables_of_pandas_0_23(tmp_path):
    file, target = tmp_path / "a.pickle", io.BytesIO()
    OldPickler(target, 4).dump(frame())
    file.write_bytes(target.getvalue())
    found = load_table(file)
    assert found["pid"] == ["p1", "p2"] and found["spacing"][1] == (0.7, 0.7, 1.25)
    assert np.array_equal(found["class_target"][0], [1.0, 3.5])


@pytest.mark.parametrize(
    "content, message",
    [
        (frame()["pid"], "Series"),
        ({"a": 1}, "found {'a': 1}, expected a pandas DataFrame"),
        (pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}), "DatetimeArray|dtype"),
        (pd.DataFrame({"c": pd.Categorical(["a"])}), "Categorical"),
        (pd.DataFrame({"a": [Call(print, "ran")]}), "builtins.print"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "expected unique names"),
        (pd.DataFrame([[1, 2]]), "found the columns .*expected unique names"),
        ([pd.DataFrame({"a": [1]})], "expected a pandas DataFrame"),
    ],
)
def test_what_is_no_such_table_is_one_line(tmp_path, capsys, content, message):
    file = tmp_path / "a.pickle"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"a\.pickle: .*({message})") as error:
        load_table(file)
    assert "\n" not in str(error.value) and "ran" not in capsys.readouterr().out


def hostile(body: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + body + pickle.STOP


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


STATE = pickle.dumps((None, {"convert": 1}), 4)[2:-1]


@pytest.mark.parametrize(
    "body, message",
    [
        # writing to a class that stands for one of pandas'
        (name("pandas", "DataFrame") + STATE + pickle.BUILD, "no readable pickle"),
        # a class where an object should be
        (name("pandas", "DataFrame"), "expected arrays and plain containers"),
        (name("pandas", "DataFrame") + b")" + pickle.REDUCE, r"DataFrame of \[\], expected _mgr"),
        (name("pandas.core.internals", "BlockManager") + b")" + pickle.REDUCE, "expected blocks"),
        (name("pandas.core.indexes.base", "_new_Index") + b")" + pickle.REDUCE, "index of"),
        (name("pandas.core.frame", "__dict__"), "pandas.core.frame.__dict__"),
        (name("pandas", "read_pickle"), "pandas.read_pickle"),
    ],
)
def test_hostile_tables_are_refused_and_leave_nothing_behind(tmp_path, body, message):
    file = tmp_path / "a.pickle"
    file.write_bytes(hostile(body))
    with pytest.raises(ValueError, match=rf"a\.pickle: .*{message}"):
        load_table(file)
    frame().to_pickle(file)
    same(load_table(file), frame())


def test_a_range_of_very_many_rows_is_refused(tmp_path):
    file = tmp_path / "a.pickle"
    table = pd.DataFrame({"a": [1]})
    table.index = pd.RangeIndex(10**9, 10**9 + 1)
    start, zero = (b"J" + n.to_bytes(4, "little") for n in (10**9, 0))
    file.write_bytes(pickle.dumps(table, 4).replace(start, zero, 1))
    with pytest.raises(ValueError, match="found an index of 1000000001 rows"):
        load_table(file)


def test_one_block_under_many_names_is_refused(tmp_path):
    values, columns = np.zeros((1, 20_000), bool), np.array(["a"], object)
    names = Call(base._new_Index, pd.Index, {"data": columns, "name": None})
    rows = {"name": None, "start": 0, "stop": values.size, "step": 1}
    axes = [names, Call(base._new_Index, pd.RangeIndex, rows)]
    for count, message in ((1, None), (100, "found more than .* items in a pickle of .* shared")):
        blocks = tuple(
            Call(internals._unpickle_block, values, slice(0, 1, 1), 2) for _ in range(count)
        )
        table = Call(pd.DataFrame, state={"_mgr": Call(BlockManager, blocks, axes)})
        (tmp_path / "a.pickle").write_bytes(pickle.dumps(table))
        if message is None:
            assert load_table(tmp_path / "a.pickle") == {"a": [False] * values.size}
        else:
            with pytest.raises(ValueError, match=message):
                load_table(tmp_path / "a.pickle")
