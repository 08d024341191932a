import ml_dtypes
import numpy as np

from ensexport.timing.exchange import read_feed, write_feed


def test_names_order_dtypes_and_shapes_come_back(tmp_path):
    feed = {
        "file": np.arange(6, dtype=np.float32).reshape(2, 3),  # a parameter of numpy.savez
        "allow_pickle": np.array([True, False]),
        "a:b/c": np.array(7, dtype=np.int64),
        "half": np.ones((2, 2), dtype=np.float16),
        "brain": np.arange(4).astype(ml_dtypes.bfloat16),
    }
    write_feed(tmp_path / "feed.npz", feed)
    back = read_feed(tmp_path / "feed.npz")
    assert list(back) == list(feed)
    for name, array in feed.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(back[name], array)
