import json

import pytest

from ensexport.errors import CheckpointError, StackError
from ensexport.members.network_config import check_configs_agree, read_config

LABELS = ["member 0 (runs/a)", "member 1 (runs/b)", "member 2 (runs/c)"]


def config(**changes):
    return {"model_type": "bert", "layer_norm_eps": 1e-12, "hidden_act": "gelu", "_name_or_path": "x"} | changes


def refusal(*configs):
    with pytest.raises(StackError) as caught:
        check_configs_agree(LABELS[: len(configs)], configs)
    assert caught.value.exit_code == 4
    return caught.value


def test_a_config_is_read_flat_and_whole(tmp_path):
    labels = {str(index): f"LABEL_{index}" for index in range(3000)}
    content = {"architectures": ["Bert"], "id2label": labels, "eps": 1e-5, "nothing": None, "auto_map": {"A": "m.C"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    found = read_config(tmp_path / "config.json")
    assert len(found) == 3004
    assert found["architectures.0"] == "Bert"
    assert found["id2label.2999"] == "LABEL_2999"
    assert (found["eps"], found["nothing"]) == (1e-5, None)


def test_a_config_that_cannot_be_read_is_an_error(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match=r"cannot read '.*config.json': No such file"):
        read_config(path)
    path.write_text(" " * (4 * 2**20 + 1))
    with pytest.raises(CheckpointError, match="expected at most 4194304 bytes, got 4194305"):
        read_config(path)


def test_configs_that_differ_in_the_run_alone_agree():
    check_configs_agree([], [])
    check_configs_agree(LABELS[:1], [config()])
    check_configs_agree(
        LABELS, [config(), None, config(_name_or_path="y", transformers_version="4.1", dtype="float16")]
    )


def test_a_difference_names_the_option_both_members_and_both_values():
    error = refusal(config(), config(seed=3), config(layer_norm_eps=1e-5))
    assert str(error) == (
        "the members' configurations differ: 'layer_norm_eps': expected 1e-12 as in member 0 (runs/a), got 1e-05 in "
        "member 2 (runs/c). All weights go into one network: stack only members trained with the same config, or mend "
        "the config.json that is wrong."
    )
    assert error.details["differences"] == [{"option": "layer_norm_eps", "values": [1e-12, 1e-12, 1e-5]}]


def test_a_missing_option_and_many_differences():
    error = refusal(None, config(), config(rope_theta=1e4))
    assert "'rope_theta': expected (not there) as in member 1 (runs/b), got 10000.0 in member 2 (runs/c)." in str(error)
    many = refusal(config(), config(**{f"option_{index}": index for index in range(7)}))
    assert "; and 2 more. All weights" in str(many)
    assert (many.details["n_differences"], len(many.details["differences"])) == (7, 5)
